from __future__ import annotations

import json

import pytest

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.options import ExplicitBranch, RequestOptions, parse_options
from forkjoin_scheduler.settings import UNLIMITED, Settings

#: Numbers that engines are sent.
COUNTS = [*Limits.model_fields, "max_threads_running", "best_of"]


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"bogus": 1}, "bogus"),
        ({"max_forks": -1}, "max_forks"),
        *(({name: 1 << 31}, name) for name in COUNTS),
        ({"enabled": "no"}, "enabled"),
        (3, "object"),
    ],
    ids=["unknown", "range", *COUNTS, "type", "no_object"],
)
def test_a_wrong_field_is_named(value, named):
    with pytest.raises(BadRequestOptions, match=named):
        parse_options(value)


def test_what_a_request_sets_overrides_the_servers_limit_and_nothing_else():
    limits = parse_options('{"max_forks": 2}').limits(Limits(max_forks=9, max_total_tokens=77))
    assert (limits.max_forks, limits.max_total_tokens) == (2, 77)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("{", "JSON"),
        ("[1]", "list"),
        (None, "NoneType"),
        ({"max_forks": "2"}, "max_forks"),
        ({"max_forks": True}, "max_forks"),
        ({"max_threads_per_fork": 0}, "max_threads_per_fork"),
        ({"include_threads": 1}, "include_threads"),
    ],
    ids=["no_json", "json_list", "none", "text_number", "bool_number", "zero_threads", "number_bool"],
)
def test_nothing_is_guessed_from_a_value_of_another_type(value, named):
    with pytest.raises(BadRequestOptions, match=named):
        parse_options(value)


def test_every_wrong_key_is_named_and_the_legal_ones_too():
    with pytest.raises(BadRequestOptions) as caught:
        parse_options({"bogus": 1, "max_forks": -1})
    message = str(caught.value)
    assert "forkjoin.bogus" in message
    assert "forkjoin.max_forks" in message
    legal = message.partition("Legal keys of forkjoin: ")[2].split(", ")
    assert legal == sorted(RequestOptions.model_fields)
    assert {"branches", "best_of", "enabled", "include_threads", "max_forks", "vote"} <= set(legal)


def test_an_unknown_key_of_a_branch_is_named_beside_those_that_a_branch_may_have():
    with pytest.raises(BadRequestOptions) as caught:
        parse_options({"branches": [{"titel": "a"}, {"text": "b", "txt": "c"}]})
    assert str(caught.value) == (
        "forkjoin.branches[0].titel: unknown key; forkjoin.branches[1].txt: unknown key. "
        "Legal keys of a branch: response_format, text, title"
    )


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"max_forks": -1}, "forkjoin.max_forks: Input should be greater than or equal to 0, got -1"),
        ({"best_of": 2}, "forkjoin: expected best_of and vote together"),
        ({"branches": [{}]}, "forkjoin.branches[0]: expected a title or a text, got {}"),
        (
            {"branches": [{"title": "a" * 1001}]},
            "forkjoin.branches[0].title: expected at most 1000 characters, got 1001",
        ),
        (
            {"branches": [{"text": "a"}], "closing": "\udfff"},
            "forkjoin.closing: expected valid Unicode, got half of a surrogate pair",
        ),
    ],
    ids=["range", "together", "empty", "long", "half"],
)
def test_an_error_says_what_is_wrong_and_no_more(value, said):
    with pytest.raises(BadRequestOptions) as caught:
        parse_options(value)
    assert str(caught.value) == said


@pytest.mark.parametrize(
    "vote",
    [
        "(?P<result>a)|(?P<result>b)",
        "(?P<result>a)|(?<result>b)",
        r"[]\]](?P<result>a)\Q(\E(?P<result>b)",
        "(?P<x>a)(?P<result>[[:alpha:]])(?P<result>b)",
    ],
    ids=["alternatives", "both_syntaxes", "after_brackets", "after_a_class"],
)
def test_a_vote_whose_groups_share_a_name_is_refused(vote):
    """RE2 takes it and reads the first of them: the other one's vote would be none."""
    with pytest.raises(BadRequestOptions) as caught:
        parse_options({"best_of": 2, "vote": vote})
    assert str(caught.value).startswith("forkjoin.vote: expected each group's name once, got result 2 times")


