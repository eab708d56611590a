"""The pure part of the client: chunks in, events out, the tree rebuilt."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkjoin import (
    Answer,
    AnswerDelta,
    AnswerReader,
    Finished,
    Forked,
    Joined,
    SegmentEnded,
    StreamBroken,
    ThreadDelta,
    ThreadEnded,
    ThreadWaits,
    Tree,
)
from forkjoin_server.answer.threads import ThreadLog


def chunk(finish_reason=None, **delta):
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return {"id": "c", "model": "m", "object": "chat.completion.chunk", "created": 1, "choices": [choice]}


def announced(*indices, parent="root"):
    return [
        {"index": i, "id": f"t{i}", "parent_id": parent, "title": f"T{i}", "content": ""} for i in indices
    ]


def ended(index, reason="stop", tokens=3):
    return {"index": index, "finish_reason": reason, "usage": {"completion_tokens": tokens}}


def read(*chunks):
    """All events of ``chunks``, and the reader."""
    reader = AnswerReader()
    return [event for c in chunks for event in reader.feed(c)], reader


def kinds(events):
    return [type(event).__name__ for event in events]


def test_a_fork_its_threads_and_its_join_are_told_in_their_order():
    events, reader = read(
        chunk(role="assistant", content=""),
        chunk(content="I fork. "),
        chunk(threads=announced(0, 1)),
        chunk(threads=[{"index": 1, "content": "b"}]),
        chunk(threads=[ended(1)]),
        chunk(threads=[ended(0)]),
        chunk(content="done", finish_reason="stop"),
    )
    assert kinds(events) == ["AnswerDelta", "Forked", "ThreadDelta", "ThreadEnded", "ThreadEnded", "Joined", "AnswerDelta"]  # fmt: skip
    assert [t.title for t in events[1].threads] == ["T0", "T1"]
    assert events[2] == ThreadDelta(index=1, text="b")
    assert events[3] == ThreadEnded(index=1, finish_reason="stop", completion_tokens=3)
    assert events[5] == Joined(parent_id="root", threads=(0, 1))
    assert reader.end() == Finished(answer=reader.answer)
    assert (reader.answer.content, reader.answer.finish_reason) == ("I fork. done", "stop")


def test_a_nested_fork_joins_into_the_thread_that_forked():
    events, reader = read(
        chunk(threads=announced(0, 1)),
        chunk(threads=announced(2, 3, parent="t1")),
        chunk(threads=[ended(2), ended(3)]),
    )
    assert events[1].parent_id == "t1"
    assert events[-1] == Joined(parent_id="t1", threads=(2, 3))
    assert [t.index for t in reader.answer.children("t1")] == [2, 3]
    assert [(depth, t.index) for depth, t in reader.answer.walk()] == [(0, 0), (0, 1), (1, 2), (1, 3)]


def test_a_thread_waits_for_what_the_server_says_until_it_runs():
    waits = [{"index": 1, "waits_for": {"type": wait}} for wait in ("wave", "new to us", "nothing")]
    events, reader = read(
        chunk(threads=announced(0, 1)),
        *(chunk(threads=[entry]) for entry in waits),
        chunk(threads=[ended(1)]),
    )
    assert [e.waits_for for e in events if isinstance(e, ThreadWaits)] == ["wave", "new to us", None]
    assert "waits_for" not in reader.answer.threads[1].model_dump(), "it is over when the answer is"


@pytest.mark.parametrize(
    ("last", "joins"),
    [(chunk(content="more"), True), (chunk(finish_reason="length"), False)],
    ids=["the_parent_goes_on", "the_answer_ends"],
)
def test_threads_that_a_limit_ended_join_only_if_the_answer_goes_on(last, joins):
    events, _ = read(chunk(threads=announced(0)), chunk(threads=[ended(0, "length")]), last)
    assert ("Joined" in kinds(events)) is joins


def test_two_forks_in_one_chunk_join_each_by_itself():
    both = [*announced(0, parent="root"), *announced(1, parent="t0")]
    events, _ = read(chunk(threads=both), chunk(threads=[ended(1)]), chunk(threads=[ended(0)]))
    assert [e.threads for e in events if isinstance(e, Joined)] == [(1,), (0,)]


def test_the_usage_behind_the_end_is_part_of_the_answer():
    counts = {
        "num_threads": 2,
        "critical_path_tokens": 5,
        "total_tokens": 8,
        "given_tokens": 3,
        "vote": {"index": 1, "result": "7"},
        "kept": {"tokens": 32, "seconds": 60.0, "refused": None},
        "continued": "expired",
    }
    usage = {"prompt_tokens": 1, "completion_tokens": 8, "total_tokens": 9, "forkjoin": counts}
    _, reader = read(chunk(finish_reason="stop"), chunk() | {"choices": [], "usage": usage})
    answer = reader.end().answer
    assert answer.usage.model_dump() == usage
    assert (answer.usage.forkjoin.kept.tokens, answer.usage.forkjoin.continued) == (32, "expired")


def test_reasoning_and_tool_calls_are_put_together():
    calls = [
        {"index": 0, "id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "id": "y", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]
    events, reader = read(chunk(reasoning="hm"), *(chunk(tool_calls=[call]) for call in calls))
    assert reader.answer.reasoning == "hm"
    assert events[0] == AnswerDelta(reasoning="hm")
    assert reader.answer.tool_calls == [
        {"id": "x", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
        {"id": "y", "type": "function", "function": {"name": "g", "arguments": ""}},
    ]


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ([chunk(threads=announced(1))], "expected thread 0 to start next, got 1"),
        ([chunk(threads=[{"index": 0, "content": "x"}])], "expected thread 0 to start before it writes"),
        ([chunk(threads=[{"index": -1, "content": "x"}])], "expected thread -1 to start"),
        (
            [chunk(threads=announced(0)), chunk(threads=[ended(0)]), chunk(threads=[ended(0)])],
            "expected nothing of thread 0 after its end",
        ),
        ([{"choices": [{"index": 1, "delta": {}}]}], "expected one choice, got choice 1: ask with n = 1"),
        ([{"choices": 3}], "got one where choices: Input should be a valid list"),
        (["text"], "expected a chunk of a chat completion"),
        ([{"error": {"message": "out of luck", "code": 500}}], "an error of the server's: out of luck"),
        ([chunk(tool_calls=[{"index": 2}])], "expected tool call 0 to start next, got 2"),
        ([chunk(tool_calls=[{"index": "0"}])], "expected a part of a tool call"),
        ([chunk(tool_calls=[{"function": "f"}])], "expected a part of a tool call"),
        ([chunk(tool_calls=[{"function": {"arguments": {"a": 1}}}])], "expected a part of a tool call"),
        ([chunk(threads=[announced(0)[0] | {"title": None}])], "title: Input should be a valid string"),
        ([chunk(threads=announced(0, parent="t9"))], "one that has started, got 't0' of 't9'"),
        ([chunk(threads=announced(0, parent="t0"))], "one that has started, got 't0' of 't0'"),
        ([chunk(threads=[announced(0)[0] | {"id": "root"}])], "one that has started, got 'root' of 'root'"),
        (
            [chunk(threads=[announced(0)[0], announced(1)[0] | {"id": "t0"}])],
            "one that has started, got 't0' of 'root'",
        ),
    ],
)
def test_what_no_answer_has_breaks_the_stream_with_a_sentence(chunks, message):
    with pytest.raises(StreamBroken, match=message):
        read(*chunks)


@pytest.mark.parametrize("name", ["model_config", "__class__", "model_dump", "new"])
def test_what_a_later_server_says_of_a_thread_is_kept_whatever_its_name(name):
    _, reader = read(chunk(threads=announced(0)), chunk(threads=[{"index": 0, name: {"a": [1]}}]))
    assert reader.answer.threads[0].model_dump()[name] == {"a": [1]}


def test_an_answer_without_an_end_is_not_finished():
    _, reader = read(chunk(content="half"))
    with pytest.raises(StreamBroken, match="expected a finish_reason"):
        reader.end()


def test_events_can_not_be_changed_and_dump_to_json():
    (event,), _ = read(chunk(content="x"))
    with pytest.raises(ValueError, match="frozen"):
        event.text = "y"
    assert event.model_dump(exclude_defaults=True) == {"text": "x"}
    assert event.model_dump()["type"] == "answer_delta"


# ---- against the server's own log: what it would send, and what it says when nothing is streamed


def _family(seed):
    """The events of a random family, as the engine publishes them."""
    chance = random.Random(seed)
    running: dict[int, int] = {-1: 0}  # thread -> its running threads
    parent_of: dict[int, int] = {}
    num = 0
    for _ in range(chance.randrange(40)):
        index = chance.choice(list(running))
        act = chance.randrange(3)
        if act == 0 and running[index] == 0 and num < 20:
            children = [
                {"index": num + i, "number": str(i), "title": chance.choice(["", "é x"])}
                for i in range(chance.randrange(1, 4))
            ]
            num += len(children)
            running |= {c["index"]: 0 for c in children}
            parent_of |= {c["index"]: index for c in children}
            running[index] = len(children)
            yield {"type": "forked", "parent_index": index, "threads": children}
        elif act == 1 and index >= 0:
            yield {"type": "tokens", "index": index, "text": chance.choice(["", "a", "\u2028", "{é}"])}
        elif act == 2 and index >= 0 and running[index] == 0:
            del running[index]
            running[parent_of[index]] -= 1
            reason = chance.choice(["stop", "eos", "length", "cut", "pruned"])
            yield {
                "type": "thread_ended",
                "index": index,
                "reason": reason,
                "num_tokens": chance.randrange(9),
            }


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_events_rebuild_exactly_the_threads_of_an_answer_that_is_not_streamed(seed):
    chance = random.Random(~seed)
    log, reader, events = ThreadLog("k"), AnswerReader(), []
    for event in _family(seed):
        if entries := log.delta(event):
            events += reader.feed(chunk(threads=entries))
        if chance.random() < 0.2:
            events += reader.feed(chunk(content="t"))
    if cut := log.cut_open():
        events += reader.feed(chunk(threads=cut))
    events += [*reader.feed(chunk(finish_reason="stop")), reader.end()]

    assert [t.model_dump(exclude_unset=True) for t in reader.answer.threads] == log.threads
    assert rebuilt(events) == log.threads
    assert Answer.model_validate_json(reader.answer.model_dump_json()) == reader.answer


def rebuilt(events):
    """The threads as a program puts them together that only looks at events."""
    threads: list[dict] = []
    parents_with_open_forks = []
    for event in events:
        match event:
            case Forked(parent_id=parent, threads=started):
                threads += [t.model_dump() | {"content": ""} for t in started]
                parents_with_open_forks.append(parent)
            case ThreadDelta(index=index, text=text):
                threads[index]["content"] += text
            case ThreadEnded(index=index, finish_reason=reason, completion_tokens=num):
                threads[index] |= {"finish_reason": reason, "usage": {"completion_tokens": num}}
            case Joined(parent_id=parent, threads=indices):
                assert all(
                    "finish_reason" in threads[i] and threads[i]["parent_id"] == parent for i in indices
                )
                parents_with_open_forks.remove(parent)
    return threads


TREE = {"segments": [], "answer_ids": [7], "voted": None}


def test_the_tree_comes_with_the_chunk_that_ends_the_answer():
    last = chunk(finish_reason="stop")
    last["choices"][0]["tree"] = TREE
    _, reader = read(chunk(content="a"), last)
    assert reader.answer.tree == Tree([], [7])
    whole = {"choices": [{"message": {"content": "a"}, "finish_reason": "stop", "tree": TREE}]}
    assert Answer.of(whole).tree == Tree([], [7])
    assert Answer.of({"choices": [{"message": {}}]}).tree is None


def _segment(number, thread=-1, **fields):
    segment = {"thread": thread, "token_ids": [number], "num_injected": 0, "position": 0, **fields}
    told = chunk()
    told["choices"][0]["segments"] = [{"number": number, "segment": segment}]
    return told


def test_segments_that_were_sent_as_they_ended_are_put_into_the_tree():
    last = chunk("stop", content="a")
    rest = [None, _segment(1)["choices"][0]["segments"][0]["segment"], None]
    last["choices"][0]["tree"] = TREE | {"segments": rest}
    events, reader = read(chunk(content="b"), _segment(2, 0), _segment(0), last)
    assert [event.number for event in events if isinstance(event, SegmentEnded)] == [2, 0]
    assert [segment.token_ids for segment in reader.answer.tree.segments] == [[0], [1], [2]]


def test_a_tree_that_lacks_a_segment_is_a_broken_stream():
    last = chunk("stop", content="a")
    last["choices"][0]["tree"] = TREE | {"segments": [None, None]}
    with pytest.raises(StreamBroken, match="expected segment 1 of the tree: an event is missing"):
        read(_segment(0), last)


def test_a_tree_that_is_none_is_no_chunk_of_an_answer():
    broken = chunk(finish_reason="stop")
    broken["choices"][0]["tree"] = TREE | {"segments": [{"thread": "x"}]}
    with pytest.raises(StreamBroken, match="tree"):
        read(broken)
