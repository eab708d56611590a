"""Each kind of join, played by hand: what is done when, and what of the answer leaves when."""

from __future__ import annotations

import random

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.publish.events import (
    Forked,
    ForkLatency,
    JoinLatency,
    Limited,
    Progress,
    Refused,
    Tokens,
    Tolerated,
)
from tests.unit.scheduler.machine.stepping import Play

TAGGED = {"header": "<T>{n}:", "end": "</T>"}
FORKS = ["Park root", "Start t0", "Start t1"]
JOINED = "<T>1:uv</T><T>2:xy</T><J>"


@pytest.mark.parametrize("kind", ["reprefill", "stitch"])
def test_threads_stand_in_the_answer_and_in_the_context_in_outline_order(make_dialect, kind):
    play = Play(make_dialect(thread=TAGGED, join={"kind": kind, "text": "<J>"}))
    play.step(root="ab<F>")
    assert play.done() == [*FORKS, "ShareTail root"]
    assert play.answer == "ab<F><T>1:"
    play.step(t1="xy</T>", t0="u")
    assert play.done() == ["Keep t1", "PrefillFinishedThreads root"]
    assert play.answer == "ab<F><T>1:u", "the second waits for its turn"
    play.step(t0="v</T>")
    assert play.done() == ["Keep t0", "PrefillFinishedThreads root", f"Resume root {JOINED}"]
    assert play.text(play.root) == f"Qab<F>{JOINED}"
    play.step(root="c\0")
    assert play.done() == []
    assert (play.answer, play.finish) == (f"ab<F>{JOINED}c\0", "stop")
    assert [(e.index, play.tokenizer.decode(e.token_ids)) for e in play.told(Tokens)] == [
        (1, "xy</T>"),
        (0, "u"),
        (0, "v</T>"),
    ]


def test_a_reprefill_holds_no_blocks_where_the_joined_context_does_not_begin_with_the_first_thread(
    make_dialect,
):
    play = Play(make_dialect(thread=TAGGED, join={"kind": "reprefill", "text": "<J>", "opened": "<O>"}))
    play.step(root="ab<F>")
    assert play.done() == FORKS
    play.step(t0="u</T>", t1="v</T>")
    assert play.done()[-1] == "Resume root <O><T>1:u</T><T>2:v</T><J>"


def test_a_stitched_join_waits_until_the_kv_that_closes_its_threads_is_there(make_dialect):
    dialect = make_dialect(thread=TAGGED, join={"kind": "stitch"})
    play = Play(dialect, is_late=True)
    play.step(root="ab<F>")
    play.step(t0="u</T>", t1="v</T>", closes=False)
    assert play.done()[-2:] == ["Keep t0", "Keep t1"]
    play.step(closes=False)
    assert play.done() == []
    assert play.answer == "ab<F><T>1:u</T><T>2:v</T>", "what they wrote has left"
    play.step()
    assert play.done() == [
        "PrefillFinishedThreads root",
        "PrefillFinishedThreads root",
        "Resume root <T>1:u</T><T>2:v</T><J>",
    ]


def test_positions_go_on_from_the_longest_of_stitched_threads(make_dialect):
    dialect = make_dialect(
        thread=TAGGED, join={"kind": "stitch"}, positions={"fork_gap": 3, "join_gap": 2}, max_depth=2
    )
    play = Play(dialect)
    play.step(root="ab<F>")  # 4 tokens, so the last has position 3
    assert [t.offset for t in play.machine.family.threads] == [2, 2]
    play.step(t0="u</T>", t1="vwx</T>")
    # of the second thread, headers of 5: its 9 tokens lie at 6 to 14; the next token is at 16, in slot 20
    assert play.root.stitched_len == 4 + 7 + 9
    assert play.root.offset == 16 - 20


def test_a_rewrite_puts_what_returns_in_the_place_of_the_call(make_dialect):
    thread = {"header": "do {n}:", "context": "header", "end": "</T>", "returns": "[0-9]+"}
    thread |= {"joined_header": "{n}=", "first_joined_header": "1=", "failed_header": "{n}?"}
    play = Play(make_dialect(thread=thread, join={"kind": "rewrite", "opens": "call", "text": "<J>"}))
    play.step(root="a call<F>")
    assert play.done() == FORKS
    assert [play.text(t) for t in play.machine.family.threads] == ["do 1:", "do 2:"]
    assert play.answer == "a call<F>"
    play.step(t0="x42y</T>", t1="no</T>")
    assert play.done() == [
        *("Keep t0", "PrefillFinishedThreads root", "Keep t1", "PrefillFinishedThreads root"),
        "Resume root 3 1=422?<J>",
    ]
    assert play.text(play.root) == "Qa 1=422?<J>", "the call is no more"
    assert play.answer == "a call<F>1=422?<J>"
    play.step(root="c\0")
    assert play.finish == "stop"