@pytest.mark.parametrize(
    "vote",
    [
        r"\(?P<result>(?P<result>a)",
        r"[(?P<result>](?P<result>a)",
        r"[[:alpha:](?P<result>](?P<result>a)",
        r"\Q(?P<result>\E(?P<result>a)",
        "(?P<first>a)(?P<result>b)",
    ],
    ids=["escaped", "in_a_class", "beside_a_class", "quoted", "two_names"],
)
def test_what_only_looks_like_a_second_group_of_a_name_is_none(vote):
    assert parse_options({"best_of": 2, "vote": vote}).vote == vote


def test_a_request_that_says_nothing_forks_within_the_servers_limits_unseen():
    options = parse_options({})
    assert (options.enabled, options.include_threads) == (True, False)
    assert options.limits(Limits(max_forks=3, max_total_tokens=7)) == Limits(max_forks=3, max_total_tokens=7)


def test_an_object_and_its_json_mean_the_same():
    fields = {"max_forks": 0, "include_threads": True}
    assert parse_options(json.dumps(fields)) == parse_options(fields)


@pytest.mark.parametrize("value", [9, None], ids=["more", "no_limit"])
def test_a_request_may_not_go_over_a_limit_that_the_operator_gave(value):
    caps = UNLIMITED.model_copy(update={"max_threads_per_fork": 8})
    with pytest.raises(
        BadRequestOptions, match=r"max_threads_per_fork: expected at most 8.*--max-threads-per"
    ):
        parse_options({"max_threads_per_fork": value}).check_limits(UNLIMITED, caps)
    parse_options({"max_threads_per_fork": 8, "max_forks": 999}).check_limits(UNLIMITED, caps)


def test_the_operators_limits_are_both_the_default_and_the_cap(dialect):
    settings = Settings.of(dialect, {"max_forks": 3})
    assert settings.limits == dialect.limits.model_copy(update={"max_forks": 3})
    assert settings.caps == UNLIMITED.model_copy(update={"max_forks": 3})


