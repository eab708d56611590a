from __future__ import annotations

import json
import re

import pytest

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import builtin_names, load, parse
from forkjoin_scheduler.dialects.patterns import fill
from forkjoin_scheduler.errors import DialectError


@pytest.mark.parametrize("name", builtin_names())
def test_every_built_in_dialect_is_valid_and_cites_its_source(name):
    assert load(name).name == name
    assert load(name).source


def test_a_tokenizer_that_lacks_a_control_token_is_refused_naming_it(dialect, byte_tokenizer):
    tags = [t for t in dialect.control_tokens if t != "</Thread>"]
    with pytest.raises(DialectError, match="</Thread>"):
        dialect.check_tokenizer(byte_tokenizer(tags))


def test_a_tokenizer_with_every_control_token_fits(dialect, tokenizer):
    dialect.check_tokenizer(tokenizer)


def test_an_unknown_key_is_refused_naming_it(dialect):
    text = dialect.model_dump_json().replace('"name"', '"nmae": 1, "name"', 1)
    with pytest.raises(DialectError, match="nmae"):
        parse(text, "mine.yaml")


def test_a_pattern_with_neither_a_number_nor_a_title_is_refused(dialect):
    text = dialect.model_dump_json().replace("?P<number>", "?P<nr>").replace("?P<title>", "?P<name>")
    with pytest.raises(DialectError, match="expected a group named 'number' or 'title'"):
        parse(text, "mine.yaml")


def test_a_users_own_file_works_by_path(tmp_path, dialect):
    path = tmp_path / "mine.yaml"
    path.write_text(dialect.model_dump_json())
    assert load(str(path)) == dialect


def test_an_unknown_name_says_what_there_is():
    with pytest.raises(DialectError, match="threadweaver"):
        load("threadweavr")


class _Splitting:
    """Splits ``split`` into two ids, though the vocabulary of its pieces is whole."""

    def __init__(self, inner, split):
        self.inner, self.split = inner, split

    def token_id(self, token):
        return None if token == self.split else self.inner.token_id(token)


def test_a_split_control_token_is_named_and_no_other(dialect, tokenizer):
    with pytest.raises(DialectError, match="</Outlines>") as caught:
        dialect.check_tokenizer(_Splitting(tokenizer, "</Outlines>"))
    assert not any(t in str(caught.value) for t in dialect.control_tokens if t != "</Outlines>")


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("outline", "closes"),
        ("thread", "footer"),
        ("join", "kinds"),
        ("limits", "max_fork"),
        ("policies", "eos"),
    ],
)
def test_an_unknown_key_of_a_section_is_refused_naming_both(dialect, section, key):
    fields = dialect.model_dump(mode="json")
    fields[section][key] = 1
    with pytest.raises(DialectError, match=rf"mine\.yaml: {section}\.(reprefill\.)?{key}: unknown key"):
        parse(json.dumps(fields), "mine.yaml")


@pytest.mark.parametrize(
    "text", ["", "- a", "name: [", "name: threadweaver"], ids=["empty", "list", "no_yaml", "incomplete"]
)
def test_a_file_that_is_no_dialect_is_refused_naming_it(text):
    with pytest.raises(DialectError, match=r"mine\.yaml"):
        parse(text, "mine.yaml")


def test_a_control_token_that_plays_two_parts_is_checked_once(dialect):
    again = dialect.model_copy(update={"tags": (dialect.trigger, "<X>", "<X>")})
    assert again.control_tokens == ("</Outlines>", "<Outlines>", "</Thread>", "<X>")


