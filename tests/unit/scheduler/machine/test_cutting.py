"""Malformed output and limits, played by hand: what each policy of a dialect does about them."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.publish.events import Forked, Limited, Refused, ThreadEnded
from tests.unit.scheduler.machine.stepping import ENDED_FIRST, JOIN, Play


def refused(play: Play) -> list[tuple[int, str, str]]:
    return [(e.parent_index, e.reason, e.policy) for e in play.told(Refused)]


def ends(play: Play) -> list[tuple[int, str, str | None]]:
    return [(e.index, e.reason.value, e.policy and e.policy.value) for e in play.told(ThreadEnded)]


# ---- threads that do not end as they should -------------------------------------------------


@pytest.mark.parametrize("end", ["eos", "length"])
def test_a_thread_that_did_not_end_is_closed_and_joined(play_of, end):
    limits = {"max_tokens_per_thread": 3}
    play = play_of(policies={f"thread_{end}": "close_thread"}, limits=limits)
    play.step(root="a<F>")
    play.done()
    play.step(t0="uv\0" if end == "eos" else "uvw")
    assert play.done() == ENDED_FIRST
    text = "uv" if end == "eos" else "uvw"
    assert play.answer == f"a<F><T>1:{text}</T><T>2:"
    play.step(t1="x</T>")
    assert play.done() == [
        "Keep t1",
        "PrefillFinishedThreads root",
        f"Resume root <T>1:{text}</T><T>2:x</T><J>",
    ]
    assert ends(play) == [(0, end, "close_thread"), (1, "stop", None)]


def test_a_thread_that_did_not_end_ends_the_request_behind_its_siblings(play_of):
    play = play_of(policies={"thread_eos": "end_request"})
    play.step(root="a<F>")
    play.done()
    play.step(t0="u\0")
    assert play.done() == ENDED_FIRST
    play.step(t1="x</T>")
    assert play.done() == ["Keep t1", "PrefillFinishedThreads root", "EndFamily stop"]
    assert (play.answer, play.finish) == ("a<F><T>1:u</T><T>2:x</T></P>\0", "stop")
    assert ends(play) == [(0, "eos", "end_request"), (1, "stop", None)]


def test_a_thread_that_ran_out_of_tokens_cuts_the_request_behind_its_siblings(play_of):
    play = play_of(policies={"thread_length": "end_request"}, limits={"max_tokens_per_thread": 2})
    play.step(root="a<F>")
    play.done()
    play.step(t0="uv", t1="x</T>")
    assert play.done() == [*ENDED_FIRST, "Keep t1", "PrefillFinishedThreads root", "EndFamily length"]
    assert (play.answer, play.finish) == ("a<F><T>1:uv</T><T>2:x</T></P>", "length")


def test_a_nested_thread_that_did_not_end_ends_all_that_wait_for_it(play_of):
    play = play_of(max_depth=2, policies={"thread_eos": "end_request"})
    play.step(root="<F>")
    play.step(t0="a<F>")
    play.step(t1="b</T>", t2="c\0", t3="d</T>")
    assert play.done()[-4:] == [
        "EndJoined t0 stop",
        "Keep t0",
        "PrefillFinishedThreads root",
        "EndFamily stop",
    ]
    assert play.answer == "<F><T>1:a<F><T>1:c</T><T>2:d</T></P></T><T>2:b</T></P>\0"
    assert ends(play)[-1] == (0, "eos", "end_request")


# ---- forks that are refused -----------------------------------------------------------------

OUTLINE = {"opens": "<O>", "pattern": "(?P<number>[0-9])"}
NO_FORK = {
    "no_outline": ({"outline": OUTLINE}, "<O>none<F>"),
    "duplicate_outline": ({"outline": OUTLINE}, "<O>121<F>"),
    "too_many_threads": ({"outline": OUTLINE, "limits": {"max_threads_per_fork": 2}}, "<O>123<F>"),
    "too_many_forks": ({"limits": {"max_forks": 0}}, "a<F>"),
    "no_room": ({"min_room": 2000}, "a<F>"),
}


@pytest.mark.parametrize("reason", NO_FORK)
def test_a_fork_is_refused_and_the_branch_goes_on(play_of, reason):
    fields, call = NO_FORK[reason]
    play = play_of(**fields, policies={reason: "sequential"})
    play.step(root=f"{call}b")
    assert (play.done(), play.answer, play.finish) == ([], f"{call}b", None)
    assert refused(play) == [(-1, reason, "sequential")]
    play.step(root="c\0")
    assert (play.done(), play.answer, play.finish) == ([], f"{call}bc\0", "stop")


@pytest.mark.parametrize("reason", NO_FORK)
def test_a_fork_is_refused_and_the_request_ends(play_of, reason):
    fields, call = NO_FORK[reason]
    play = play_of(**fields, policies={reason: "end_request"})
    play.step(root=f"{call}b")
    assert (play.done(), play.answer) == (["EndFamily length"], f"{call}</P>")
    assert play.finish == "length"
    assert refused(play) == [(-1, reason, "end_request")]


def test_an_outline_that_stands_twice_is_dropped(play_of):
    play = play_of(outline=OUTLINE, policies={"duplicate_outline": "drop"})
    play.step(root="<O>121<F>")
    assert play.done() == ["Park root", "Start t0", "Start t1", "ShareTail root"]
    (forked,) = play.told(Forked)
    assert ([t.number for t in forked.threads], forked.num_duplicates) == (["1", "2"], 1)


def test_forks_that_are_made_in_one_step_are_counted_together(play_of):
    play = play_of(max_depth=2, limits={"max_forks": 2})
    play.step(root="<F>")
    play.step(t0="a<F>", t1="b<F>")
    assert [e.parent_index for e in play.told(Forked)] == [-1, 0]
    assert refused(play) == [(1, "too_many_forks", "sequential")]


def test_a_thread_does_not_fork_where_threads_do_not(play_of):
    play = play_of(policies={"nested_fork": "sequential"})
    play.step(root="<F>")
    play.done()
    play.step(t0="a<F>b</T>", t1="c</T>")
    assert play.done()[-1] == "Resume root <T>1:a<F>b</T><T>2:c</T><J>"
    assert refused(play) == [(0, "nested_fork", "sequential")]


def test_a_thread_that_forks_where_threads_do_not_ends_the_request_all_that_is_open_closed(play_of):
    play = play_of(policies={"nested_fork": "end_request"})
    play.step(root="<F>")
    play.done()
    play.step(t1="c", t0="a<F>b")
    assert play.done() == ["EndFamily length t0 t1"]
    assert (play.answer, play.finish) == ("<F><T>1:a<F></P></T><T>2:c</T></P>", "length")
    assert ends(play) == [(0, "cancelled", None), (1, "cancelled", None)]


# a repeated outline closes no thread
@pytest.mark.parametrize("reason", [reason for reason in NO_FORK if reason != "duplicate_outline"])
def test_the_request_itself_has_no_thread_to_close_and_ends_where_it_may_not_fork(play_of, reason):
    fields, call = NO_FORK[reason]
    play = play_of(**fields, policies={reason: "close_thread"})
    play.step(root=f"{call}b")
    assert (play.done(), play.answer, play.finish) == (["EndFamily length"], f"{call}</P>", "length")
    assert refused(play) == [(-1, reason, "end_request")]


def test_a_thread_that_may_not_fork_is_closed_and_joined(play_of):
    play = play_of(policies={"nested_fork": "close_thread"})
    play.step(root="<F>")
    play.done()
    play.step(t0="a<F>b", t1="c")
    assert play.done() == ["Stop t0", *ENDED_FIRST]
    play.step(t1="d</T>")
    assert play.done()[-1] == "Resume root <T>1:a<F></T><T>2:cd</T><J>"
    assert (refused(play), ends(play)) == (
        [(0, "nested_fork", "close_thread")],
        [(0, "refused", None), (1, "stop", None)],
    )


# ---- contexts that are full -----------------------------------------------------------------


def test_a_joined_context_that_would_be_too_long_ends_the_request(play_of):
    # Q a <F>, and of each thread 5 tokens of header and 4 of its own: 3 + 18 + "<J>"
    for max_model_len, finish in ((24, "length"), (25, None)):
        play = play_of(request={"max_model_len": max_model_len})
        play.step(root="a<F>")
        play.step(t0="uvw</T>", t1="xyz</T>")
        assert play.finish == finish
    assert play.done()[-1].startswith("Resume")
    assert play.stage.left[play.root] == 1, "there is room for one more"


def test_what_is_open_of_a_context_that_would_be_too_long_is_closed(play_of):
    play = play_of(request={"max_model_len": 24})
    play.step(root="a<F>")
    play.step(t0="uvw</T>", t1="xyz</T>")
    assert play.done()[-1] == "EndFamily length"
    assert (play.answer, play.finish) == ("a<F><T>1:uvw</T><T>2:xyz</T></P>", "length")
    assert [e.reason for e in play.told(Limited)] == ["joined_too_long"]


def test_stitched_threads_that_outgrow_the_context_together_end_while_they_run(play_of):
    # 3 tokens before the fork, and "uvwxy" twice: 13
    for max_model_len, finish in ((13, "length"), (14, None)):
        thread = {"header": "T", "end": "</T>"}
        play = play_of(
            request={"max_model_len": max_model_len}, thread=thread, join=JOIN | {"kind": "stitch"}
        )
        play.step(root="a<F>")
        play.step(t0="uvwxy", t1="uvwxy")
        assert play.finish == finish
        assert [e.reason for e in play.told(Limited)] == (["joined_too_long"] if finish else [])


def test_a_stitched_thread_leaves_room_for_what_closes_it(play_of):
    for kind, num_closing in (("reprefill", 0), ("stitch", 2)):
        play = play_of(request={"max_model_len": 30}, join=JOIN | {"kind": kind})
        play.step(root="a<F>")
        header = len(play.tokenizer.encode("<T>1:"))
        assert play.stage.left[play.machine.family.threads[0]] == 30 - 3 - header - num_closing


def test_a_stitched_fork_finds_room_in_positions_too(play_of):
    # 3 tokens, a header of 5, one to write, and 2 to close; 9 positions are left out behind the fork
    for max_model_len, is_refused in ((19, True), (20, False)):
        positions = {"fork_gap": 10}
        play = play_of(
            request={"max_model_len": max_model_len}, join=JOIN | {"kind": "stitch"}, positions=positions
        )
        play.step(root="a<F>")
        assert refused(play) == ([(-1, "no_room", "sequential")] if is_refused else [])


# ---- the budget -----------------------------------------------------------------------------


def test_a_budget_that_is_spent_inside_a_fork_ends_the_request_all_that_is_open_closed(play_of):
    play = play_of(request={"max_tokens": 6})
    play.step(root="a<F>")
    play.done()
    play.step(t0="uv", t1="xy")
    assert play.done() == ["EndFamily length t0 t1"]
    assert (play.answer, play.finish) == ("a<F><T>1:uv</T><T>2:xy</T></P>", "length")
    assert [e.reason for e in play.told(Limited)] == ["total_tokens"]
    assert play.machine.family.num_generated == 6


def test_what_a_step_brings_over_the_budget_was_never_written(play_of):
    play = play_of(request={"max_tokens": 5})
    play.step(root="a<F>")
    play.done()
    play.step(t1="xy", t0="u</T>")
    assert play.done() == [*ENDED_FIRST, "EndFamily length t1"]
    assert ends(play) == [(0, "length", "end_request"), (1, "cancelled", None)]
    assert play.answer == "a<F><T>1:u</T><T>2:xy</T></P>"
    assert (play.finish, play.machine.family.num_generated) == ("length", 5)


def test_a_budget_that_is_spent_with_the_last_threads_end_leaves_none_to_go_on_with(play_of):
    play = play_of(request={"max_tokens": 6})
    play.step(root="a<F>")
    play.done()
    play.step(t0="u</T>")
    play.step(t1="x</T>")
    assert play.done() == [*ENDED_FIRST, "Keep t1", "PrefillFinishedThreads root", "EndFamily length"]
    assert (play.answer, play.finish) == ("a<F><T>1:u</T><T>2:x</T></P>", "length")


def test_an_answer_whose_last_thread_was_refused_a_token_is_cut(play_of):
    fields = {"join": {"kind": "finish"}, "thread": {"header": "<T>{n}:"}}
    play = play_of(request={"max_tokens": 5}, policies={"thread_length": "close_thread"}, **fields)
    play.step(root="a<F>")
    play.step(t0="u\0", t1="xy\0")
    assert play.done()[-1] == "EndFamily length"
    assert (play.answer, play.finish) == ("a<F><T>1:u<T>2:x", "length")


def test_a_thread_whose_end_was_told_is_not_told_of_again_where_its_last_kv_never_comes(play_of):
    play = play_of(request={"max_tokens": 5, "is_late": True}, join=JOIN | {"kind": "stitch"})
    play.step(root="a<F>")
    play.done()
    play.step(t0="u</T>", closes=False)
    assert play.done() == ["Keep t0"]
    play.step(t1="x", closes=False)
    assert play.done() == ["EndFamily length t0 t1"]
    assert ends(play) == [(0, "stop", None), (1, "cancelled", None)]


def test_a_thread_that_spends_the_budget_ends_a_parent_that_would_go_on(play_of):
    play = play_of(request={"max_tokens": 7}, join={"kind": "splice"}, width=1)
    play.step(root="a<F>bc")
    play.done()
    play.step(t0="uv</T>")
    assert play.done() == ["Keep t0", "PrefillFinishedThreads root", "EndFamily length"]
    assert (play.answer, play.finish) == ("a<F><T>1:uv</T>bc", "length")


def test_an_answer_that_a_thread_ends_with_the_last_token_of_the_budget_is_not_cut(play_of):
    play = play_of(request={"max_tokens": 6}, policies={"thread_eos": "end_request"})
    play.step(root="a<F>")
    play.step(t0="u\0")
    play.step(t1="x</T>")
    assert play.done()[-1] == "EndFamily stop"
    assert (play.answer, play.finish) == ("a<F><T>1:u</T><T>2:x</T></P>\0", "stop")


def test_a_fork_in_the_step_in_which_another_spends_the_budget_ends_with_all(play_of):
    play = play_of(request={"max_tokens": 4}, max_depth=2)
    play.step(root="<F>")
    play.done()
    play.step(t0="x<F>", t1="y")
    assert play.done() == [
        *("Park t0", "Start t2", "Start t3", "ShareTail t0"),
        "EndFamily length t0 t2 t3 t1",
    ]
    inner = "<T>1:</T><T>2:</T></P>"
    assert (play.answer, play.finish) == (f"<F><T>1:x<F>{inner}</T><T>2:y</T></P>", "length")


def test_a_stop_token_goes_before_a_budget_that_is_spent_in_the_same_step(play_of):
    play = play_of(request={"max_tokens": 5, "stop": "!"}, join={"kind": "splice"})
    play.step(root="a<F>b")
    play.done()
    play.step(t1="!", t0="xy")
    assert play.done() == ["Keep t1", "PrefillFinishedThreads root", *ENDED_FIRST, "EndFamily stop"]
    assert (play.answer, play.finish) == ("a<F><T>1:x</T><T>2:!", "stop")


def test_a_budget_binds_where_nobody_waits_for_threads(play_of):
    play = play_of(request={"max_tokens": 6}, join={"kind": "splice"})
    play.step(root="a<F>b")
    play.done()
    play.step(t1="x", root="cd", t0="y")
    assert play.done() == ["EndFamily length t0 t1"]
    assert play.machine.family.num_generated == 6
    assert play.answer == "a<F><T>1:</T><T>2:x</T>bcd"
    assert play.finish == "length"


def test_a_thread_does_not_fork_behind_the_budget(play_of):
    play = play_of(request={"max_tokens": 5}, join={"kind": "splice"}, max_depth=2)
    play.step(root="a<F>")
    play.done()
    play.step(t1="yz", t0="x<F>")
    assert play.done() == ["EndFamily length t0 t1"]
    assert play.answer == "a<F><T>1:x</T><T>2:yz</T>"


def test_a_thread_may_write_what_is_left_of_the_budget_and_of_its_own(play_of):
    play = play_of(request={"max_tokens": 10}, limits={"max_tokens_per_thread": 5})
    play.step(root="a<F>")
    assert list(play.stage.left.values())[1:] == [5, 5]
    play = play_of(request={"max_tokens": 6}, limits={"max_tokens_per_thread": 5})
    play.step(root="a<F>")
    assert list(play.stage.left.values())[1:] == [4, 4]


def _last_said(play) -> list[tuple[str, str]]:
    return [(e.reason, e.policy) for e in play.machine.events if isinstance(e, Limited | Refused)][-1:]


def test_an_answer_ends_behind_the_join_of_its_last_turn(play_of):
    """A stretch of text and a fork are a turn each."""
    play = play_of(max_turns=4, join={"kind": "reprefill", "text": "<J>", "close_block": "</P>"})
    play.step(root="a<F>")
    play.step(t0="x</T>", t1="y</T>")
    play.step(root="b<F>")
    play.step(t2="x</T>", t3="y</T>")
    block = "<F><T>1:x</T><T>2:y</T><J>"
    assert (play.answer, play.finish) == (f"a{block}b{block}", "length")
    assert _last_said(play) == [("too_many_turns", "end_request")]


def test_a_refused_fork_ends_a_turn_and_with_the_last_the_answer(play_of):
    play = play_of(outline=OUTLINE, max_turns=4)
    play.step(root="a<F>")
    play.step(root="<O>1<F>")
    play.step(t0="x</T>")
    assert play.finish is None
    play.step(root="b<F>")
    assert play.finish == "length"
    assert _last_said(play) == [("too_many_turns", "end_request")]


def test_forks_of_threads_are_no_turns_of_the_answer(play_of):
    play = play_of(max_turns=4, max_depth=2)
    play.step(root="a<F>")
    play.step(t0="<F>", t1="y</T>")
    play.step(t2="x</T>", t3="y</T>")
    play.step(t0="</T>")
    assert play.finish is None


@pytest.mark.parametrize(("max_tokens", "forks"), [(10, True), (9, False)])
def test_what_a_fork_needs_of_max_tokens_is_counted_from_the_prompt(play_of, max_tokens, forks):
    play = play_of(request={"max_tokens": max_tokens, "prompt": "Q" * 50}, min_left=7)
    play.step(root="ab<F>")
    assert (play.done() != []) is forks
    assert refused(play) == ([] if forks else [(-1, "no_room", "sequential")])


@pytest.mark.parametrize("wrote", [["<F>", "b<F>"], ["<F>b<F>"]], ids=["in two steps", "in one"])
@pytest.mark.parametrize(("max_open", "forks"), [(4, True), (3, False)])
def test_a_fork_into_more_threads_than_may_run_is_refused(play_of, wrote, max_open, forks):
    play = play_of(join={"kind": "splice"}, max_open=max_open)
    for text in wrote:
        play.step(root=text)
    assert len(play.machine.family.threads) == (4 if forks else 2)
    assert refused(play) == ([] if forks else [(-1, "too_many_open", "sequential")])


def test_threads_that_have_ended_make_room_for_others(play_of):
    play = play_of(join={"kind": "splice"}, max_open=3)
    play.step(root="<F>")
    play.step(t0="x</T>")
    play.step(root="<F>")
    assert (len(play.machine.family.threads), refused(play)) == (4, [])


def test_of_a_reserve_each_thread_counts_for_all_of_its_fork(play_of):
    play = play_of(request={"max_tokens": 100, "prompt": "Q" * 50}, reserve=20)
    machine, context = play.machine, 50 + len("<F>") - 2
    play.step(root="<F>")
    (first, _) = machine.family.threads
    assert play.stage.left[first] == -(-(100 - 20 - (len(play.stage.contexts[first]) - 50)) // 2)
    assert machine.room(play.root, context) == 100 - 20 - 1
