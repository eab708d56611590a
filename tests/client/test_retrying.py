from __future__ import annotations

import pytest

from forkjoin.retrying import Retries, retry_after_s

#: Sun, 06 Nov 1994 08:49:37 GMT, RFC 9110's own example.
NOW = 784111777.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12", 12.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("Sun, 06 Nov 1994 08:50:07 GMT", 30.0),
        ("Sun, 06 Nov 1994 09:50:07 +0100", 30.0),
        ("Sun, 06 Nov 1994 08:50:07 -0000", 30.0),
        ("Sun, 06 Nov 1994 08:00:00 GMT", 0.0),
        ("Sun, 06 Nov 99999999999999999999 08:49:37 GMT", None),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text, seconds):
    assert retry_after_s({"retry-after": text}, NOW) == seconds


@pytest.mark.parametrize(
    ("num_retries", "chance", "wait"), [(0, 0, 0.25), (0, 1, 0.5), (1, 1, 1.0), (3, 0, 2.0), (9, 1, 8.0)]
)
def test_waits_double_up_to_a_cap_and_spread_over_a_half(num_retries, chance, wait):
    assert Retries(max_retries=10).wait_s(num_retries, 503, None, chance) == wait


def test_what_the_server_asks_for_is_waited_and_a_little_more():
    assert [Retries().wait_s(0, 429, 7.0, chance) for chance in (0, 1)] == [7.0, 7.5]


@pytest.mark.parametrize(
    ("num_retries", "status", "retry_after"),
    [(2, 503, None), (0, 400, None), (0, 401, 1.0), (0, 500, None), (0, 429, 61.0)],
    ids=["often_enough", "wrong", "no_key", "failed", "asks_for_too_much"],
)
def test_it_gives_up_where_asking_again_does_not_help(num_retries, status, retry_after):
    assert Retries().wait_s(num_retries, status, retry_after, 0) is None


def test_a_lost_connection_is_tried_again():
    assert Retries().wait_s(0, None, None, 1) == 0.5
