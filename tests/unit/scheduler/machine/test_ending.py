"""What ends a thread or an answer before its time, played by hand: a client, a sibling, a stop token."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.publish.events import Refused, ThreadEnded
from tests.unit.scheduler.machine.stepping import ENDED_FIRST, JOIN, Play

FIRST = {"kind": "reprefill", "text": "<J>", "when": "first"}


def ends(play: Play) -> dict[int, str]:
    return {e.index: e.reason.value for e in play.told(ThreadEnded)}


# ---- a client cancels -----------------------------------------------------------------------


def test_a_thread_that_its_client_cancels_is_closed_and_joined(play_of):
    play = play_of()
    play.step(root="a<F>")
    play.step(t0="u", t1="x</T>")
    play.done()
    assert play.cancel(0) == "cancelling"
    assert play.cancel(0) == "cancelling"
    play.step(t0="v")
    assert play.done() == ["Stop t0", *ENDED_FIRST, "Resume root <T>1:uv</T><T>2:x</T><J>"]
    assert play.cancel(0) == "client_cancelled"
    assert play.cancel(1) == "stop"
    assert play.cancel(2) == play.cancel(-1) == "unknown"
    play.step(root="b\0")
    assert play.finish == "stop"


def test_of_a_cancelled_thread_that_has_forked_the_leaves_end_first(play_of):
    play = play_of(max_depth=2)
    play.step(root="<F>")
    play.step(t0="a<F>", t1="b")
    play.step(t2="c</T>", t3="d")
    play.done()
    play.cancel(0)
    play.step()
    joined = "<T>1:c</T><T>2:d</T><J>"
    assert play.done() == ["Stop t3", "Keep t3", "PrefillFinishedThreads t0", f"Resume t0 {joined}"]
    play.step(t1="e</T>")
    assert play.done()[2:] == ["Stop t0", *ENDED_FIRST, f"Resume root <T>1:a<F>{joined}</T><T>2:be</T><J>"]
    assert ends(play) == {2: "stop", 3: "client_cancelled", 1: "stop", 0: "client_cancelled"}


def test_a_cancelled_thread_that_stands_still_for_its_kv_ends_when_it_runs_again(play_of):
    play = play_of()
    play.step(root="a<F>")
    play.done()
    play.cancel(0)
    thread = play.machine.family.threads[0]
    play.stage.is_standing = {thread}.__contains__
    play.step()
    assert play.done() == []
    play.stage.is_standing = play.stage.standing.__contains__
    play.step()
    assert play.done() == ["Stop t0", *ENDED_FIRST]


def test_a_spliced_thread_is_cancelled_while_its_parent_goes_on(play_of):
    play = play_of(join={"kind": "splice"})
    play.step(root="a<F>b")
    play.done()
    play.cancel(0)
    play.step(root="c\0", t0="u")
    assert play.done() == ["Forget", "Stop t0", *ENDED_FIRST]
    play.step(t1="</T>")
    assert (play.answer, play.finish) == ("a<F><T>1:u</T><T>2:</T>bc\0", "stop")


def test_a_thread_that_ends_in_the_step_in_which_it_is_cancelled_ends_by_itself(play_of):
    play = play_of()
    play.step(root="a<F>")
    play.done()
    play.cancel(0)
    play.step(t0="u</T>")
    assert play.done() == ENDED_FIRST
    assert ends(play) == {0: "stop"}
    assert play.machine.cancelled == []


# ---- the first thread cuts the others -------------------------------------------------------


def test_the_first_thread_to_end_cuts_the_others_where_they_are(play_of):
    play = play_of(width=3, join=FIRST)
    play.step(root="a<F>")
    play.done()
    play.step(t0="u", t1="x</T>", t2="yz")
    assert play.done() == [
        *(
            "Keep t1",
            "PrefillFinishedThreads root",
            "Stop t0",
            *ENDED_FIRST,
            "Stop t2",
            "Keep t2",
            "PrefillFinishedThreads root",
        ),
        "Resume root <T>1:u<T>2:x</T><T>3:yz<J>",
    ]
    assert play.answer == "a<F><T>1:u<T>2:x</T><T>3:yz<J>", "what is cut is not closed"
    assert ends(play) == {0: "cut", 1: "stop", 2: "cut"}


@pytest.mark.parametrize("wrote", ["u</T>", "u\0", "uvw"])
def test_a_thread_that_ends_in_any_way_of_its_own_is_the_first(play_of, wrote):
    policies = {"thread_eos": "close_thread", "thread_length": "close_thread"}
    play = play_of(join=FIRST, policies=policies, limits={"max_tokens_per_thread": 3})
    play.step(root="a<F>")
    play.done()
    play.step(t0=wrote)
    assert play.done()[:3] == [*ENDED_FIRST, "Stop t1"]


def test_one_that_has_forked_is_cut_from_its_leaves(play_of):
    play = play_of(join=FIRST, max_depth=2)
    play.step(root="<F>")
    play.step(t0="a<F>")
    play.step(t2="c", t3="d")
    play.done()
    play.step(t1="b</T>")
    joined = "<T>1:c<T>2:d<J>"
    assert play.done()[2:] == [
        *(
            "Stop t2",
            "Keep t2",
            "PrefillFinishedThreads t0",
            "Stop t3",
            "Keep t3",
            "PrefillFinishedThreads t0",
        ),
        f"Resume t0 {joined}",
    ]
    play.step()
    assert play.done() == ["Stop t0", *ENDED_FIRST, f"Resume root <T>1:a<F>{joined}<T>2:b</T><J>"]


def test_a_cancelled_thread_cuts_no_other(play_of):
    play = play_of(join=FIRST)
    play.step(root="a<F>")
    play.done()
    play.cancel(0)
    play.step(t1="x")
    assert play.done() == ["Stop t0", *ENDED_FIRST]


def test_a_thread_that_is_cut_while_the_first_ones_last_kv_is_computed_is_cut_once(play_of):
    play = play_of(join=FIRST | {"kind": "stitch"}, request={"is_late": True})
    play.step(root="a<F>")
    play.done()
    play.step(t0="u</T>", closes=False)
    assert play.done() == ["Keep t0", "Stop t1", "Keep t1"]
    play.step(closes=False)
    assert play.done() == []
    play.step()
    assert play.done() == [
        "PrefillFinishedThreads root",
        "PrefillFinishedThreads root",
        "Resume root <T>1:u</T><T>2:<J>",
    ]


# ---- a stop token of the request's own ------------------------------------------------------


def test_a_stop_token_in_a_thread_ends_the_answer_there(play_of):
    play = play_of(width=3, request={"stop": "!"})
    play.step(root="a<F>")
    play.done()
    play.step(t1="x!", t2="never", t0="u")
    assert play.done() == ["Forget t2", "Keep t1", "PrefillFinishedThreads root"]
    assert play.finish is None, "the thread before it is not done"
    assert ends(play) == {2: "cancelled", 1: "request_stop"}
    play.step(t0="v</T>")
    assert play.done() == [*ENDED_FIRST, "EndFamily stop"]
    assert (play.answer, play.finish) == ("a<F><T>1:uv</T><T>2:x!", "stop")
    assert play.machine.stop_reason == ord("!")


def test_a_stop_token_in_a_nested_thread_ends_the_answer_there(play_of):
    play = play_of(max_depth=2, request={"stop": "!"})
    play.step(root="<F>")
    play.step(t0="a<F>", t1="later")
    play.done()
    play.step(t2="c!")
    assert play.done() == [
        *("Forget t3", "Forget t1", "Keep t2", "PrefillFinishedThreads t0"),
        *("EndJoined t0 stop", "Keep t0", "PrefillFinishedThreads root", "EndFamily stop"),
    ]
    assert (play.answer, play.finish) == ("<F><T>1:a<F><T>1:c!", "stop")


def test_a_stitched_thread_behind_which_nothing_follows_needs_no_more_kv(play_of):
    play = play_of(max_depth=2, request={"stop": "!", "is_late": True}, join=JOIN | {"kind": "stitch"})
    play.step(root="<F>")
    play.step(t0="a<F>", t1="b</T>")
    assert "Keep t1" in play.done()
    play.step(t2="c!", closes=False)
    assert play.done() == [
        *("Forget t3", "Forget t1", "Keep t2 whole", "PrefillFinishedThreads t0"),
        *("EndJoined t0 stop", "Keep t0 whole", "PrefillFinishedThreads root", "EndFamily stop"),
    ]


@pytest.mark.parametrize("first", ["t1", "t3"])
def test_of_two_stop_tokens_the_answer_ends_with_the_one_that_stands_first(play_of, first):
    play = play_of(max_depth=2, request={"stop": "!?"})
    play.step(root="<F>")
    play.step(t0="a<F>")
    wrote = {"t1": "x!", "t3": "c?"}
    play.step(**{first: wrote.pop(first)})
    running = {f"t{b.index}" for b in play.stage.contexts}
    play.step(**{name: text for name, text in wrote.items() if name in running})
    play.step(t2="b</T>")
    assert (play.answer, play.finish) == ("<F><T>1:a<F><T>1:b</T><T>2:c?", "stop")
    assert play.machine.stop_reason == ord("?")


def test_a_stop_token_in_a_spliced_thread_ends_all_at_once(play_of):
    play = play_of(join={"kind": "splice"}, request={"stop": "!"})
    play.step(root="a<F>b")
    play.done()
    play.step(t0="u!", root="c")
    assert play.done() == ["Forget t1", "Keep t0", "PrefillFinishedThreads root", "EndFamily stop"]
    assert (play.answer, play.finish) == ("a<F><T>1:u!", "stop")


def test_a_stop_token_of_the_root_is_the_answers_last_where_threads_go_on(play_of):
    play = play_of(join={"kind": "splice"}, request={"stop": "!"})
    play.step(root="a<F>b!")
    assert play.finish is None
    play.step(t0="u</T>", t1="</T>")
    assert (play.answer, play.finish) == ("a<F><T>1:u</T><T>2:</T>b!", "stop")
    assert play.machine.stop_reason == ord("!")


def test_a_stop_token_of_a_thread_stands_before_that_of_the_root(play_of):
    play = play_of(join={"kind": "splice"}, request={"stop": "!?"})
    play.step(root="a<F>b!")
    play.step(t0="u?")
    assert (play.answer, play.finish) == ("a<F><T>1:u?", "stop")
    assert play.machine.stop_reason == ord("?")


def test_a_limit_that_ends_the_answer_before_its_stop_token_is_due_hides_it(play_of):
    play = play_of(join={"kind": "splice"}, request={"stop": "!", "max_tokens": 5})
    play.step(root="a<F>b!")
    play.step(t0="u")
    assert (play.answer, play.finish) == ("a<F><T>1:u</T><T>2:</T>b", "length")


# ---- swaps ----------------------------------------------------------------------------------


def test_what_a_branch_should_not_write_gives_way_to_another_text(play_of):
    play = play_of(swaps={"bad": "good"}, tags_are="text")
    play.step(root="x bad never")
    assert play.done() == ["Swap root 3 good"]
    assert play.text(play.root) == "Qx good"
    assert play.answer == "x badgood"
    assert [(e.reason, e.policy) for e in play.told(Refused)] == [("stray_tag", "swap")]
    play.step(root="<F>")
    play.step(t0="ubad", t1="</T>")
    assert play.done()[-1].startswith("Swap t0 ")
    thread = play.machine.family.threads[0]
    assert play.tokenizer.decode(thread.token_ids) == "ugood"
    assert (thread.num_generated, play.text(thread)) == (4, "Qx good<F><T>1:ugood")
    play.step(t0="</T>")
    assert play.done()[-1] == "Resume root <T>1:ugood</T><T>2:</T><J>"


def test_threads_share_no_more_with_a_parent_than_it_still_has(play_of):
    swaps = {"bad": "good"}
    play = play_of(swaps=swaps, tags_are="text", join={"kind": "splice"}, trigger="x")
    play.step(root="abax")
    (first, _) = play.machine.family.threads
    assert first.fork_len == 5
    play.step(root="bad")
    assert first.fork_len == 5
    play = play_of(swaps={"ax": "y", "xbad": "z"}, tags_are="text", join={"kind": "splice"}, trigger="x")
    play.step(root="abcx")
    play.step(root="bad")
    assert play.machine.family.threads[0].fork_len == 4


def test_what_stops_the_answer_ends_a_thread_only_as_its_end_tag(play_of):
    play = play_of(stops=["</T>"])
    play.step(root="a<F>")
    play.step(t0="x</T>", t1="y</T>")
    assert play.finish is None
    play.step(root="b</T>")
    assert (play.answer, play.finish) == ("a<F><T>1:x</T><T>2:y</T><J>b</T>", "stop")


def test_a_thread_ends_at_what_else_ends_it_and_nothing_is_put_behind_that(play_of):
    thread = {"header": "<T>{n}:", "end": "</T>", "also_ends": ["</X>"], "close": "</T>"}
    play = play_of(thread=thread)
    play.step(root="a<F>")
    play.step(t0="x</X>", t1="y</T>")
    assert play.answer == "a<F><T>1:x</X><T>2:y</T><J>"
    assert [e.reason for e in play.told(ThreadEnded)] == ["stop", "stop"]


@pytest.mark.parametrize(("limits_parent", "most"), [(True, 3), (False, 50)])
def test_the_limit_of_a_thread_is_its_parents_too_where_the_dialect_says_so(play_of, limits_parent, most):
    limits = {"max_tokens_per_thread": 3}
    play = play_of(limits=limits, join={"kind": "splice"}, limits_parent=limits_parent)
    assert play.machine.budget(play.root, 50) == most


def test_a_stitched_thread_is_rewritten_and_what_holds_threads_is_not(make_dialect):
    thread = {"header": "<T>{n}:", "end": "</T>"}
    stitched = {"fork_at": "prompt", "trigger": None, "join": {"kind": "stitch"}, "thread": thread}
    play = Play(make_dialect(**stitched, swaps={"<X>": "<Y>"}), tags=("<X>", "<Y>"))
    play.step(root="dropped")
    play.step(t0="u<X>", t1="v</T>")
    assert play.text(play.machine.family.threads[0]) == "Q<T>1:u<Y>"
    play.step(t0="w</T>")
    assert play.text(play.root) == "Q<T>1:u<Y>w</T><T>2:v</T><J>"
    play.step(root="b<X>c\0")
    assert play.answer == "<T>1:u<X><Y>w</T><T>2:v</T><J>b<X>c\0"
    assert [(e.reason, e.parent_index) for e in play.told(Refused)] == [("stray_tag", 0)]
