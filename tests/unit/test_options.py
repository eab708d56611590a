from __future__ import annotations

import pytest

from forkjoin_scheduler.dialect import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.options import parse_options


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