@pytest.mark.parametrize(
    ("section", "key", "value", "expected"),
    [
        ("thread", "header", "<Thread>{num}:", "num"),
        ("thread", "joined_header", "{}{n}", "expected each brace to be doubled"),
        ("thread", "end", "{n!r}", "expected each brace to be doubled"),
        ("thread", "first_joined_header", "{ n }", "expected each brace to be doubled"),
        ("thread", "header", '{"a": 1}', "expected each brace to be doubled"),
        ("thread", "header", "{n", "expected each brace to be doubled"),
        ("thread", "header", "n}", "expected each brace to be doubled"),
        ("thread", "end", "", r"thread\.end: .*at least 1 character"),
        ("thread", "returns", "(", "not a regular expression"),
        ("thread", "context", "sibling", "'parent' or 'header'"),
        ("outline", "opens", "", r"outline\.opens: .*at least 1 character"),
        ("outline", "pattern", "a{99999999999999999999}(?P<number>)", "not a regular expression"),
        ("join", "text", "{n}", r"join\.text: expected the fields begin, user, assistant, got n"),
        ("join", "text", "{", r"join\.text: expected each brace to be doubled"),
        ("join", "kind", "merge", "'reprefill', 'stitch'"),
        ("join", "when", "last", "'all' or 'first'"),
        (
            "join",
            "text",
            "{resolved}",
            r"join\.text: expected the fields begin, user, assistant, got resolved",
        ),
        (
            "thread",
            "failed_header",
            "{result}",
            "title, message, resolved, begin, user, assistant, got result",
        ),
        ("thread", "returned_end", "{", "expected each brace to be doubled"),
        ("thread", "resolve", "another", "'countdown_node'"),
        ("thread", "without_trigger", "maybe", "valid boolean"),
        ("join", "opens", "", r"expected join\.opens with the kind rewrite"),
        ("positions", "fork_gap", -1, "greater than or equal to 0"),
        ("limits", "max_threads_per_fork", 0, "greater than or equal to 1"),
        ("policies", "joined_too_long", "sequential", "expected end_request, got sequential"),
        (
            "policies",
            "unknown_thread",
            "drop",
            "expected sequential or close_thread or end_request, got drop",
        ),
        ("policies", "no_outline", "repeat", "expected sequential or close_thread or end_request"),
        ("policies", "thread_eos", "sequential", "expected close_thread or end_request"),
        (
            "policies",
            "duplicate_outline",
            "close_thread",
            "expected drop or keep or sequential or end_request",
        ),
    ],
)
def test_what_would_fail_at_a_fork_is_refused_when_the_file_is_read(dialect, section, key, value, expected):
    fields = dialect.model_dump(mode="json")
    fields[section][key] = value
    with pytest.raises(DialectError, match=expected):
        parse(json.dumps(fields), "mine.yaml")


def test_doubled_braces_of_a_template_are_braces(dialect):
    fields = dialect.model_dump(mode="json")
    fields["thread"]["header"] = '{{"n": {n}, "of": {{{n}}}}} {{n}}'
    header = parse(json.dumps(fields), "mine.yaml").thread.header
    assert fill(header, n="3") == '{"n": 3, "of": {3}} {n}'


def test_fields_that_are_not_given_stay_and_what_is_filled_in_is_not_filled():
    assert fill("{n} {title} {user}", n="{title}", title="{n}") == "{title} {n} {user}"


@pytest.mark.parametrize("both", [True, False])
def test_a_dialect_has_either_outlines_or_a_width(dialect, both):
    fields = dialect.model_dump(mode="json") | ({"width": 2} if both else {"outline": None})
    with pytest.raises(DialectError, match="either outline or width"):
        parse(json.dumps(fields), "mine.yaml")