def test_threads_share_no_more_with_their_parent_than_a_rewrite_has_left(make_dialect):
    play = Play(make_dialect(thread=TAGGED, join={"kind": "rewrite", "opens": "call", "text": "<J>"}))
    play.step(root="a call<F>")
    play.step(t0="u</T>", t1="x</T>")
    assert play.text(play.root) == "Qa <T>1:u</T><T>2:x</T><J>"
    assert [t.fork_len for t in play.machine.family.threads] == [3, 3]


def test_a_parent_whose_threads_are_spliced_goes_on_beside_them(make_dialect):
    play = Play(make_dialect(thread=TAGGED, join={"kind": "splice"}))
    play.step(root="a<F>b")
    assert play.done() == ["Start t0", "Start t1"], "it does not stand still"
    assert play.answer == "a<F><T>1:"
    play.step(root="c<F>d", t1="y</T>")
    assert play.done() == ["Start t2", "Start t3", "Keep t1", "PrefillFinishedThreads root"]
    play.step(t2="p</T>", t0="x</T>", root="e\0")
    assert play.done() == [
        "Keep t2",
        "PrefillFinishedThreads root",
        "Keep t0",
        "PrefillFinishedThreads root",
        "Forget",
    ]
    assert play.answer == "a<F><T>1:x</T><T>2:y</T>bc<F><T>1:p</T><T>2:"
    assert play.finish is None, "the root has ended, and a thread has not"
    play.step(t3="q</T>")
    assert play.done() == ["Keep t3", "PrefillFinishedThreads root"]
    assert play.answer == "a<F><T>1:x</T><T>2:y</T>bc<F><T>1:p</T><T>2:q</T>de\0"
    assert play.finish == "stop"


def test_a_spliced_thread_does_not_see_the_trigger_where_it_is_trained_without(make_dialect):
    thread = {"header": "<C>", "without_trigger": True}
    play = Play(make_dialect(thread=thread, width=1, join={"kind": "splice"}))
    play.step(root="a<F>b")
    assert play.text(play.machine.family.threads[0]) == "Qa<C>"
    assert play.text(play.root) == "Qa<F>b"


def test_a_spliced_thread_forks_and_ends_in_one_step(make_dialect):
    play = Play(make_dialect(thread=TAGGED, width=1, join={"kind": "splice"}, max_depth=2))
    play.step(root="a<F>b\0")
    play.done()
    play.step(t0="u<F>v</T>")
    assert play.done() == ["Start t1", "Keep t0", "PrefillFinishedThreads root"]
    assert play.finish is None
    play.step(t1="x</T>")
    assert (play.answer, play.finish) == ("a<F><T>1:u<F><T>1:x</T>v</T>b\0", "stop")


def test_spliced_text_begins_with_newlines_in_the_answer_and_not_in_a_context(make_dialect):
    thread = {"header": "<T>", "newlines": 1, "newlines_after": "[0-9][.]"}
    play = Play(make_dialect(thread=thread, width=1, join={"kind": "splice", "newlines": 2}))
    play.step(root="1.<F>\nb")
    play.step(t0="x\0", root="c<F>\n")
    play.step(t1="y\0")
    play.step(root="\nd\0")
    # the model wrote one of the two newlines the first time, and both the second; no number before the second fork
    assert play.answer == "1.<F><T>\nx\n\nbc<F><T>y\n\nd\0"
    surplus = len("<T>\n\n") + len("<T>") - len("\0") - len("\0")
    assert play.machine.counts(Progress).surplus_tokens == surplus


ON_DEMAND = {
    "tags_are": "text",
    "trigger": "<F[0-9]>",
    "outline": {"pattern": "<F(?P<number>[0-9])>"},
    "thread": {
        "context": "header",
        "header": "do {n}:",
        "first_joined_header": "",
        "end": "</R>",
        "returns": "(?P<result>[^<]*)</R>",
        "returned_end": "</W{n}>",
    },
    "join": {"kind": "on_demand", "ask": "<W(?P<number>[0-9])>", "close_block": "</P>"},
}


