"""What waits to be written of a stream: in pieces, and never so much in a turn that nothing else gets one."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.output_processor import RequestOutputCollector

from forkjoin_scheduler.vllm_seam.front_end import collector
from forkjoin_scheduler.vllm_seam.front_end.collector import PIECE_TOKENS, PieceCollector

NUM_TOKENS = 10 * PIECE_TOKENS + 3


def _output(token_id, *, has_logprobs=True, index=0):
    is_last = token_id == NUM_TOKENS - 1
    completion = CompletionOutput(
        index,
        text=chr(token_id),
        token_ids=[token_id],
        cumulative_logprob=None,
        logprobs=[{token_id: Logprob(-1.0)}] if has_logprobs else None,
        finish_reason="stop" if is_last else None,
    )
    return RequestOutput("a", None, None, None, [completion], finished=is_last)


def _filled(kind=RequestOutputKind.DELTA, make=PieceCollector, **more):
    stream = make(kind, "a")
    for token_id in range(NUM_TOKENS):
        stream.put(_output(token_id, **more))
    return stream


async def _generate(stream):
    """As AsyncLLM.generate takes outputs."""
    is_finished = False
    while not is_finished:
        output = stream.get_nowait() or await stream.get()
        is_finished = output.finished
        yield output


async def _taken(stream):
    return [output async for output in _generate(stream)]


def test_all_is_handed_out_once_and_in_its_order():
    outputs = asyncio.run(_taken(_filled()))
    completions = [output.outputs[0] for output in outputs]
    assert [i for c in completions for i in c.token_ids] == list(range(NUM_TOKENS))
    assert [i for c in completions for row in c.logprobs for i in row] == list(range(NUM_TOKENS))
    assert "".join(c.text for c in completions) == "".join(map(chr, range(NUM_TOKENS)))
    assert [len(c.token_ids) for c in completions] == [PIECE_TOKENS] * 10 + [3]
    assert [c.finish_reason for c in completions] == [None] * 10 + ["stop"]


@pytest.mark.parametrize(
    ("kind", "has_logprobs"), [(RequestOutputKind.DELTA, False), (RequestOutputKind.FINAL_ONLY, True)]
)
def test_what_takes_no_time_to_write_is_merged_as_vllm_merges_it(kind, has_logprobs):
    ours, vllms = (
        asyncio.run(_taken(_filled(kind, make, has_logprobs=has_logprobs)))
        for make in (PieceCollector, RequestOutputCollector)
    )
    assert [o.outputs for o in ours] == [o.outputs for o in vllms]
    assert len(ours) == 1


@pytest.mark.parametrize(("turn_s", "num_a_turn"), [(0, 1), (60, 30)])
def test_of_all_streams_only_so_many_write_in_a_turn_of_the_loop(monkeypatch, turn_s, num_a_turn):
    monkeypatch.setattr(collector, "TURN_S", turn_s)
    turns, written_at = 0, []

    async def tick():
        nonlocal turns
        while len(written_at) < 3 * 11:
            turns += 1
            await asyncio.sleep(0)

    async def write(stream):
        async for output in _generate(stream):
            written_at.append((turns, len(output.outputs[0].token_ids)))

    async def run():
        await asyncio.gather(tick(), *(write(_filled()) for _ in range(3)))

    asyncio.run(run())
    pieces = [turn for turn, num in written_at if num == PIECE_TOKENS]
    assert len(pieces) == 30
    assert max(Counter(pieces).values()) == num_a_turn


def test_a_stream_whose_client_is_gone_ends_with_the_turn_in_which_it_writes(monkeypatch):
    monkeypatch.setattr(collector, "TURN_S", 0)
    written = []

    async def write(stream):
        async for output in _generate(stream):
            written.append(output)  # and no connection holds it up

    async def run():
        task = asyncio.create_task(write(_filled()))
        while not written:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(run())
    assert len(written) <= 2


def test_an_error_goes_before_what_is_kept():
    stream = _filled()
    stream.put(KeyError("a"))
    with pytest.raises(KeyError):
        asyncio.run(_taken(stream))