#: What is wrong with a dialect as a whole: its fields over those of ``make_dialect``, and the sentence.
WRONG = {
    "no_trigger": ({"trigger": None}, "expected a trigger, for fork_at is trigger"),
    "empty_trigger": ({"trigger": ""}, "at least 1 character"),
    "prompt_with_outlines": (
        {"fork_at": "prompt", "outline": {"pattern": "(?P<number>.)"}},
        "expected a width, for at the end of the prompt nothing is announced",
    ),
    "end_of_which_turn": (
        {"fork_at": "end", "trigger": None},
        "expected a trigger or an outline, to know which turns end with a fork",
    ),
    "neither_outline_nor_width": ({"outline": None}, "expected either outline or width, got both or neither"),
    "trigger_is_end": (
        {"thread": {"header": "x", "end": "<F>"}},
        "expected a trigger other than thread.end, got '<F>' for both",
    ),
    "empty_tag": ({"tags": ["<X>", ""]}, "at least 1 character"),
    "trigger_no_regex": ({"trigger": "(", "tags_are": "text"}, "not a regular expression"),
    "no_outline_number": (
        {"outline": {"pattern": "(?P<nr>.)"}},
        "expected a group named 'number' or 'title'",
    ),
    "header_alone_is_empty": (
        {"thread": {"header": "", "context": "header"}},
        "expected a header, for it is all that a thread sees",
    ),
    "stitch_header_context": (
        {"join": {"kind": "stitch"}, "thread": {"header": "x", "context": "header"}},
        "expected threads that see their parent",
    ),
    "stitch_joined_header": (
        {"join": {"kind": "stitch"}, "thread": {"header": "x", "joined_header": "y"}},
        "a stitched thread stays as it ran",
    ),
    "stitch_first_joined_header": (
        {"join": {"kind": "stitch"}, "thread": {"header": "x", "first_joined_header": "y"}},
        "a stitched thread stays as it ran",
    ),
    "stitch_returns": (
        {"join": {"kind": "stitch"}, "thread": {"header": "x", "returns": "y"}},
        "a stitched thread stays as it ran",
    ),
    "stitch_opened": ({"join": {"kind": "stitch", "opened": "y"}}, "a stitched thread stays as it ran"),
    "stitch_swaps": (
        {"join": {"kind": "stitch"}, "swaps": {"<X>": "<Y>"}},
        "expected swaps with the kind stitch only where a dialect forks at the prompt",
    ),
    "path_embeddings_of_a_join_that_prefills": (
        {"needs_model_attribute": "seg_embeddings"},
        "expected seg_embeddings only with the kind stitch",
    ),
    "path_embeddings_of_nested_threads": (
        {"needs_model_attribute": "seg_embeddings", "join": {"kind": "stitch"}, "max_depth": 2},
        "other threads have no number of a path",
    ),
    "newlines_that_would_be_joined": (
        {"thread": {"header": "x", "newlines": 1}},
        "expected newlines only with the kind splice",
    ),
    "newlines_behind_a_join": (
        {"join": {"newlines": 1}},
        "expected join.newlines with the kind splice, and with no other",
    ),
    "nothing_to_swap": ({"swaps": {"": "x"}}, "at least 1 character"),
    "nothing_banned": ({"sampling": {"banned": [[]]}}, "at least 1 item"),
    "rewrite_without_opens": (
        {"join": {"kind": "rewrite"}},
        "expected join.opens with the kind rewrite, and with no other",
    ),
    "empty_opens": ({"join": {"kind": "rewrite", "opens": ""}}, "at least 1 character"),
    "opens_without_rewrite": ({"join": {"opens": "<C>"}}, "expected join.opens with the kind rewrite"),
    "sync_without_sync": ({"join": {"kind": "sync"}}, "expected join.sync with the kind sync or in_place"),
    "sync_in_a_header_of_its_own": (
        {"join": {"kind": "in_place", "sync": "<S>"}, "thread": {"header": "<T>", "context": "header"}},
        "expected threads that see their parent, trigger included",
    ),
    "rounds_at_a_trigger": (
        {"join": {"kind": "rounds", "prompt": "{prompt}", "reference": ""}},
        "expected fork_at: prompt, thread.returns and threads that see their parent",
    ),
    "rounds_without_the_question": (
        {"join": {"kind": "rounds", "prompt": "{references}", "reference": ""}},
        "expected the field {prompt} once",
    ),
    "rounds_with_another_field": (
        {"join": {"kind": "rounds", "prompt": "{prompt}", "reference": "{title}"}},
        "expected the fields n, returned, got title",
    ),
    "a_part_in_place": (
        {"join": {"kind": "in_place", "sync": "<S>"}, "thread": {"header": "<T>", "returns": "x"}},
        "with no returns or opened",
    ),
    "on_demand_without_ask": ({"join": {"kind": "on_demand"}}, "expected join.ask with the kind on_demand"),
    "ask_without_on_demand": (
        {"join": {"ask": "(?P<number>.)"}},
        "expected join.ask with the kind on_demand",
    ),
    "ask_without_number": (
        {"join": {"kind": "on_demand", "ask": "<J>"}},
        "expected a group named 'number'",
    ),
    "vote_without_result": ({"join": {"kind": "vote"}}, "expected join.result with the kind vote"),
    "result_without_vote": ({"join": {"result": "x"}}, "expected join.result with the kind vote"),
    "no_width": ({"width": 0}, "greater than or equal to 1"),
    "too_wide": ({"width": 10**9}, "less than or equal to 1024"),
    "no_depth": ({"max_depth": 0}, "greater than or equal to 1"),
    "no_room": ({"min_room": 0}, "greater than or equal to 1"),
    "neither_token_nor_text": ({"tags_are": "words"}, "'tokens' or 'text'"),
    "temperature": ({"sampling": {"thread": {"temperature": -1}}}, "greater than or equal to 0"),
}