def test_a_branch_waits_for_a_thread_from_when_it_asks_for_it(make_dialect):
    play = Play(make_dialect(**ON_DEMAND))
    play.step(root="a<F1>b<F2>")
    assert play.done() == ["Start t0", "Start t1"]
    assert play.answer == "a<F1>b<F2>"
    play.step(root="c<W2>never heard")
    assert play.done() == ["Park root"]
    play.step(t0="x</R>")
    assert play.done() == ["Keep t0", "PrefillFinishedThreads root"], "it has not been asked for"
    play.step(t1="y</R>")
    assert play.done() == ["Keep t1", "PrefillFinishedThreads root", "Resume root y</W2>"]
    assert play.text(play.root) == "Qa<F1>b<F2>c<W2>y</W2>"
    play.step(root="<W1>")
    assert play.done() == ["Park root", "Resume root x</W1>"], "it had ended before"
    play.step(root="d\0")
    assert play.done() == ["Forget"]
    assert (play.answer, play.finish) == ("a<F1>b<F2>c<W2>y</W2><W1>x</W1>d\0", "stop")


def test_a_branch_joins_once_where_a_sibling_of_the_thread_it_asked_for_ends_in_the_same_step(make_dialect):
    play = Play(make_dialect(**ON_DEMAND))
    play.step(root="<F1><F2><W1>")
    play.done()
    play.step(t0="x</R>", t1="y</R>")
    assert play.done() == [
        *("Keep t0", "PrefillFinishedThreads root", "Keep t1", "PrefillFinishedThreads root"),
        "Resume root x</W1>",
    ]


def test_threads_that_nobody_asked_for_end_with_their_parent(make_dialect):
    play = Play(make_dialect(**ON_DEMAND))
    play.step(root="a<F1>")
    play.done()
    play.step(t0="x", root="b\0")
    assert play.done() == ["Forget t0"]
    assert (play.answer, play.finish) == ("a<F1>b\0", "stop")


@pytest.mark.parametrize("steps", [["<F1>a<F1>b"], ["<F1>a", "<F1>b"]])
def test_a_thread_of_a_number_that_there_is_already_is_not_started(make_dialect, steps):
    play = Play(make_dialect(**ON_DEMAND))
    for wrote in steps:
        play.step(root=wrote)
    assert play.done() == ["Start t0"]
    assert [(e.reason, e.policy) for e in play.told(Refused)] == [("duplicate_outline", "sequential")]
    assert play.answer == "<F1>a<F1>b"


@pytest.mark.parametrize(
    ("policy", "effects", "answer", "finish"),
    [
        ("sequential", [], "a<F1><W2>b", None),
        ("end_request", ["EndFamily length t0"], "a<F1><W2></P>", "length"),
    ],
)
def test_a_thread_that_there_is_not_is_asked_for(make_dialect, policy, effects, answer, finish):
    play = Play(make_dialect(**ON_DEMAND, policies={"unknown_thread": policy}))
    play.step(root="a<F1>")
    play.done()
    play.step(root="<W2>b")
    assert (play.done(), play.answer, play.finish) == (effects, answer, finish)


@pytest.mark.parametrize(
    ("policy", "told", "answer", "finish"),
    [
        ("repeat", [("tolerated", "repeat")], "a<F1><W1>x</W1><W1>x</W1>b", None),
        ("sequential", [("refused", "sequential")], "a<F1><W1>x</W1><W1>b", None),
        ("end_request", [("refused", "end_request")], "a<F1><W1>x</W1><W1></P>", "length"),
    ],
)
def test_a_thread_is_asked_for_again(make_dialect, policy, told, answer, finish):
    play = Play(make_dialect(**ON_DEMAND, policies={"joined_again": policy}))
    play.step(root="a<F1>")
    play.step(root="<W1>", t0="x</R>")
    play.step(root="<W1>")
    if finish is None:
        play.step(root="b")
    assert (play.answer, play.finish) == (answer, finish)
    again = [e for e in play.machine.events if getattr(e, "reason", None) == "joined_again"]
    assert [(e.kind, e.policy) for e in again] == told


SYNC = {
    "tags_are": "text",
    "trigger": "<F[0-9]>",
    "outline": {"pattern": "<F(?P<number>[0-9])>"},
    "thread": {"context": "header", "header": "do {n}:", "first_joined_header": "{n}=", "end": "</R>"},
    "join": {"kind": "sync", "sync": "<W>", "text": "<J>"},
}


