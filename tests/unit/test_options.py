from __future__ import annotations

import json

import pytest

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.options import parse_options
from forkjoin_scheduler.settings import UNLIMITED, Settings


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"bogus": 1}, "bogus"),
        ({"max_forks": -1}, "max_forks"),
        ({"enabled": "no"}, "enabled"),
        (3, "object"),
    ],
    ids=["unknown", "range", "type", "no_object"],
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
    assert "Legal keys: enabled, include_threads, max_forks, max_threads_per_fork" in message


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
        parse_options({"max_threads_per_fork": value}).check_caps(caps)
    parse_options({"max_threads_per_fork": 8, "max_forks": 999}).check_caps(caps)


def test_the_operators_limits_are_both_the_default_and_the_cap(dialect):
    settings = Settings.of(dialect, {"max_forks": 3})
    assert settings.limits == dialect.limits.model_copy(update={"max_forks": 3})
    assert settings.caps == UNLIMITED.model_copy(update={"max_forks": 3})