@pytest.mark.parametrize("as_json", [False, True], ids=["object", "json"])
def test_branches_are_read_from_plain_objects(as_json):
    fields = {"branches": [{"title": "a"}, {"text": "b\n"}], "closing": "so"}
    options = parse_options(json.dumps(fields) if as_json else fields)
    assert options.branches == [ExplicitBranch(title="a"), ExplicitBranch(text="b\n")]
    assert (options.closing, options.forks_at_prompt) == ("so", True)


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"branches": []}, r"forkjoin\.branches: .*at least 1"),
        ({"branches": [{"text": "x"}] * 257}, r"forkjoin\.branches: .*at most 256"),
        ({"branches": [{"title": "a"}, {}]}, r"forkjoin\.branches\[1\]: .*expected a title or a text"),
        ({"branches": [{"title": "a", "txt": "b"}]}, r"forkjoin\.branches\[0\]\.txt"),
        ({"branches": [{"title": 1}]}, r"forkjoin\.branches\[0\]\.title: .*valid string, got 1"),
        ({"branches": ["a"]}, r"forkjoin\.branches\[0\]: .*got 'a'"),
        ({"branches": {"title": "a"}}, r"forkjoin\.branches: .*valid list"),
        ({"branches": [{"title": "a"}], "closing": ""}, r"forkjoin\.closing: .*at least 1"),
        ({"closing": "x"}, "expected branches beside closing"),
        (
            {"branches": [{"title": "a"}, {"title": "b"}], "best_of": 1, "vote": "x"},
            "expected best_of = 2 or more, for each of branches to have a thread, got 1",
        ),
        (
            {"branches": [{"title": "a"}], "closing": "so", "best_of": 1, "vote": "x"},
            "expected closing or best_of, got both",
        ),
        ({"rounds": [4], "branches": [{"title": "a"}]}, "expected rounds, or branches or best_of, got both"),
        ({"rounds": []}, r"forkjoin\.rounds: .*at least 1"),
        ({"rounds": [4, 0]}, r"forkjoin\.rounds\[1\]: .*greater than or equal to 1"),
        ({"best_of": 2}, "expected best_of and vote together"),
        ({"wait_for_all": True}, "expected best_of beside wait_for_all"),
        ({"confidence": 0.9}, "expected best_of beside confidence"),
        ({"prune": "memory"}, "expected best_of beside prune"),
        ({"best_of": 2, "vote": "x", "prune": "most"}, r"forkjoin\.prune: .*'confidence', 'agreement'"),
        (
            {"best_of": 2, "vote": "x", "prune": "memory", "wait_for_all": True},
            "expected prune or wait_for_all, got both",
        ),
        (
            {"best_of": 2, "vote": "x", "confidence": 0.9, "wait_for_all": True},
            "expected confidence or wait_for_all, got both",
        ),
        ({"best_of": 2, "vote": "x", "confidence": 0.4}, r"forkjoin\.confidence: .*or equal to 0\.5"),
        ({"best_of": 2, "vote": "x", "confidence": 1.01}, r"forkjoin\.confidence: .*less than or equal to 1"),
        ({"best_of": 2, "vote": "x", "confidence": float("nan")}, r"forkjoin\.confidence: .*finite number"),
        ({"best_of": 2, "vote": "x", "confidence": "0.9"}, r"forkjoin\.confidence: .*valid number"),
        ({"vote": "x"}, "expected best_of and vote together"),
        ({"best_of": 0, "vote": "x"}, r"forkjoin\.best_of: .*greater than or equal to 1"),
        ({"best_of": 257, "vote": "x"}, r"forkjoin\.best_of: .*less than or equal to 256"),
        ({"best_of": 2.0, "vote": "x"}, r"forkjoin\.best_of"),
        ({"best_of": 2, "vote": "("}, r"forkjoin\.vote: .*not a regular expression"),
        ({"best_of": 2, "vote": "a{1001}"}, r"forkjoin\.vote: .*not a regular expression.*invalid repetition"),
        ({"best_of": 2, "vote": "(?<=a)b"}, r"forkjoin\.vote: .*not a regular expression.*\(\?<"),
        ({"best_of": 2, "vote": "a{900}"}, r"forkjoin\.vote: .*at most 100 instructions"),
        ({"branches": [{"title": "a" * 1001}]}, r"forkjoin\.branches\[0\]\.title: .*at most 1000 characters"),
        ({"best_of": 2, "vote": "(" * 3000 + ")" * 3000}, r"forkjoin\.vote: .*not a regular expression"),
    ],
    ids=[
        "no_branches", "many_branches", "says_nothing", "unknown_key", "number_title", "text_branch",
        "one_branch", "empty_closing", "closing_alone", "too_few_threads", "closed_vote", "rounds_of_branches", "no_rounds", "empty_round", "no_vote", "waits_for_none", "sure_of_nothing", "prunes_none", "prunes_by_what", "prunes_and_waits", "waits_for_all_and_none", "unsure", "more_than_sure",
        "no_confidence", "confidence_in_words", "vote_alone", "none", "many",
        "fraction", "no_regex", "huge_repetition", "looks_behind", "long_program", "long_title", "deep_regex",
    ],
)  # fmt: skip
def test_what_a_request_forks_into_is_checked_and_the_wrong_field_named(value, named):
    with pytest.raises(BadRequestOptions, match=named):
        parse_options(value)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ({"branches": [{"title": "a"}] * 3}, "branches"),
        ({"best_of": 3, "vote": "x"}, "best_of"),
    ],
)
def test_no_more_threads_are_asked_for_than_a_fork_may_have(value, name):
    options = parse_options(value)
    options.check_limits(Limits(max_threads_per_fork=3), UNLIMITED)
    with pytest.raises(
        BadRequestOptions, match=rf"forkjoin\.{name}: expected at most max_threads_per_fork = 2 .*, got 3"
    ):
        options.check_limits(Limits(max_threads_per_fork=2), UNLIMITED)


