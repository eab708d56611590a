from __future__ import annotations

import json

import pytest

from forkjoin_scheduler.dialect import builtin_names, fill, load, parse
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


def test_a_pattern_without_a_number_is_refused(dialect):
    text = dialect.model_dump_json().replace("?P<number>", "?P<nr>")
    with pytest.raises(DialectError, match="number"):
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
    with pytest.raises(DialectError, match=rf"mine\.yaml.*\n{section}\.{key}\n"):
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
        ("thread", "joined_header", "{}{n}", "expected no field but"),
        ("thread", "header", "", "at least 1 character"),
        ("policies", "no_outline", "close_thread", "expected sequential or end_request"),
        ("policies", "thread_eos", "sequential", "expected close_thread or end_request"),
        ("policies", "duplicate_outline", "close_thread", "expected drop or sequential or end_request"),
    ],
)
def test_what_would_fail_at_a_fork_is_refused_when_the_file_is_read(dialect, section, key, value, expected):
    fields = dialect.model_dump(mode="json")
    fields[section][key] = value
    with pytest.raises(DialectError, match=expected):
        parse(json.dumps(fields), "mine.yaml")


def test_a_template_may_hold_other_braces_than_its_field(dialect):
    fields = dialect.model_dump(mode="json")
    fields["thread"]["header"] = "{{n}} \\{ {n} }"
    header = parse(json.dumps(fields), "mine.yaml").thread.header
    assert fill(header, "3") == "{3} \\{ 3 }"


@pytest.mark.parametrize("both", [True, False])
def test_a_dialect_has_either_outlines_or_a_width(dialect, both):
    fields = dialect.model_dump(mode="json") | ({"width": 2} if both else {"outline": None})
    with pytest.raises(DialectError, match="either outline or width"):
        parse(json.dumps(fields), "mine.yaml")
