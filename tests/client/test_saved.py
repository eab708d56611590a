"""Answers in files, as lanes and as figures."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import httpx
import pytest

from forkjoin import Answer, Client, ForkJoinError
from forkjoin.lanes import ANSWER, Lanes
from forkjoin.saved import as_completion, read_saved
from forkjoin.terminal import commands, trace
from forkjoin.terminal.drawing import DARK, LIGHT, draw
from tests.client.test_lanes import after
from tests.client.test_reading import announced, chunk, ended


def thread(index, content, tokens, title="", parent="root"):
    usage = {"completion_tokens": tokens}
    return {
        "index": index,
        "id": f"t{index}",
        "parent_id": parent,
        "title": title,
        "content": content,
        "finish_reason": "stop",
        "usage": usage,
    }


def completion(content, threads, own, critical):
    total = own + sum(t["usage"]["completion_tokens"] for t in threads)
    counts = {"num_threads": len(threads), "critical_path_tokens": critical, "total_tokens": total}
    message = {"role": "assistant", "content": content, "threads": threads}
    return {
        "id": "c",
        "object": "chat.completion",
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": total,
            "total_tokens": total + 1,
            "forkjoin": counts,
        },
    }


#: 20 characters of the answer's own, a fifth of them before its first fork, half between its forks.
TWO_FORKS = completion(
    "1: X" + "left" + "right" + "outline: Y" + "again" + "theend",
    [thread(0, "left", 5, "L"), thread(1, "right", 7, "R"), thread(2, "again", 3, "Y")],
    own=20,
    critical=30,
)
NESTED = completion(
    "before" + "ab-inner-cd" + "after",
    [thread(0, "ab-inner-cd", 4), thread(1, "-inner-", 6, parent="t0")],
    own=11,
    critical=21,
)


def spans(lanes):
    return {lane.index: (round(lane.start, 3), round(lane.end, 3)) for lane in lanes.in_order()}


def test_lanes_over_steps_start_where_their_text_does_and_end_with_the_critical_path():
    saved = read_saved(json.dumps(TWO_FORKS))
    assert saved.unit == "steps"
    assert [split.threads for split in saved.lanes.answer.splits] == [[0, 1], [2]]
    assert spans(saved.lanes) == {ANSWER: (0, 30), 0: (4, 9), 1: (4, 11), 2: (21, 24)}


def test_a_nested_thread_starts_within_its_parent():
    saved = read_saved(json.dumps(NESTED))
    assert spans(saved.lanes) == {ANSWER: (0, 21), 0: (6, 16), 1: (8, 14)}
    assert saved.lanes[1].depth == 2


def test_a_thread_whose_text_the_transcript_lacks_stands_somewhere_within_it():
    lost = completion("abc", [thread(0, "elsewhere", 5), thread(1, "", 2)], own=4, critical=9)
    saved = read_saved(json.dumps(lost))
    assert spans(saved.lanes) == {ANSWER: (0, 9), 0: (2, 7), 1: (2, 4)}


def test_a_stream_as_it_came_says_which_threads_started_together():
    chunks = [
        chunk(threads=announced(0)),
        chunk(threads=announced(1)),
        chunk(threads=[ended(0), ended(1)]),
        chunk(finish_reason="stop"),
    ]
    text = "".join(f"data: {json.dumps(c)}\n\n" for c in chunks) + "data: [DONE]"
    saved = read_saved(text)
    assert [split.threads for split in saved.lanes.answer.splits] == [[0], [1]]


def test_a_response_has_the_same_lanes_as_a_chat():
    message = TWO_FORKS["choices"][0]["message"]
    items = [
        {
            "type": "reasoning",
            "id": t["id"],
            "thread": t,
            "content": [{"type": "reasoning_text", "text": t["content"]}],
        }
        for t in message["threads"]
    ]
    own = {"type": "message", "content": [{"type": "output_text", "text": message["content"]}]}
    usage = {"input_tokens": 1, "output_tokens": 35, "total_tokens": 36}
    response = {
        "object": "response",
        "id": "resp_1",
        "status": "completed",
        "output": [own, *items],
        "usage": usage,
    }
    assert spans(read_saved(json.dumps(response)).lanes) == spans(read_saved(json.dumps(TWO_FORKS)).lanes)


def test_what_a_chat_saves_comes_back_with_its_times():
    answer, lanes = Answer.of(TWO_FORKS), after()
    saved = read_saved(json.dumps(as_completion(answer, lanes)))
    assert saved.answer == answer
    assert saved.unit == "s"
    without_text = [lane.model_copy(update={"text": ""}) for lane in lanes.in_order()]
    assert list(saved.lanes.in_order()) == without_text


def saved_with(change):
    """What a chat saves, with its lanes changed."""
    saved = as_completion(Answer.of(TWO_FORKS), after())
    change(saved["lanes"])
    return json.dumps(saved)


ITSELF = {"start": 1, "end": 2, "threads": [0]}
CHAIN = [thread(i, "x", 1, parent=f"t{i - 1}" if i else "root") for i in range(2000)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no json", "expected a chat completion, a response or a stream"),
        ("[]", "expected a chat completion"),
        ('{"choices": []}', "expected a chat completion"),
        ('{"object": "response"}', "expected a chat completion"),
        (json.dumps(completion("x", [], 1, 1)), "expected an answer with threads, got one without"),
        (json.dumps(TWO_FORKS | {"lanes": []}), "expected those of the answer"),
        (json.dumps(TWO_FORKS | {"lanes": [{"index": "x"}]}), "valid integer"),
        (saved_with(lambda lanes: lanes[1]["splits"].append(ITSELF)), "one deeper than who forked it"),
        (saved_with(lambda lanes: lanes[1].update(end=float("inf"))), r"1\.end: Input should be less"),
        (saved_with(lambda lanes: lanes[1].update(start=float("nan"))), r"1\.start: Input should be less"),
        (
            saved_with(lambda lanes: lanes[0]["splits"][0].update(end=1e308)),
            r"0\.splits\.0\.end: Input should be less",
        ),
        (json.dumps(completion("x", [thread(0, "x", 1), thread(0, "y", 1)], 1, 1)), "of different ids"),
        (json.dumps(completion("x", [thread(0, "x", 1) | {"id": "root"}], 1, 1)), "none of them 'root'"),
        (json.dumps(completion("x", [thread(-1, "x", 1)], 1, 1)), "lanes: expected those of the answer"),
        (json.dumps(completion("x", [thread(0, "x", 10**400)], 1, 1)), "less than or equal to"),
        (json.dumps(completion("x", CHAIN, 1, 1)), "some levels deep"),
        ("[" * 100_000, "it nests too deep"),
        ("data: " + "[" * 100_000, "expected JSON in the stream"),
        ("data: x\n\n", "expected JSON in the stream"),
        (f"data: {json.dumps(chunk(content='x'))}\n\n", "expected a finish_reason"),
    ],
)
def test_what_can_not_be_drawn_is_refused_with_a_sentence(text, message):
    with pytest.raises(ForkJoinError, match=message):
        read_saved(text)


# ---- figures, and the command --------------------------------------------------------------


def test_a_figure_shows_each_lane_by_its_name_and_is_the_same_file_each_time(tmp_path):
    for theme, ground in ((LIGHT, "#ffffff"), (DARK, "#0d1117")):
        drawn = []
        for name in ("a.svg", "b.svg"):
            draw(after(), "s", tmp_path / name, theme, "A $title$")
            drawn.append((tmp_path / name).read_text())
        assert drawn[0] == drawn[1]
        assert ground in drawn[0]
        for text in ("answer", "T0", "T3", "seconds", "10 tokens, length", "A $title$"):
            assert f">{text}</text>" in drawn[0], text


def test_what_a_file_says_makes_no_invalid_figure(tmp_path):
    (tmp_path / "x.json").write_text(saved_with(lambda lanes: lanes[1].update(finish_reason="a\x1b\x00b")))
    commands.main(["trace", f"{tmp_path}/x.json", "--svg", f"{tmp_path}/x.svg", "--title", "c\x1bd"])
    texts = {node.text for node in ElementTree.parse(tmp_path / "x.svg").iter() if node.text}
    assert {"10 tokens, a��b", "c�d"} <= texts


def test_what_a_file_says_is_no_order_to_the_terminal(tmp_path, capsys):
    chunk = {"error": {"message": "a\x1b]0;b\x07"}}
    (tmp_path / "x").write_text(f"data: {json.dumps(chunk)}\n\n")
    with pytest.raises(SystemExit, match="1"):
        commands.main(["trace", f"{tmp_path}/x"])
    assert "a�]0;b�" in capsys.readouterr().err


def test_a_picture_is_drawn_too(tmp_path):
    draw(read_saved(json.dumps(NESTED)).lanes, "steps", tmp_path / "a.png", LIGHT)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_shows_a_file_and_draws_it(tmp_path, capsys):
    (tmp_path / "x.json").write_text(json.dumps(TWO_FORKS))
    commands.main(["trace", f"{tmp_path}/x.json", "--svg", f"{tmp_path}/x.svg", "--dark"])
    said = capsys.readouterr().out
    assert "┣" in said
    assert "30 steps" in said
    assert "3 threads · 35 tokens in 30 steps" in said
    assert (tmp_path / "x.svg").exists()


def test_a_stored_response_is_fetched_by_its_id(capsys):
    asked = []

    def answer(request):
        asked.append(str(request.url))
        return httpx.Response(200, json=NESTED)

    trace.run(
        "resp_1",
        lambda: Client("http://s", http=httpx.Client(transport=httpx.MockTransport(answer))),
        [],
        is_dark=False,
        title="",
    )
    assert asked == ["http://s/v1/responses/resp_1"]
    assert "2 threads" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nowhere.json"], "expected a file, or the id of a stored response"),
        (["x", "--svg", "x.png"], r"--svg: expected a file that ends in \.svg, got x\.png"),
        ([__file__], "expected a chat completion"),
    ],
)
def test_a_trace_that_can_not_be_says_why(argv, message, capsys):
    with pytest.raises(SystemExit, match="1"):
        commands.main(["trace", *argv])
    assert re.search(message, capsys.readouterr().err)


def test_a_figure_that_can_not_be_written_says_why(tmp_path):
    with pytest.raises(ForkJoinError, match=r"could not write .*No such file"):
        draw(Lanes.of(after().in_order()), "s", tmp_path / "no" / "a.svg", LIGHT)
