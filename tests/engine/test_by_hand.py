"""Interleavings that once went wrong, one by one, on the real scheduler without a model.

Each step checks the engine's invariants (``invariants.py``) and the KV that is read (``kv_oracle.py``).
"""

from __future__ import annotations

from collections import Counter, deque
from functools import partial
from itertools import dropwhile
from operator import attrgetter

import pytest
from vllm.v1.core.single_type_kv_cache_manager import SingleTypeKVCacheManager

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.joins.kinds import make_join
from forkjoin_scheduler.machine import cancelling
from forkjoin_scheduler.publish.injected import INJECTED_LOGPROB
from forkjoin_scheduler.vllm_seam.cache import kv
from tests.engine.renamed import dialect_for

pytestmark = pytest.mark.engine

PLANS = "<guideline><plan>1: a</plan><plan>2: b</plan></guideline>"
GOAL = "<Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>"
OUTLINES = "<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"


@pytest.fixture
def drive(model_of):
    from tests.engine.by_hand import ByHand

    def make(dialect: str | Dialect, **options):
        dialect = load(dialect) if isinstance(dialect, str) else dialect
        return ByHand(dialect, model_of(dialect.name), **options)

    return make


def changed(name, *, max_depth=1, **join):
    """A dialect that nests, and joins otherwise."""
    dialect = load(name)
    joined = make_join(**dialect.join.model_dump() | join)
    return Dialect.model_validate(
        dialect.model_dump() | {"join": joined.model_dump(), "max_depth": max_depth}
    )


# ---- one join a transition --------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("asked_first", [True, False])
def test_a_sibling_that_ends_with_the_one_that_is_waited_for_makes_no_second_join(
    drive, asked_first, is_async
):
    hand = drive("asyncthink", is_async=is_async)
    hand.add("r", "q")
    hand.say("r", "<FORK-1>do</FORK-1><FORK-2>do</FORK-2>")
    hand.steps_until(lambda: hand.decodes("r#1"))
    hand.say("r", f"<JOIN-{1 if asked_first else 2}>")
    hand.steps_until(lambda: hand.scheduler.num_waiting_for_streaming_input == 1)
    for thread in ("r#0", "r#1"):
        hand.say(thread, "<RETURN>7</RETURN>")
    hand.steps_until(lambda: hand.decodes("r"))
    assert [e["index"] for e in hand.events("thread_ended")] == [0, 1]
    assert len(hand.events("joined")) == 1
    hand.say("r", "<|end|>")
    hand.finish()