@pytest.mark.parametrize(("fields", "sentence"), WRONG.values(), ids=WRONG)
def test_fields_that_do_not_go_together_are_refused_with_what_was_expected(make_dialect, fields, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        make_dialect(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"fork_at": "prompt", "trigger": None},
        {"fork_at": "end", "trigger": None, "outline": {"pattern": "(?P<number>.)"}},
        {"trigger": r"<F \d>", "tags_are": "text"},
        {"join": {"kind": "stitch"}, "thread": {"header": ""}},
        {"join": {"kind": "rewrite", "opens": "<C>", "opened": "<D>"}},
        {"join": {"kind": "on_demand", "ask": "<J (?P<number>.)>"}},
        {"join": {"kind": "sync", "sync": "<S>"}},
        {"join": {"kind": "in_place", "sync": "<S>"}},
        {"join": {"kind": "vote", "result": "x"}},
        {"join": {"kind": "splice"}},
        {"join": {"kind": "splice", "newlines": 2}, "thread": {"header": "", "newlines": 1}},
        {"join": {"kind": "finish"}},
        {"swaps": {"<X>": "<Y>"}},
        {"sampling": {"banned": [["<X>"], ["<F>", "<F>"]]}},
    ],
    ids=[
        *(
            "prompt",
            "end",
            "text",
            "stitch",
            "rewrite",
            "on_demand",
            "sync",
            "in_place",
            "vote",
            "splice",
            "newlines",
            "finish",
        ),
        *("swaps", "banned"),
    ],
)
def test_each_way_to_fork_and_to_join_can_be_said_and_survives_the_way_to_the_engine(make_dialect, fields):
    mine = make_dialect(**fields)
    assert Dialect.model_validate(mine.model_dump(mode="json")) == mine
    assert parse(mine.model_dump_json(), "mine.yaml") == mine


@pytest.mark.parametrize(
    ("kind", "waits", "goes_on"),
    [
        ("reprefill", True, True),
        ("stitch", True, True),
        ("rewrite", True, True),
        ("splice", False, True),
        ("on_demand", False, True),
        ("sync", False, True),
        ("in_place", False, True),
        ("rounds", True, True),
        ("finish", True, False),
        ("vote", True, False),
    ],
)
def test_the_kind_of_a_join_says_who_waits_and_who_goes_on(make_dialect, kind, waits, goes_on):
    needs = {"rewrite": {"opens": "<C>"}, "on_demand": {"ask": "(?P<number>.)"}, "vote": {"result": "x"}}
    needs["sync"] = needs["in_place"] = {"sync": "<S>"}
    needs["rounds"] = {"prompt": "{prompt}", "reference": "{returned}"}
    more = {"fork_at": "prompt", "thread": {"header": "", "returns": "x"}} if kind == "rounds" else {}
    join = make_dialect(join={"kind": kind} | needs.get(kind, {}), **more).join
    assert (join.waits, join.goes_on) == (waits, goes_on)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected a mapping of fields, got NoneType"),
        ("- a", "expected a mapping of fields, got list"),
        ("hello", "expected a mapping of fields, got str"),
        ("name: a\nname: b", "expected each key once, got 'name' twice"),
        ("thread:\n  header: a\n  end: b\n  header: c", "expected each key once, got 'header' twice"),
        ("1: a", "Keys should be strings"),
        ("? [a]\n: 1", "unhashable"),
        ("name: !!python/name:os.system", "could not determine a constructor"),
        ("name: !!int abc", "invalid literal"),
        ("[" * 5000, "recursion"),
    ],
    ids=[
        "empty",
        "list",
        "text",
        "twice",
        "twice_inside",
        "number_key",
        "list_key",
        "python",
        "not_a_number",
        "deep",
    ],
)
def test_yaml_that_is_no_dialect_is_refused_in_a_sentence(text, sentence):
    with pytest.raises(DialectError, match=rf"(?s)dialect mine\.yaml: .*{sentence}"):
        parse(text, "mine.yaml")