def test_a_sync_waits_for_all_threads_that_were_started_since_the_last(make_dialect):
    play = Play(make_dialect(**SYNC))
    play.step(root="a<F1>b<F2>c<W>never heard")
    assert play.done() == ["Start t0", "Start t1", "Park root"]
    play.step(t1="y</R>")
    assert play.done() == ["Keep t1", "PrefillFinishedThreads root"]
    play.step(t0="x</R>")
    assert play.done() == ["Keep t0", "PrefillFinishedThreads root", "Resume root 1=x</R>2=y</R><J>"]
    play.step(root="<F3><W>")
    play.step(t2="z</R>")
    assert play.done()[-1] == "Resume root 3=z</R><J>", "those before it have returned"
    play.step(root="<W>d\0")
    assert play.done() == ["Forget"], "there is nothing to wait for"
    joined = "a<F1>b<F2>c<W>1=x</R>2=y</R><J><F3><W>3=z</R><J>"
    assert (play.answer, play.finish) == (f"{joined}<W>d\0", "stop")


IN_PLACE = SYNC | {
    "thread": {"header": "[", "end": "]", "close": "]"},
    "join": {"kind": "in_place", "sync": "<W>"},
}


def test_behind_a_sync_in_place_each_thread_stands_where_it_was_started(make_dialect):
    play = Play(make_dialect(**IN_PLACE))
    play.step(root="a<F1>b<F2>c<W>never heard")
    assert play.done() == ["Start t0", "Start t1", "Park root"]
    play.step(t1="y]")
    assert play.answer == "a<F1>[", "the answer has them in their places, too"
    play.step(t0="x]")
    assert play.done()[-1] == "Resume root 6 [x]b<F2>[y]c<W>"
    play.step(root="d<F3>e<W>")
    play.step(t2="z]")
    assert play.done()[-1] == "Resume root 26 [z]e<W>", "what was joined before stays"
    play.step(root="f\0")
    assert (play.answer, play.finish) == ("a<F1>[x]b<F2>[y]c<W>d<F3>[z]e<W>f\0", "stop")


def test_what_no_sync_waits_for_goes_on_behind_the_end_of_its_parent(make_dialect):
    play = Play(make_dialect(**IN_PLACE))
    play.step(root="a<F1>b\0")
    assert (play.answer, play.finish) == ("a<F1>[", None)
    play.step(t0="x]")
    assert (play.answer, play.finish) == ("a<F1>[x]b\0", "stop")


def test_a_thread_that_syncs_in_place_returns_its_text_with_its_own_threads_in_it(make_dialect):
    play = Play(make_dialect(**IN_PLACE, max_depth=2))
    play.step(root="a<F1>")
    play.step(root="b<W>", t0="c<F2>d<W>")
    play.step(t1="x]")
    assert play.done()[-1] == "Resume t0 12 [x]d<W>"
    play.step(t0="e]")
    assert play.done()[-1] == "Resume root 6 [c<F2>[x]d<W>e]b<W>"
    assert play.answer == "a<F1>[c<F2>[x]d<W>e]b<W>"


ROUNDS = {
    "fork_at": "prompt",
    "trigger": None,
    "thread": {"header": "", "returns": r"[0-9][\s\S]*"},
    "join": {
        "kind": "rounds",
        "then": [1],
        "prompt": "{prompt} of{references}?",
        "reference": " {n}={returned}",
    },
    "policies": {"thread_length": "close_thread"},
}


def test_what_a_round_returns_asks_the_next_and_the_last_asks_for_one_answer(make_dialect):
    play = Play(make_dialect(**ROUNDS), prompt="<B>Which<A>")
    play.step(root="dropped")
    assert play.done() == ["Park root", "Start t0", "Start t1"]
    play.step(t0="x1\0", t1="y2")
    play.step(t1="3\0")
    assert play.done()[-1] == "Resume root 1 Which of 1=1 2=23?<A>"
    play.step(root="dropped")
    assert play.done() == ["Park root", "Start t2"]
    assert play.text(play.machine.family.threads[2]) == "<B>Which of 1=1 2=23?<A>", "a prompt of its own"
    play.step(t2="no4\0")
    assert play.done()[-1] == "Resume root 1 Which of 1=4?<A>", "the question is the user's own"
    play.step(root="so 4\0")
    assert (play.answer, play.finish) == ("so 4\0", "stop")
    assert [len(e.threads) for e in play.told(Forked)] == [2, 1]


