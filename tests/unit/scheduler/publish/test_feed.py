from __future__ import annotations

import pytest

from forkjoin_scheduler.publish.events import Forked, InternalError, Joined
from forkjoin_scheduler.publish.feed import Feeds, key_in, new_key, without_key

OTHER, LATER = "fj" + "0" * 32, "fj" + "1" * 32


def test_a_key_is_found_in_the_ids_that_vllm_makes_of_it():
    key = new_key()
    for request_id in (key, f"chatcmpl-mine-{key}", f"cmpl-{key}-0-1a2b3c4d", f"resp_{key}_1"):
        assert key_in(request_id) == key


def test_an_id_without_a_key_has_none():
    assert key_in("chatcmpl-mine") is None


@pytest.mark.parametrize("given", [f"chatcmpl-{OTHER}", f"resp_{OTHER}_{OTHER}", "fj0", "fjfj"])
def test_of_several_keys_the_last_is_ours_for_the_client_gave_the_others(given):
    key = new_key()
    for joint in "-_":
        assert key_in(f"chatcmpl-{given}{joint}{key}-0") == key


def test_events_go_to_the_feed_of_their_request_and_to_all_observers():
    feeds, seen = Feeds(), []
    feeds.observers.append(lambda event, engine: seen.append((event.kind, engine)))
    mine, other = feeds.subscribe(new_key()), feeds.subscribe(OTHER)
    key = next(k for k in feeds._queues if k != OTHER)
    feeds.publish(f"chatcmpl-{OTHER}-{key}", [Forked(parent_index=-1, threads=[], shared_tokens=0)], 1)
    feeds.publish(None, [Joined(parent_index=-1, prefilled_tokens=0)], 0)
    assert mine.get_nowait() == Forked(parent_index=-1, threads=[], shared_tokens=0)
    assert mine.empty()
    assert other.empty()
    assert seen == [("forked", 1), ("joined", 0)]


def test_events_of_a_response_in_the_background_go_to_its_own_feed():
    """vLLM numbers its turns behind the id that its client chose, which may be that of another's turn."""
    feeds, event = Feeds(), Joined(parent_index=-1, prefilled_tokens=0)
    job, other = feeds.subscribe("job"), feeds.subscribe("job_0")
    feeds.publish("job_0", [event], 0)
    assert (job.qsize(), other.qsize()) == (1, 0)
    feeds.publish("job_0_0", [event], 0)
    assert (job.qsize(), other.qsize()) == (1, 1)


@pytest.mark.parametrize(
    ("given", "known"),
    [
        (f"chatcmpl-abc-{OTHER}", "chatcmpl-abc"),
        (f"cmpl-abc-{OTHER}-1", "cmpl-abc-1"),
        (f"{LATER}_again-{OTHER}", f"{LATER}_again"),
        (f"mine_{OTHER}", "mine"),
        (f"cmpl-{OTHER}-0", f"cmpl-{OTHER}-0"),
        ("chatcmpl-abc", "chatcmpl-abc"),
    ],
)
def test_an_id_without_our_key_is_the_one_that_the_client_gave(given, known):
    assert without_key(given) == known


def test_an_error_of_one_observer_is_counted_and_keeps_events_from_nobody():
    feeds, seen = Feeds(), []

    def broken(event, engine):
        raise KeyError("broken")

    feeds.observers += [broken, lambda event, engine: seen.append((event, engine))]
    key = new_key()
    queue = feeds.subscribe(key)
    feeds.publish(
        f"chatcmpl-{key}",
        [Forked(parent_index=-1, threads=[], shared_tokens=0), Joined(parent_index=-1, prefilled_tokens=0)],
        1,
    )
    assert [queue.get_nowait().kind for _ in range(2)] == ["forked", "joined"]
    assert [event.kind for event, _ in seen] == ["internal_error", "forked", "internal_error", "joined"]
    assert seen[0] == (InternalError(where="observer"), None)
    assert seen[1][1] == 1


def test_who_listens_to_a_request_hears_of_each_of_its_answers_while_it_listens():
    feeds, heard = Feeds(), []
    event = Joined(parent_index=-1, prefilled_tokens=0)
    with feeds.listening("r", lambda answer, events: heard.append((answer, events))):
        feeds.emit("r", 1, [event])
        feeds.emit("r-1", 0, [event])
    feeds.emit("r", 0, [event])
    assert heard == [(1, [event])]