def test_a_file_that_is_not_utf8_is_refused_naming_it(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_bytes("name: né".encode("latin-1"))
    with pytest.raises(DialectError, match=r"mine\.yaml: expected a readable YAML file in UTF-8"):
        load(str(path))


@pytest.mark.parametrize("name", ["x" * 5000, "\0", ""], ids=["long", "null", "empty"])
def test_a_name_that_can_be_no_file_is_refused(name):
    with pytest.raises(
        DialectError, match=r"^(dialect x.*: expected a readable YAML|expected one of apar, apr)"
    ):
        load(name)


def test_a_folder_is_no_dialect(tmp_path):
    with pytest.raises(DialectError, match="which is neither"):
        load(str(tmp_path))


def test_numbered_ends_are_control_tokens_each(make_dialect):
    mine = make_dialect(width=3, thread={"header": "x", "end": "</{n}>"})
    assert mine.control_tokens == ("<F>", "</1>", "</2>", "</3>")


def test_where_tags_are_text_only_further_tags_must_be_tokens(make_dialect):
    mine = make_dialect(tags_are="text", thread={"header": "x", "end": "</T>"}, tags=["<X>"])
    assert mine.control_tokens == ("<X>",)


@pytest.mark.parametrize("tags_are", ["text", "tokens"])
def test_what_is_banned_must_be_tokens_too(make_dialect, tags_are):
    mine = make_dialect(tags_are=tags_are, sampling={"banned": [["<X>"], ["<F>", "<F>"]]})
    assert set(mine.control_tokens) == {"<X>", "<F>"}


# ---- turns ---------------------------------------------------------------------------------

BEGIN, USER, ASSISTANT = "<B>}", "{E}<U>", "<E>{{<A>"


def test_the_turns_of_the_chat_template_stand_in_every_text_whatever_braces_they_have(
    make_dialect, byte_tokenizer
):
    thread = {
        "header": "{begin}{user}{n}{assistant}",
        "joined_header": "{user}{{x}}",
        "first_joined_header": "{assistant}{begin}",
        "failed_header": "{user}{title}",
        "end": "{user}{n}",
    }
    mine = make_dialect(thread=thread, join={"text": "{{{user}}}{assistant}{begin}"})
    turned = mine.with_turns(byte_tokenizer([], (BEGIN, USER, ASSISTANT)))
    filled = [fill(getattr(turned.thread, name), n="2") for name in thread]
    assert filled == [
        f"{BEGIN}{USER}2{ASSISTANT}",
        f"{USER}{{x}}",
        f"{ASSISTANT}{BEGIN}",
        f"{USER}{{title}}",
        f"{USER}2",
    ]
    assert turned.join.text == f"{{{USER}}}{ASSISTANT}{BEGIN}"


def test_turns_in_the_first_joined_header_alone_are_filled_too(make_dialect, byte_tokenizer):
    mine = make_dialect(thread={"header": "x", "first_joined_header": "{assistant}"})
    turned = mine.with_turns(byte_tokenizer([], ("B", "U", "A")))
    assert turned.thread.first_joined_header == "A"


@pytest.mark.parametrize("turn", ["begin", "user", "assistant"])
@pytest.mark.parametrize("name", ["header", "joined_header", "first_joined_header", "failed_header", "end"])
def test_a_dialect_in_turns_needs_a_chat_template_and_says_so(make_dialect, byte_tokenizer, name, turn):
    mine = make_dialect(thread={"header": "x"} | {name: f"{{{turn}}}"})
    with pytest.raises(DialectError, match=r"no chat template: give one with --chat-template"):
        mine.with_turns(byte_tokenizer([]))


def test_a_dialect_without_turns_needs_no_chat_template(dialect, tokenizer, make_dialect):
    assert dialect.with_turns(tokenizer) == dialect
    plain = make_dialect(thread={"header": "{{user}}"}, join={"text": "{{user}}"}).with_turns(tokenizer)
    assert (fill(plain.thread.header), plain.join.text) == ("{user}", "{user}")
