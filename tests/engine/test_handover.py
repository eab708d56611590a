"""New threads on their way to workers in other processes: what is read there is what was scheduled."""

from __future__ import annotations

import pickle
from copy import copy, deepcopy

import pytest
from vllm.v1.core.sched.output import NewRequestData

from forkjoin_bench.inputs.dialects import dialect_with
from forkjoin_scheduler.vllm_seam.threads.handover import Begun, Start
from tests.engine.fed import Scripted

pytestmark = pytest.mark.engine

PROMPT_TOKENS, WIDTH = 2000, 6


def _new(token_ids, prefill=None):
    new = NewRequestData("r", token_ids, [], None, None, ([1],), 0, None, prefill_token_ids=prefill)
    new.__class__ = Begun
    return new


def _with_start(token_ids, start, prefill=None):
    new = _new(token_ids, prefill)
    new.start = start
    return new


def _read(*requests):
    return pickle.loads(pickle.dumps(requests, protocol=pickle.HIGHEST_PROTOCOL))


def _sent(join, *, is_v2):
    """Each step of a family that forks after a long prompt: its new requests, and their pickle."""
    hand = Scripted(dialect=dialect_with(join), num_blocks=2000)
    hand.scheduler.use_v2_model_runner = is_v2
    hand.add("f", 2, hand.author.fork([6] * WIDTH), 4, prompt=hand.author.text(PROMPT_TOKENS))
    schedule, sent = hand.scheduler.schedule, []

    def schedule_and_send(*args):
        output = schedule(*args)
        sent.append((deepcopy(list(map(vars, output.scheduled_new_reqs))), pickle.dumps(output)))
        return output

    hand.scheduler.schedule = schedule_and_send
    hand.drain()
    return sent


@pytest.mark.parametrize("is_v2", [False, True], ids=["V1", "V2"])
@pytest.mark.parametrize("join", ["reprefill", "stitch"])
def test_workers_in_other_processes_read_what_was_scheduled(join, is_v2):
    size_of_prompt = len(pickle.dumps(list(range(256, 256 + PROMPT_TOKENS))))
    num_threads = 0
    for scheduled, pickled in _sent(join, is_v2=is_v2):
        read = pickle.loads(pickled).scheduled_new_reqs
        assert [type(new) for new in read] == [NewRequestData] * len(scheduled)
        assert [vars(new) for new in read] == [
            {k: v for k, v in s.items() if k != "start"} for s in scheduled
        ]
        lists = [new.prompt_token_ids for new in read]
        assert {type(token_ids) for token_ids in lists} <= {list}
        assert len(set(map(id, lists))) == len(lists)
        if len(read) > 1:
            num_threads += len(read)
            assert len(pickled) < 2 * size_of_prompt
    assert num_threads == (2 * WIDTH if join == "stitch" else WIDTH)  # the threads, and what closes them


def test_a_request_that_begins_with_other_tokens_is_read_as_it_is():
    start = Start([1, 2, 3, 4], 3)
    first, other, short = (
        _with_start([1, 2, 3, 4], start),
        _with_start([1, 9, 3, 5], start),
        _with_start([1, 2], start),
    )
    assert [r.prompt_token_ids for r in _read(first, other, short)] == [[1, 2, 3, 4], [1, 9, 3, 5], [1, 2]]


def test_tokens_that_were_written_since_are_read_beside_the_prompt():
    start = Start([1, 2, 3], 2)
    (read,) = _read(_with_start([1, 2, 3], start, [1, 2, 3, 7]))
    assert (read.prompt_token_ids, read.prefill_token_ids) == ([1, 2, 3], [1, 2, 3, 7])


def test_a_copy_has_the_list_itself():
    new = _with_start([1, 2, 3], Start([1, 2, 3], 2))
    assert copy(new).prompt_token_ids is new.prompt_token_ids
    assert deepcopy(new).prompt_token_ids == [1, 2, 3]
    assert _read(copy(new))[0].prompt_token_ids == [1, 2, 3]


def test_what_is_shared_is_written_once():
    start = Start(list(range(1000, 3000)), 2000)
    one, many = (
        len(pickle.dumps([_with_start([*range(1000, 3000), i], start) for i in range(num)]))
        for num in (1, 50)
    )
    assert many < 2 * one


def test_a_request_without_a_start_is_read_as_it_is():
    (read,) = _read(_new([5, 6], [5, 6]))
    assert type(read) is NewRequestData
    assert vars(read) == vars(
        NewRequestData("r", [5, 6], [], None, None, ([1],), 0, None, prefill_token_ids=[5, 6])
    )