def _syncs():
    """AsyncThink's threads, all of which one text waits for."""
    dialect = load("asyncthink")
    return dialect.model_copy(update={"join": make_join(kind="sync", sync="<SYNC>")})


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("first", ["r#0", "r#1"])
def test_a_sync_waits_for_all_that_was_started_since_the_last(drive, first, is_async):
    hand = drive(_syncs(), is_async=is_async)
    hand.add("r", "q")
    hand.say("r", "<FORK-1>do</FORK-1>and<FORK-2>do</FORK-2>meanwhile<SYNC>")
    hand.steps_until(lambda: hand.scheduler.num_waiting_for_streaming_input == 1)
    hand.say(first, "<RETURN>7</RETURN>")
    hand.steps_until(lambda: len(hand.events("thread_ended")) == 1)
    assert not hand.events("joined")
    hand.say("r#0" if first == "r#1" else "r#1", "<RETURN>7</RETURN>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "on<FORK-3>do</FORK-3><SYNC>")
    hand.steps_until(lambda: hand.decodes("r#2"))
    hand.say("r#2", "<RETURN>8</RETURN>")
    hand.steps_until(lambda: len(hand.events("joined")) == 2 and hand.decodes("r"))
    hand.say("r", "done<|end|>")
    hand.finish()
    started = "<FORK-1>do</FORK-1>and<FORK-2>do</FORK-2>meanwhile<SYNC>"
    joined = "7</JOIN-1>7</JOIN-2>on<FORK-3>do</FORK-3><SYNC>8</JOIN-3>done"
    assert hand.text("r").removesuffix("<|end|>").replace("x", "") == started + joined


def test_threads_that_a_sync_waits_for_may_have_one_number(drive):
    hand = drive(_syncs())
    hand.add("r", "q")
    for thread in ("r#0", "r#1"):
        hand.say("r", "<FORK-1>do</FORK-1><SYNC>")
        hand.steps_until(partial(hand.decodes, thread))
        hand.say(thread, "<RETURN>7</RETURN>")
        hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert len(hand.events("joined")) == 2
    assert not hand.events("refused")


def test_a_sync_for_which_nothing_is_open_is_refused(drive):
    hand = drive(_syncs())
    hand.add("r", "q")
    hand.say("r", "<SYNC>on<FORK-1>do</FORK-1>")
    hand.steps_until(lambda: hand.decodes("r#0"))
    assert [e["reason"] for e in hand.events("refused")] == ["unknown_thread"]
    hand.say("r", "<|end|>")
    hand.finish()


def test_a_request_says_how_many_rounds_of_how_many_threads_it_wants(drive):
    hand = drive(dialect_for("pacore"))
    hand.add("r", "<|user|>q<|assistant|>", forkjoin={"rounds": [1, 2]})
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#0", "a<|end|>")
    hand.steps_until(lambda: hand.decodes("r#2"))
    for thread in ("r#1", "r#2"):
        hand.say(thread, "b<|end|>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert [len(e["threads"]) for e in hand.events("forked")] == [1, 2]


def test_each_answer_of_rounds_owes_min_tokens_of_its_own(drive):
    hand = drive(dialect_for("pacore"))
    hand.add("r", "<|user|>q<|assistant|>", forkjoin={"rounds": [1, 1]}, min_tokens=20)
    owed = []
    for each in ("r#0", "r#1", "r"):
        hand.steps_until(partial(hand.decodes, each))
        owed.append(hand.request(each).sampling_params.min_tokens)
        hand.step(30)
        hand.say(each, "<|end|>")
    hand.finish()
    assert owed == [20, 20, 20]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_rounds_are_one_request_whose_client_sees_all_threads_and_the_last_answer(drive, is_async):
    hand = drive(dialect_for("pacore"), is_async=is_async)
    hand.add("r", "<|user|>q<|assistant|>", forkjoin={"include_threads": True})
    texts = ["x</think>1", "yy</think>2", "zzz</think>3", "u</think>4", "v</think>5"]
    hand.steps_until(lambda: hand.decodes("r#2"))
    for index in (0, 2):
        hand.say(f"r#{index}", f"{texts[index]}<|end|>")
    hand.steps_until(lambda: len(hand.events("thread_ended")) == 2)
    hand.scheduler.reset_prefix_cache(reset_running_requests=True)
    hand.say("r#1", f"{texts[1]}<|end|>")
    hand.steps_until(lambda: hand.decodes("r#4"))
    for index in (3, 4):
        hand.say(f"r#{index}", f"{texts[index]}<|end|>")
    hand.steps_until(lambda: hand.decodes("r"))
    prompt = hand.tokenizer.decode(hand.request("r").prompt_token_ids)
    assert prompt in ("<|user|>q: 1=4 2=5<|assistant|>", "<|user|>q: 1=5 2=4<|assistant|>")
    hand.say("r", "so</think>5<|end|>")
    hand.finish()
    assert hand.text("r").replace("x", "").removesuffix("<|end|>") == "so</think>5"
    assert [[t["number"] for t in e["threads"]] for e in hand.events("forked")] == [
        ["1", "2", "3"],
        ["1", "2"],
    ]
    assert len(hand.events("joined")) == 2
    assert sorted(e["index"] for e in hand.events("thread_ended")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("length", range(4))
def test_what_is_prefilled_ahead_goes_on_without_the_sample_that_was_dropped(drive, length, is_async):
    """Where a slice ends right before a block's end, its sample fills that block. The invariants tell."""
    hand = drive("threadweaver", block_size=4, is_async=is_async, num_blocks=800)
    hand.add("r", "q")
    hand.say("r", "".join(("<Outlines>", *(f"<Outline>{n}: x</Outline>" for n in "1234"), "</Outlines>")))
    hand.steps_until(lambda: all(hand.decodes(f"r#{n}") for n in range(4)))
    for n in range(3):
        hand.say(f"r#{n}", f"{'a' * (length if n == 0 else 3)}</Thread>")
    hand.steps_until(lambda: len(hand.events("joined_ahead")) == 2)
    hand.say("r#3", "</Thread>")
    hand.steps_until(lambda: hand.events("joined") and hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()


# ---- log-probabilities ------------------------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("forks", [False, True])
@pytest.mark.parametrize("batch", ["rs", "sr"])
def test_what_ends_an_answer_has_a_row_of_its_own_and_no_other_requests(drive, batch, forks, is_async):
    """The end of sequence behind a text that ends it was not sampled: it is certain, as what is injected."""
    hand = drive("asyncthink", is_async=is_async)
    for request_id in batch:
        hand.add(request_id, "q", logprobs=1, forkjoin={"return_tree": True})
    if forks:
        hand.say("r", "<FORK-1>do</FORK-1><JOIN-1>")
        hand.steps_until(lambda: hand.decodes("r#0"))
        hand.say("r#0", "<RETURN>7</RETURN>")
        hand.steps_until(lambda: hand.events("joined") and hand.decodes("r"))
    hand.say("r", "so</ANSWER>")
    hand.steps_until(lambda: "r" not in hand.scheduler.requests)
    hand.say("s", "<|end|>")
    hand.finish()
    sent = [o for o in hand.outputs if o.request_id == "r" and o.new_token_ids]
    assert hand.text("r").endswith(f"so</ANSWER>{hand.tokenizer.decode([min(hand.scheduler._core.eos_ids)])}")
    for output in sent:
        assert [row[0] for row in output.new_logprobs.logprob_token_ids] == output.new_token_ids
    assert sent[-1].new_logprobs.logprobs.tolist() == [[INJECTED_LOGPROB]]
    assert (str(sent[-1].finish_reason), sent[-1].stop_reason) == ("stop", "</ANSWER>")
    assert sum(o.finished for o in sent) == 1


# ---- what can't be computed in a row ----------------------------------------------------------


def _second_fork(hand):
    """A family whose second fork lies in the KV block in which its first join ended; both threads run."""
    hand.add("r", "q")
    hand.say("r", PLANS)
    hand.steps_until(lambda: hand.decodes("r#0"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "abc</step>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", PLANS)
    hand.steps_until(lambda: hand.decodes("r#2") and hand.decodes("r#3"))
    hand.step(2)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("lost", [("r#2",), ("r#3",), ("r#2", "r#3")], ids="+".join)
@pytest.mark.parametrize("block_size", [16, 64, 128])
def test_threads_that_lose_their_blocks_take_stitched_kv_from_their_parent_again(
    drive, lost, block_size, is_async
):
    hand = drive("npr", block_size=block_size, is_async=is_async)
    _second_fork(hand)
    for thread in lost:
        hand.preempt(thread)
    hand.step(4)
    for thread in ("r#2", "r#3"):
        hand.say(thread, "</step>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert hand.oracle.num_compared_stitched > 10


def test_threads_at_other_positions_compute_what_their_parent_has_lost_at_its_own(drive):
    """The parent is preempted with its trigger in flight."""
    dialect = load("multiverse")
    positions = dialect.positions.model_copy(update={"fork_gap": 3})
    hand = drive(dialect.model_copy(update={"positions": positions}), is_async=True)
    hand.add("r", "qqqqq")
    hand.say("r", GOAL)
    num_tokens = len(hand.tokenizer.encode(GOAL))
    hand.steps_until(lambda: hand.request("r").num_output_tokens == num_tokens - 1)
    hand.preempt("r")
    hand.say("r", "</Goal>")  # it is sampled again
    hand.steps_until(lambda: hand.decodes("r#0"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "abc</Path>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()


@pytest.mark.parametrize(
    ("name", "fork", "end"),
    [("npr", PLANS, "</step>"), ("multiverse", GOAL, "</Path>")],
    ids=["npr", "multiverse"],
)
@pytest.mark.parametrize("block_size", [1, 2])
def test_a_block_that_two_threads_found_is_joined_as_two(drive, name, fork, end, block_size):
    """Their parent lost its blocks, so the second takes from the first what their headers have in common."""
    hand = drive(name, is_async=True, block_size=block_size, num_blocks=2100)
    hand.add("r", "qqqqq")
    hand.say("r", fork)
    num_tokens = len(hand.tokenizer.encode(fork))
    hand.steps_until(lambda: hand.request("r").num_output_tokens == num_tokens - 1)
    hand.preempt("r")
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, f"abc{end}")
    hand.steps_until(lambda: hand.decodes("r"))
    (table,) = hand.scheduler.kv_cache_manager.get_block_ids("r")
    assert len(set(table)) == len(table), "a table has each block once"
    hand.say("r", "<|end|>")
    hand.finish()
    assert hand.oracle.num_compared_stitched


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("gap", [0, 3])
@pytest.mark.parametrize("lost", [(), ("r#2",), ("r#1", "r#2", "r#3")], ids="-".join)
def test_the_trigger_of_a_fork_with_a_gap_behind_it_stands_where_its_parent_does(drive, is_async, gap, lost):
    """Its KV is computed by the threads, also where they are nested, or lose their blocks."""
    dialect = changed("multiverse", max_depth=3)
    positions = dialect.positions.model_copy(update={"fork_gap": gap})
    hand = drive(dialect.model_copy(update={"positions": positions}), is_async=is_async)
    hand.add("r", "qqqqq")
    hand.say("r", GOAL)
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#0", GOAL)
    hand.steps_until(lambda: hand.decodes("r#2"))
    hand.step()
    for thread in lost:
        hand.preempt(thread)
    hand.step(3)
    for thread in ("r#2", "r#3"):
        hand.say(thread, "in</Path>")
    hand.steps_until(lambda: hand.decodes("r#0"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "abc</Path>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert hand.oracle.num_compared_stitched


@pytest.mark.parametrize("thread", ["r#1", "r#2"])
@pytest.mark.parametrize("num_steps", range(8))
def test_a_restore_that_is_started_again_leaves_alone_what_has_its_kv(drive, thread, num_steps):
    """The request that computes lost KV is preempted itself, with all before it restored already."""
    hand = drive(changed("multiverse", max_depth=3))
    hand.add("r", "q")
    hand.say("r", GOAL)
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#0", GOAL)
    hand.steps_until(lambda: hand.decodes("r#2"))
    for ended in ("r#2", "r#3"):
        hand.say(ended, "in</Path>")
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#0", GOAL)
    hand.steps_until(lambda: hand.decodes("r#4"))
    hand.say("r#4", "done</Path>")
    hand.steps_until(lambda: "r#4" not in hand.scheduler.requests and not hand.live().jobs)
    hand.evict()
    hand.scheduler._eviction.restore_next()
    hand.step(num_steps)
    if fills := [r.request_id for r in hand.scheduler.running if "#fill" in r.request_id]:
        hand.preempt(fills[0])
    hand.step(2)
    hand.say("r#5", "</Path>")
    hand.steps_until(lambda: hand.decodes("r#0"))
    for ended in ("r#0", "r#1"):
        hand.say(ended, "</Path>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()


def test_blocks_that_are_computed_in_this_step_are_not_copied_in_it(drive):
    """A spliced thread and its parent lose their blocks and start again in one step."""
    hand = drive("apar", block_size=16)
    hand.add("r", "q" * 40)
    hand.say("r", "abc[SplitMask]")
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.add("s", "q" * 40 + "abc" + "y" * 30)
    hand.step()
    for lost in ("r#0", "r", "s"):
        hand.preempt(lost)
    hand.scheduler.kv_cache_manager.reset_prefix_cache()
    hand.step(3)
    for request in ("r#0", "r", "s"):
        hand.say(request, "<|end|>")
    hand.finish()


# ---- nobody's samples, nobody's blocks --------------------------------------------------------


def test_no_sample_is_taken_of_a_thread_that_is_suspended(drive):
    """It is preempted with its end tag in flight, and its family loses its blocks before that comes."""
    hand = drive("multiverse", is_async=True)
    hand.add("r", "q")
    hand.say("r", GOAL)
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    hand.step(2)
    hand.say("r#0", "</Path>")
    hand.schedule()
    hand.preempt("r#0")
    hand.evict()
    while hand._in_flight:
        hand.update()
    hand.scheduler._eviction.restore_next()
    hand.steps_until(lambda: hand.decodes("r#0"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "</Path>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()


def test_a_parent_without_blocks_has_no_bookkeeping_of_them(drive):
    """It forks twice in its first block; the first thread, with whose blocks it would go on, loses them."""
    hand = drive("parallel-r1", is_async=True, block_size=64)
    hand.add("r", "q")
    hand.say("r", "<Parallel>")
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "</Path>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "</Summary><Parallel>")
    hand.steps_until(lambda: hand.decodes("r#2") and hand.decodes("r#3"))
    hand.step(70)
    for thread in ("r#2", "r#3"):
        hand.say(thread, "</Path>")
    hand.schedule()
    hand.preempt("r#2")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "</Summary><|end|>")
    hand.finish()


def test_a_prompt_of_one_token_that_may_not_fork_gives_its_block_back(drive):
    hand = drive("explicit")
    hand.add("r", "q", forkjoin={"branches": [{"text": "A"}], "max_forks": 0})
    hand.step(3)
    hand.say("r", "<|end|>")
    hand.finish()


# ---- sliding windows --------------------------------------------------------------------------


@pytest.mark.parametrize("num_ahead", [1, 8, 20, 70])
def test_a_spliced_thread_that_starts_late_reads_its_own_window(drive, num_ahead):
    """Its parent went on, and gave back blocks that the thread's window still needs."""
    hand = drive("apar", block_size=4, window=16)
    hand.add("r", "q" * 30)
    hand.say("r", "abc[SplitMask]")
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.step(num_ahead)
    hand.preempt("r#0")
    hand.step(6)
    hand.say("r#0", "<|end|>")
    hand.say("r", "<|end|>")
    hand.finish()


@pytest.fixture(params=["as_installed", "trims"])
def popping(request, monkeypatch):
    """vLLM's way to give up a table: 0.33 returns it without the null blocks before a sliding window."""
    pop = SingleTypeKVCacheManager.pop_blocks_for_free

    def trimmed(self, request_id):
        return list(dropwhile(attrgetter("is_null"), pop(self, request_id)))

    if request.param == "trims":
        monkeypatch.setattr(SingleTypeKVCacheManager, "pop_blocks_for_free", trimmed)


@pytest.mark.parametrize("num_tokens", [2, 30])
def test_a_join_under_a_sliding_window_reads_what_is_in_it(drive, popping, num_tokens):
    hand = drive("threadweaver", block_size=4, window=16)
    hand.add("r", "q" * 30)
    hand.say("r", OUTLINES)
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.step(num_tokens)
    for thread in ("r#0", "r#1"):
        hand.say(thread, "</Thread>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()


def test_what_lies_before_a_sliding_window_takes_no_blocks(drive):
    hand = drive("threadweaver", block_size=4, window=16)
    hand.add("r", "q" * 30)
    hand.steps_until(lambda: hand.decodes("r"))
    hand.add("s", "q" * 30)
    found, _, _ = hand.scheduler.kv_cache_manager.get_computed_blocks(hand.request("s"))
    assert [block.is_null for block in found.blocks[0]] == [True] * 3 + [False] * 4
    assert kv.num_new_blocks(hand.scheduler.kv_cache_manager, hand.request("s"), Counter()) == 1
    for request in ("r", "s"):
        hand.say(request, "<|end|>")
    hand.finish()


# ---- the first to end cuts the others ---------------------------------------------------------


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(
    ("name", "fork", "end"), [("multiverse", GOAL, "</Path>"), ("threadweaver", OUTLINES, "</Thread>")]
)
def test_cutting_a_thread_that_has_forked_cuts_its_threads_and_loses_nothing(
    drive, name, fork, end, is_async
):
    hand = drive(changed(name, max_depth=3, when="first"), is_async=is_async)
    hand.add("r", "q")
    hand.say("r", fork)
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#1", "outer" + fork)
    hand.steps_until(lambda: hand.decodes("r#2"))
    hand.say("r#2", "left" + fork)
    hand.say("r#3", "right")
    hand.steps_until(lambda: hand.decodes("r#4"))
    hand.say("r#4", "deep")
    hand.step(6)
    hand.say("r#0", end)
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    ends = {e["index"]: e["reason"] for e in hand.events("thread_ended")}
    assert ends == {0: "stop"} | dict.fromkeys(range(1, 6), "cut")
    places = [hand.text("r").index(word) for word in ("outer", "left", "deep", "right")]
    assert places == sorted(places)


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_thread_that_is_cut_before_its_stitched_join_has_run_loses_nothing(drive, is_async):
    """It has joined, and waits to be scheduled: its blocks are not put together when it is cut."""
    hand = drive(changed("multiverse", max_depth=3, when="first"), is_async=is_async)
    hand.add("r", "q")
    hand.say("r", GOAL)
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    hand.say("r#1", GOAL)
    hand.steps_until(lambda: hand.decodes("r#2") and hand.decodes("r#3"))
    hand.step(9)
    hand.say("r#0", "</Path>")
    hand.steps_until(lambda: "r#1" in hand.scheduler._placing.to_stitch)
    hand.pause()
    hand.step(2)
    assert "r#1" not in hand.scheduler.requests, "it was cut before it ran"
    hand.go_on()
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert hand.oracle.num_compared_stitched


def test_a_thread_that_is_cut_while_its_family_waits_to_be_restored_is_restored_with_it(drive):
    hand = drive(changed("multiverse", max_depth=3, when="first"))
    hand.add("r", "q")
    hand.say("r", GOAL)
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "abc</Path>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", GOAL)
    hand.steps_until(lambda: hand.decodes("r#2") and hand.decodes("r#3"))
    hand.say("r#3", GOAL)
    hand.steps_until(lambda: hand.decodes("r#4") and hand.decodes("r#5"))
    hand.say("r#2", "</Path>")
    hand.steps_until(lambda: "r#3" in hand.scheduler._placing.to_stitch)
    hand.evict()
    hand.step()
    assert "r#3" not in hand.scheduler.requests, "it was cut"
    hand.scheduler._eviction.restore_next()
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert hand.oracle.num_compared_stitched


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_result_without_text_leaves_a_token_to_go_on_from(drive, is_async):
    """Nothing is put into the context that all has KV: its last token is computed once more."""
    dialect = load("asyncthink")
    thread = dialect.thread.model_copy(update={"returned_end": ""})
    hand = drive(dialect.model_copy(update={"thread": thread}), is_async=is_async)
    hand.add("r", "q")
    hand.say("r", "<FORK-1>do</FORK-1><JOIN-1>")
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#0", "<|end|>")
    hand.steps_until(lambda: hand.events("joined") and hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()


# ---- noise ------------------------------------------------------------------------------------


def _seeds(hand, request_id="r"):
    seeds = []
    params_of = hand.scheduler._params.behind_join

    def noted(live, branch, room):
        params = params_of(live, branch, room)
        if branch.request_id == request_id:
            seeds.append(params.seed)
        return params

    hand.scheduler._params.behind_join = noted
    return seeds


def test_two_joins_on_demand_draw_other_noise(drive):
    hand = drive("asyncthink")
    seeds = _seeds(hand)
    hand.add("r", "q", seed=7, temperature=1.0)
    hand.say("r", "<FORK-1>do</FORK-1><FORK-2>do</FORK-2>")
    hand.steps_until(lambda: hand.decodes("r#1"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "<RETURN>7</RETURN>")
    hand.say("r", "<JOIN-1>")
    hand.steps_until(lambda: len(hand.events("joined")) == 1)
    hand.say("r", "<JOIN-2>")
    hand.steps_until(lambda: len(hand.events("joined")) == 2)
    hand.say("r", "<|end|>")
    hand.finish()
    assert len(set(seeds)) == 2


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("num_before", [0, 3, 20, 70])
def test_a_swap_computes_only_what_fills_no_block_before_it(drive, num_before, is_async, monkeypatch):
    """The oracle says whether what stays is right."""
    hand, computed = drive(dialect_for("parathinker"), is_async=is_async), []
    begin = hand.begin

    def recorded(output):
        computed.append(output.num_scheduled_tokens.get("r#1", 0))
        return begin(output)

    monkeypatch.setattr(hand, "begin", recorded)
    hand.add("r", "q" * 40)
    hand.steps_until(lambda: hand.decodes("r#1"))
    hand.say("r#1", "a" * num_before + "<think2>")
    computed.clear()
    hand.step(num_before + 6)
    (again,) = [num for num in computed if num > 1] or [1]
    assert again <= 16  # a block: what stands before the tag, and what takes its place
    hand.say("r#1", "</think2>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()


def test_two_swaps_draw_other_noise(drive):
    hand = drive("apr")
    seeds = _seeds(hand)
    hand.add("r", "q", seed=7, temperature=1.0)
    hand.say("r", "<Sub Searches>xx<Sub Searches>xx<|end|>")
    hand.finish()
    assert len(set(seeds)) == 2


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_thread_that_is_cancelled_gives_back_what_its_own_threads_held_for_their_join(drive, is_async):
    """Else it is held until the family's end."""
    hand = drive(changed("npr", max_depth=2), is_async=is_async)
    hand.add("r", "q", stop_token_ids=hand.tokenizer.encode("z"))
    hand.say("r", "<guideline><plan>1: a</plan><plan>2: b</plan><plan>3: c</plan></guideline>")
    hand.steps_until(lambda: hand.decodes("r#2"))
    hand.say("r#2", PLANS)
    hand.steps_until(lambda: hand.decodes("r#4"))
    hand.say("r#3", "abc</step>")
    hand.steps_until(lambda: hand.scheduler._core.live["r"].held)
    hand.say("r#1", "z")  # the answer ends here, as soon as the thread before it has ended
    hand.steps_until(lambda: not hand.decodes("r#4"))
    hand.say("r#0", "</step>")
    hand.finish()
    ends = {e["index"]: e["reason"] for e in hand.events("thread_ended")}
    assert ends == {0: "stop", 1: "request_stop", 2: "cancelled", 3: "stop", 4: "cancelled"}


# ---- threads that depend on others -------------------------------------------------------------

STEPS = "".join(f"Transient Step {n}: a; Dependency: [{d}]\n" for n, d in enumerate(["", "", "1", "2"], 1))


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("kind", ["stitch", "reprefill"])
@pytest.mark.parametrize("lost", [(), ("r#0",), ("r#2", "r#3")], ids="+".join)
def test_a_stage_starts_on_what_the_one_before_it_wrote(drive, kind, lost, is_async):
    hand = drive(changed("medverse", kind=kind), is_async=is_async)
    hand.add("r", "qqqqq", forkjoin={"include_threads": True})
    hand.say("r", f"{STEPS}</Plan>")
    for first, second in (("r#0", "r#1"), ("r#2", "r#3")):
        hand.steps_until(lambda first=first, second=second: hand.decodes(first) and hand.decodes(second))
        for thread in lost:
            if thread in (first, second):
                hand.preempt(thread)
        hand.step(4)
        hand.say(first, "bcd</Step>")
        hand.say(second, "b</Step>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert [e["threads"] for e in hand.events("threads_started")] == [[2, 3]]
    told = [(e["index"], e["waits_for"]) for e in hand.events("waiting") if e["index"] == 2]
    assert told[:2] == [(2, "dependencies"), (2, None)]
    assert len(hand.events("joined")) == 2


@pytest.mark.parametrize("status", ["WAITING", "RUNNING"])
def test_a_parent_that_loses_its_blocks_between_two_stages_forks_when_it_has_them_again(drive, status):
    hand = drive("medverse", is_async=True)
    hand.add("r", "qqqqq")
    hand.say("r", f"{STEPS}</Plan>")
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "bcd</Step>")
    params = hand.scheduler._core.fj_params
    hand.steps_until(lambda: params["r"].at_prompt and hand.request("r").status.name == status)
    hand.evict()
    hand.steps_until(lambda: hand.decodes("r#2") and hand.decodes("r#3"))
    for thread in ("r#2", "r#3"):
        hand.say(thread, "bcd</Step>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert hand.oracle.num_compared_stitched


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_thread_that_is_cancelled_while_it_waits_for_others_never_starts(drive, is_async):
    hand = drive("medverse", is_async=is_async)
    hand.add("r", "qqqqq")
    hand.say("r", f"{STEPS}</Plan>")
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    assert cancelling.ask(hand.scheduler._core.live["r"], 2) == cancelling.CANCELLING
    for thread in ("r#0", "r#1"):
        hand.say(thread, "bcd</Step>")
    hand.steps_until(lambda: hand.decodes("r#3"))
    hand.say("r#3", "</Step>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    ends = {e["index"]: e["reason"] for e in hand.events("thread_ended")}
    assert ends == {0: "stop", 1: "stop", 2: "not_started", 3: "stop"}


# ---- beside vLLM's own ------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{"prompt_logprobs": 1}, {"prompt_logprob_token_ids": [[1]]}])
def test_what_asks_for_logprobs_of_its_prompt_does_not_fork_at_its_end(drive, asked):
    """vLLM hands them over with the token behind the prompt, which such a fork drops."""
    hand = drive("threadweaver")
    for name, more in (("r", asked), ("s", {})):
        hand.add(name, "q", forkjoin={"best_of": 2, "vote": "x"}, **more)
    hand.steps_until(lambda: hand.decodes("r") and hand.decodes("s#1"))
    assert len(hand.events("forked")) == 1
    assert "r#0" not in hand.scheduler.requests
    for name in ("r", "s#0", "s#1"):
        hand.say(name, "<|end|>")
    hand.finish()


def test_a_session_that_waits_for_input_keeps_its_slot(drive):
    """vLLM's streaming inputs stay with the workers; parked parents do not, so that threads have their slots."""
    hand = drive("asyncthink")
    hand.add("s", "q")
    session = hand.request("s")
    session.resumable, session.streaming_queue = True, deque()
    hand.say("s", "<|end|>")
    hand.steps_until(lambda: hand.scheduler.num_waiting_for_streaming_input == 1)
    hand.step()
    num_slots = hand.scheduler._core.num_slots
    assert hand.scheduler.max_num_active_reqs == num_slots
    hand.add("r", "q")
    hand.say("r", "<FORK-1>do</FORK-1><JOIN-1>")
    hand.steps_until(lambda: hand.scheduler.num_waiting_for_streaming_input == 2)
    hand.step()
    assert hand.scheduler.max_num_active_reqs == num_slots + 1