def test_what_wrote_nothing_is_no_reference_and_what_has_no_match_an_empty_one(make_dialect):
    play = Play(make_dialect(**ROUNDS))
    play.step(root="dropped")
    play.step(t0="\0", t1="x\0")
    assert play.done()[-1] == "Resume root 0 Q of 1=?"


@pytest.mark.parametrize(
    ("policy", "counted", "finish"),
    [("end_request", [], "length"), ("drop", [("prompt_too_long", "drop")], None)],
)
def test_a_prompt_that_would_not_fit_comes_to_what_the_dialect_says(make_dialect, policy, counted, finish):
    policies = {"policies": ROUNDS["policies"] | {"prompt_too_long": policy}}
    play = Play(make_dialect(**ROUNDS | policies), max_model_len=18)
    play.step(root="dropped")
    play.step(t0="1234567\0", t1="2\0")
    assert [(e.reason, e.policy) for e in play.told(Tolerated)] == counted
    assert [e.reason for e in play.told(Limited)] == ([] if counted else ["prompt_too_long"])
    assert (play.answer, play.finish) == ("", finish)
    assert play.done()[-1] == ("Resume root 0 Q of 1=2?" if counted else "EndFamily length")


@pytest.mark.parametrize("silent", [0, 1, 2])
def test_a_thread_that_wrote_nothing_has_a_place_in_the_shuffled_order(make_dialect, silent):
    """The published client sorts and shuffles all, and leaves it out then."""
    wrote = ["" if n == silent else text for n, text in enumerate(("1", "22", "333"))]
    order = sorted(wrote, key=len)
    random.Random(42).shuffle(order)
    shuffled = {"join": ROUNDS["join"] | {"shuffled_by": 42}, "width": 3}
    play = Play(make_dialect(**ROUNDS | shuffled))
    play.step(root="dropped")
    play.step(**{f"t{n}": f"{text}\0" for n, text in enumerate(wrote)})
    asked = "".join(f" {n}={text}" for n, text in enumerate(filter(None, order), 1))
    assert play.done()[-1] == f"Resume root 0 Q of{asked}?"


@pytest.mark.parametrize("num", [0, 1, 2, 3])
def test_as_few_references_are_left_out_as_make_room_and_the_longest_first(make_dialect, num):
    returned = ["22", "4444", "1", "333"]
    left = [text for text in returned if len(text) <= 4 - num]
    asked = "Q of" + "".join(f" {n}={text}" for n, text in enumerate(left, 1)) + "?"
    policies = {"policies": ROUNDS["policies"] | {"prompt_too_long": "drop"}, "width": 4}
    play = Play(make_dialect(**ROUNDS | policies), max_model_len=len(asked) + 1)
    play.step(root="dropped")
    play.step(**{f"t{n}": f"{text}\0" for n, text in enumerate(returned)})
    assert play.done()[-1] == f"Resume root 0 {asked}"
    assert [e.num for e in play.told(Tolerated)] == ([num] if num else [])


def test_a_round_that_may_not_fork_is_the_last(make_dialect):
    play = Play(make_dialect(**ROUNDS), limits=Limits(max_forks=1))
    play.step(root="dropped")
    play.step(t0="1\0", t1="2\0")
    play.step(root="dropped")
    assert [(e.reason, e.policy) for e in play.told(Refused)] == [("too_many_forks", "sequential")]
    play.step(root="so\0")
    assert (play.answer, play.finish) == ("so\0", "stop")


def test_each_answer_of_each_round_has_as_many_tokens_as_the_request(make_dialect):
    play = Play(make_dialect(**ROUNDS), max_tokens=3)
    assert play.machine.family.max_tokens == 3 * (2 + 1 + 1)
    play.step(root="dropped")
    play.step(t0="12345", t1="67890")
    assert play.done()[-1] == "Resume root 0 Q of 1=123 2=678?"
    play.step(root="dropped")
    play.step(t2="1\0")
    play.step(root="abcdef")
    assert (play.answer, play.finish) == ("abc", "length")


def test_a_cancelled_thread_is_a_reference_as_far_as_it_came(make_dialect):
    play = Play(make_dialect(**ROUNDS))
    play.step(root="dropped")
    play.step(t0="12", t1="3\0")
    play.cancel(0)
    play.step(t0="4")
    assert play.done()[-1] == "Resume root 0 Q of 1=124 2=3?"