def test_a_request_may_narrow_its_fork_only_to_what_it_asks_for():
    options = parse_options({"best_of": 3, "vote": "x", "max_threads_per_fork": 2})
    with pytest.raises(BadRequestOptions, match=r"max_threads_per_fork = 2 .*, got 3"):
        options.check_limits(Limits(max_threads_per_fork=9), UNLIMITED)


@pytest.mark.parametrize(
    ("asked", "caps", "whose"),
    [
        ({}, UNLIMITED, "the server's default; forkjoin.max_threads_per_fork sets another"),
        ({}, UNLIMITED.model_copy(update={"max_threads_per_fork": 2}), "the server's --max-threads-per-fork"),
        ({"max_threads_per_fork": 2}, UNLIMITED, "the request's own forkjoin.max_threads_per_fork"),
    ],
    ids=["default", "flag", "own"],
)
def test_an_error_says_whose_limit_a_fork_is_over(asked, caps, whose):
    options = parse_options({"best_of": 3, "vote": "x"} | asked)
    with pytest.raises(BadRequestOptions) as caught:
        options.check_limits(Limits(max_threads_per_fork=2), caps)
    assert f"max_threads_per_fork = 2 ({whose}), got 3" in str(caught.value)


def test_a_request_that_asks_for_no_fork_has_none_behind_its_prompt():
    assert not parse_options({"max_forks": 1}).forks_at_prompt
    assert parse_options({"best_of": 1, "vote": "x"}).forks_at_prompt


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"branches": [{"title": "\ud800", "text": "a="}]}, r"forkjoin\.branches\[0\]\.title"),
        (
            {"branches": [{"text": "a="}, {"text": "ab\udfff"}]},
            r"forkjoin\.branches\[1\]\.text: .*character 2",
        ),
        ({"branches": [{"text": "a"}], "closing": "\ud800"}, r"forkjoin\.closing: expected valid Unicode"),
        ({"best_of": 2, "vote": "\ud800"}, r"forkjoin\.vote"),
        ({"best_of": 2, "vote": "[\udfff-a]"}, r"forkjoin\.vote"),
        ({"\ud800": 1}, "expected valid Unicode, got half of a surrogate pair"),
    ],
    ids=["title", "text", "closing", "vote", "vote_that_is_no_regex", "key"],
)
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(value, named):
    with pytest.raises(BadRequestOptions, match=named):
        parse_options(value)


@pytest.mark.parametrize(
    "value",
    [
        {"x": "y" * 5_000_000},
        {"y" * 5_000_000: 1},
        {f"{n}{'y' * 50}": "y" * 50 for n in range(1000)},
        {"branches": ["y" * 5_000_000]},
        {"branches": [{"text": ["y" * 50] * 1000}] * 256},
        {"best_of": 2, "vote": "(?P<" + "y" * 1900},
        {"best_of": 2, "vote": f"(?P<{'y' * 900}->a)"},
        {"max_forks": "y" * 300},
        "y" * 5_000_000,
    ],
    ids=["value", "key", "many", "branch", "nested", "regex", "group", "number", "json"],
)
def test_an_error_repeats_at_most_200_characters_of_its_input(value):
    with pytest.raises(BadRequestOptions) as caught:
        parse_options(value)
    assert str(caught.value).count("y") <= 200
    assert len(str(caught.value)) < 1500


def test_a_request_may_name_the_servers_own_pruning_policy_only_where_it_has_one():
    options = parse_options({"best_of": 2, "vote": "x", "prune": "own"})
    options.check_pruning("mine.Policy")
    with pytest.raises(BadRequestOptions, match=r"forkjoin\.prune: expected a server with a --prune-policy"):
        options.check_pruning(None)
    parse_options({"best_of": 2, "vote": "x", "prune": "memory"}).check_pruning(None)
