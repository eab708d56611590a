"""Steps of several tokens, as drafts bring them, on the scheduler without a model.

Whatever lies in the middle of such a step: the answer, the threads and the counts are those of steps of one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.policies import Policy
from tests.engine import renamed

pytestmark = pytest.mark.engine

MODES = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
OUTLINES = "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
NODE = "Moving to Node #0\nCurrent State: 5:[1, 2], Operations: []\n"
CALL = (
    "<Calling Sub Searches>\n<Start Sub Search 0 at level 1> Moving to Node #0\n"
    "<Start Sub Search 1 at level 1> Moving to Node #0\n<End Calling Sub Searches>\n"
)


@dataclass(frozen=True)
class Case:
    """What requests write, by id, and how many threads that starts."""

    dialect: str
    num_threads: int
    writes: dict[str, str]
    params: dict[str, Any] = field(default_factory=dict)
    policies: dict[str, Policy] = field(default_factory=dict)


CASES = {
    "a trigger, ends of threads": Case(
        "threadweaver", 2, {"r": f"xx{OUTLINES}", "r#0": "ab</Thread>", "r#1": "abcd</Thread>"}
    ),
    "a refused fork, then one that is not": Case(
        "threadweaver",
        2,
        {"r": f"x</Outlines>yy{OUTLINES}", "r#0": "a</Thread>", "r#1": "<Outlines>bcd</Thread>"},
    ),
    "a refused fork that ends the request": Case(
        "threadweaver", 0, {"r": "xxyy</Outlines>yy"}, policies={"no_outline": Policy.END_REQUEST}
    ),
    "a thread's limit": Case(
        "threadweaver",
        2,
        {"r": OUTLINES, "r#0": "abcdefgh</Thread>", "r#1": "a</Thread>"},
        params={"forkjoin": {"max_tokens_per_thread": 3}},
    ),
    "a stop token of the request's in a thread": Case(
        "threadweaver",
        2,
        {"r": OUTLINES, "r#0": "ab</Thread>", "r#1": "cyyd</Thread>"},
        params={"stop_token_ids": "yy"},
    ),
    "a limit of the request": Case("threadweaver", 0, {"r": "abcdefghij"}, params={"max_tokens": 4}),
    "a stitched join": Case(
        "multiverse",
        2,
        {
            "r": "x<Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>",
            "r#0": "ab</Path>",
            "r#1": "abcdefg</Path>",
        },
    ),
    "spliced threads, a fork behind a fork": Case(
        "apar",
        2,
        {"r": "1. x[SplitMask]2. y[SplitMask]z", "r#0": "ab<|end|>", "r#1": "abcdefg<|end|>"},
    ),
    "a spliced fork right before the end": Case(
        "apar", 2, {"r": "1. x[SplitMask]2. y[SplitMask]<|end|>", "r#0": "a<|end|>"}
    ),
    "a thread that forks right before its end": Case(
        "apar", 2, {"r": "1. x[SplitMask]y<|end|>", "r#0": "a[SplitMask]<|end|>", "r#1": "bc<|end|>"}
    ),
    "a result asked for as soon as forked": Case(
        "asyncthink",
        1,
        {"r": "x<FORK-1>do</FORK-1><JOIN-1>", "r#0": "a<RETURN>7</RETURN>"},
    ),
    "a question for an unknown thread": Case(
        "asyncthink",
        1,
        {"r": "<JOIN-3>x<FORK-1>do</FORK-1>yyy<JOIN-2>z<JOIN-1>", "r#0": "<RETURN>7</RETURN>"},
    ),
    "the same thread twice": Case(
        "asyncthink",
        1,
        {"r": "<FORK-1>do</FORK-1><FORK-1>do</FORK-1><JOIN-1>", "r#0": "a<RETURN>7</RETURN>"},
    ),
    "a turn that forks at its end": Case(
        "apr", 2, {"r": f"{NODE}{CALL}<|end|>", "r#0": "Goal Reached\n 1 Goal Reached<|end|>"}
    ),
    "a tag that is swapped": Case("apr", 0, {"r": "xx<Sub Searches>"}),
    "an outline": Case("skeleton", 2, {"r": "1. a\n2. b\n<|end|>", "r#0": "abc<|end|>"}),
    "a fork before the first token": Case(
        "threadweaver",
        2,
        {"r#0": "ab<|end|>", "r#1": "abcdefg<|end|>"},
        params={"forkjoin": {"branches": [{"text": "A"}, {"text": "B"}], "closing": "so"}},
    ),
}


def _came_to(model, case, is_async, max_drafts):
    """The answer to a request, what was told of it, and in how many steps it came."""
    from tests.engine.by_hand import END, ByHand

    dialect = load(case.dialect)
    policies = dialect.policies.model_copy(update=case.policies)
    hand = ByHand(
        dialect.model_copy(update={"policies": policies}),
        model,
        is_async=is_async,
        max_drafts=max_drafts,
        filler=END,
    )
    params = dict(case.params)
    if stop := params.pop("stop_token_ids", None):
        params["stop_token_ids"] = hand.tokenizer.encode(stop)
    hand.add("r", "q", **params)
    for request_id, text in case.writes.items():
        hand.say(request_id, text)
    hand.finish()
    told = [
        {k: v for k, v in e.items() if k not in ("shared_tokens", "prefilled_tokens")}
        for kind in ("forked", "refused", "joined", "limited", "family_ended")
        for e in hand.events(kind)
    ]
    told += sorted(hand.events("thread_ended"), key=lambda e: e["index"])
    ends = [o.finish_reason for o in hand.outputs if o.request_id == "r" and o.finish_reason is not None]
    return hand.text("r"), told, ends, hand


@MODES
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_lies_in_a_step_of_several_tokens_comes_to_what_it_does_in_steps_of_one(
    tmp_path_factory, case, is_async
):
    model = renamed.model_for(case.dialect, tmp_path_factory.mktemp)
    *undrafted, _ = _came_to(model, case, is_async, 0)
    *drafted, hand = _came_to(model, case, is_async, 8)
    assert drafted == undrafted
    assert sum(len(e["threads"]) for e in hand.events("forked")) == case.num_threads
    assert hand.copies.num_accepted > 1


def test_a_thread_is_drafted_from_what_its_family_has_written(drive_threads):
    alone, hand = drive_threads(max_drafts=0), drive_threads(max_drafts=6, draft_from="family")
    assert hand.text("r") == alone.text("r")
    (told,) = hand.events("drafted")
    assert told["source"] == "family"
    assert len("defghijklm</Thread>") > told["num_right"] >= len("defghijklm") - 2  # a b c say which
    assert hand.num_steps < alone.num_steps - 6


@pytest.fixture
def drive_threads():
    """Two threads one behind the other that write the same."""
    from forkjoin_server.start.configuration import EMBEDDED_MODEL
    from tests.engine.by_hand import ByHand

    def drive(**options):
        hand = ByHand(load("threadweaver"), EMBEDDED_MODEL, **options)
        hand.add("r", "q")
        hand.say("r", OUTLINES)
        hand.say("r#0", "abcdefghijklm</Thread>")
        hand.say("r#1", "nopqrstuvwxyzabcdefghijklm</Thread>")
        hand.steps_until(lambda: hand.events("joined"))
        hand.say("r", "<|end|>")
        hand.finish()
        return hand

    return drive


@MODES
def test_drafts_that_come_behind_the_fork_of_their_request_are_forgotten(is_async):
    from forkjoin_server.start.configuration import EMBEDDED_MODEL
    from tests.engine.by_hand import ByHand

    hand = ByHand(load("threadweaver"), EMBEDDED_MODEL, is_async=is_async, max_drafts=4)
    hand.add("r", "q")
    hand.say("r", OUTLINES)
    hand.steps_until(lambda: hand.decodes("r#0"))
    assert bool(hand.request("r").spec_token_ids) != is_async  # they have come
    for thread in ("r#0", "r#1"):
        hand.say(thread, "a</Thread>")
    hand.steps_until(lambda: hand.events("joined"))
    assert not hand.request("r").spec_token_ids
    hand.say("r", "<|end|>")
    hand.finish()