def test_a_finish_ends_the_answer_behind_the_threads(make_dialect):
    play = Play(make_dialect(join={"kind": "finish", "text": "<J>"}))
    play.step(root="ab<F>")
    assert play.done() == FORKS
    play.step(t1="y\0")
    play.step(t0="x\0")
    assert play.done()[-3:] == ["Keep t0", "PrefillFinishedThreads root", "EndFamily stop"]
    assert (play.answer, play.finish) == ("ab<F><T>1:x<T>2:y<J>\0", "stop")


def test_a_finish_of_threads_that_all_ran_out_of_tokens_is_cut(make_dialect):
    limits = {"max_tokens_per_thread": 2}
    policies = {"thread_length": "close_thread"}
    play = Play(make_dialect(join={"kind": "finish"}, limits=limits, policies=policies))
    play.step(root="ab<F>")
    play.step(t1="uvw", t0="xyz")
    assert play.done()[-1] == "EndFamily length"
    assert (play.answer, play.finish) == ("ab<F><T>1:xy<T>2:uv", "length")


# ---- threads that fork ----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reprefill", "stitch"])
def test_a_thread_that_forks_stands_still_and_goes_on_behind_its_own(make_dialect, kind):
    dialect = make_dialect(thread=TAGGED, join={"kind": kind, "text": "<J>"}, max_depth=2)
    play = Play(dialect)
    play.step(root="<F>")
    play.step(t0="a<F>")
    assert play.done()[4:] == ["Park t0", "Start t2", "Start t3", "ShareTail t0"]
    play.step(t1="b</T>", t3="d</T>", t2="c</T>")
    assert play.done()[-1] == "Resume t0 <T>1:c</T><T>2:d</T><J>"
    assert play.answer == "<F><T>1:a<F><T>1:c</T><T>2:d</T><J>"
    play.step(t0="e</T>")
    inner = "a<F><T>1:c</T><T>2:d</T><J>e</T>"
    assert play.done() == ["Keep t0", "PrefillFinishedThreads root", f"Resume root <T>1:{inner}<T>2:b</T><J>"]
    assert play.answer == f"<F><T>1:{inner}<T>2:b</T><J>"


def test_a_thread_ends_with_its_threads_where_nothing_follows_them(make_dialect):
    play = Play(make_dialect(join={"kind": "finish"}, max_depth=2))
    play.step(root="<F>")
    play.step(t0="a<F>", t1="b\0")
    play.done()
    play.step(t2="c\0", t3="d\0")
    assert play.done()[-4:] == [
        "EndJoined t0 stop",
        "Keep t0",
        "PrefillFinishedThreads root",
        "EndFamily stop",
    ]
    assert (play.answer, play.finish) == ("<F><T>1:a<F><T>1:c<T>2:d<T>2:b\0", "stop")


def test_a_second_fork_sees_what_was_joined_of_the_first(make_dialect):
    play = Play(make_dialect(thread=TAGGED, join={"kind": "stitch"}))
    for first in (0, 2):
        play.step(root="a<F>")
        play.step(**{f"t{first}": "x</T>", f"t{first + 1}": "y</T>"})
    joined = "a<F><T>1:x</T><T>2:y</T><J>"
    assert play.text(play.root) == "Q" + 2 * joined
    assert play.answer == 2 * joined
    assert play.machine.family.threads[2].fork_len == len(play.tokenizer.encode(f"Q{joined}a<F>"))


# ---- what is told and counted ---------------------------------------------------------------


def test_the_first_token_behind_a_fork_and_behind_a_join_tells_how_long_that_took(make_dialect):
    play = Play(make_dialect(thread=TAGGED, join={"kind": "reprefill"}))
    seen = []
    for wrote in [{"root": "a<F>"}, {"t1": "x"}, {"t0": "u"}, {"t0": "</T>", "t1": "</T>"}, {"root": "b"}]:
        play.step(**wrote)
        seen.append((len(play.told(ForkLatency)), len(play.told(JoinLatency))))
    play.step(root="c")
    assert [*seen, (len(play.told(ForkLatency)), len(play.told(JoinLatency)))] == [
        *[(0, 0), (1, 0), (1, 0), (1, 0), (1, 1), (1, 1)]
    ]


def test_the_longest_path_goes_through_the_longest_thread(make_dialect):
    play = Play(make_dialect(thread=TAGGED, join={"kind": "reprefill"}))
    play.step(root="a<F>")
    play.step(t0="uvw</T>", t1="x</T>")
    play.step(root="bc")
    counts = play.machine.counts(Progress)
    assert (counts.num_threads, counts.total_tokens, counts.critical_path_tokens) == (2, 10, 2 + 4 + 2)


def test_a_thread_that_starts_in_the_middle_of_a_step_has_the_path_up_to_there(make_dialect):
    play = Play(make_dialect(thread=TAGGED, width=1, join={"kind": "splice"}))
    play.step(root="ab<F>cdef")
    assert [t.num_critical for t in play.machine.family.threads] == [3]
    play.step(root="g", t0="u")
    assert play.machine.family.num_critical == 8


def test_no_two_stretches_of_text_have_the_same_noise(make_dialect):
    play = Play(make_dialect(thread=TAGGED, join={"kind": "reprefill"}, max_depth=2))
    play.step(root="<F>")
    play.step(t0="<F>", t1="<F>")
    branches = list(play.root.subtree())
    assert len(branches) == 7
    salts = [play.machine.next_salt(branch) for branch in 2 * branches]
    assert len(set(salts)) == 14


SUMMARISED = {
    "thread": TAGGED,
    "join": {"kind": "reprefill", "text": "<J>", "close_block": "</P>"},
    "summary": {"end": "</S>"},
    "policies": {"summary_eos": "close_summary"},
}
SUMMARY_BLOCK = "<F><T>1:x</T><T>2:y</T><J>"


def _summarising(dialect, **request) -> Play:
    play = Play(dialect, **request)
    play.step(root="a<F>")
    play.step(t0="x</T>", t1="y</T>")
    play.done()
    return play


def test_nothing_forks_in_a_summary_and_behind_its_end_tag_all_is_as_before(make_dialect):
    play = _summarising(make_dialect(**SUMMARISED))
    play.step(root="b<F>c")
    assert play.done() == []
    assert [(e.reason, e.policy) for e in play.told(Refused)] == [("nested_fork", "sequential")]
    play.step(root="</S>d<F>")
    assert play.done()[:3] == ["Park root", "Start t2", "Start t3"]
    assert play.answer == f"a{SUMMARY_BLOCK}b<F>c</S>d<F><T>1:"


def test_an_end_of_sequence_in_a_summary_becomes_its_end_tag(make_dialect):
    play = _summarising(make_dialect(**SUMMARISED))
    play.step(root="b\0")
    at = len(play.text(play.root)) - len("</S>")
    assert [e.partition(" ")[0] for e in play.done()] == ["Swap"]
    assert play.text(play.root).endswith("<J>b</S>"), at
    assert [(e.reason, e.policy) for e in play.told(Refused)] == [("summary_eos", "close_summary")]
    play.step(root="c\0")
    assert (play.answer, play.finish) == (f"a{SUMMARY_BLOCK}b</S>c\0", "stop")


def test_an_end_of_sequence_in_a_summary_ends_the_answer_where_the_dialect_says_nothing_else(make_dialect):
    play = _summarising(make_dialect(**SUMMARISED | {"policies": {}}))
    play.step(root="b\0")
    assert (play.answer, play.finish) == (f"a{SUMMARY_BLOCK}b\0", "stop")


@pytest.mark.parametrize("wrote", ["b</S>", "b\0"])
def test_an_answer_of_summaries_ends_behind_the_last(make_dialect, wrote):
    play = _summarising(make_dialect(**SUMMARISED, max_turns=2))
    assert play.finish is None
    play.step(root=wrote)
    assert (play.answer, play.finish) == (f"a{SUMMARY_BLOCK}b</S>", "length")
    assert [e.reason for e in play.told(Refused)][-1] == "too_many_turns"


def test_a_join_between_stages_is_no_turn_of_the_answer():
    play = Play(load("medverse").model_copy(update={"max_turns": 2}), max_tokens=500, max_model_len=3000)
    steps = "".join(f"Transient Step {n}: a; Dependency: [{n - 1}]" for n in (1, 2))
    play.step(root=f"<Plan>{steps}</Plan>")
    play.step(t0="x</Step>")
    assert play.finish is None
    play.step(root="dropped")
    play.step(t1="y</Step>")
    assert (play.finish, play.answer.count("</Step>")) == ("length", 2)
