"""Structured output holds for the answer, and what stands before that forks and joins."""

from __future__ import annotations

import json
import re
from concurrent.futures import Future

import pytest
from vllm.sampling_params import StructuredOutputsParams

from forkjoin_scheduler.dialects.dialect import Answer, Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.joins.kinds import make_join
from tests.engine import renamed

pytestmark = pytest.mark.engine

OUTLINES = "<Parallel><Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"
GOAL = "<Parallel><Goal><Outline>1: a</Outline><Outline>2: b</Outline></Goal>"
DIGITS = "[0-9]{6}"
PARSER = "deepseek_r1"
BEHIND = "</think>"


@pytest.fixture(scope="module")
def model_of(tmp_path_factory):
    models = {}

    def find(name):
        if name not in models:
            models[name] = renamed.model_for(name, tmp_path_factory.mktemp)
        return models[name]

    return find


@pytest.fixture
def drive(model_of):
    from tests.engine.answering import Answering

    def make(dialect: str | Dialect = "threadweaver", **options):
        dialect = renamed.dialect_for(dialect) if isinstance(dialect, str) else dialect
        return Answering(dialect, model_of(dialect.name), **options)

    return make


def changed(name="threadweaver", *, join=None, **own):
    dialect = load(name)
    if join is not None:
        own["join"] = make_join(**dialect.join.model_dump() | join).model_dump()
    return Dialect.model_validate(dialect.model_dump() | own)


def _fork_and_join(hand, trigger=OUTLINES, end="</Thread>", request="r"):
    hand.say(request, trigger)
    hand.steps_until(lambda: hand.decodes(f"{request}#0") and hand.decodes(f"{request}#1"))
    for thread in (f"{request}#0", f"{request}#1"):
        hand.say(thread, f"abc{end}")
    hand.steps_until(lambda: f"{request}#0" not in hand.scheduler.requests and hand.decodes(request))


def _answer(hand, request="r", behind=BEHIND):
    """What follows the reasoning, when all is written."""
    hand.finish()
    return hand.text(request).rpartition(behind)[2].removesuffix("<|end|>")


both_modes = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


# ---- behind the reasoning, as vLLM's parser sees it ---------------------------------------------


@both_modes
def test_the_reasoning_forks_and_the_answer_obeys(drive, is_async):
    hand = drive(reasoning_parser=PARSER, is_async=is_async)
    hand.add("r", "q", structured=DIGITS)
    _fork_and_join(hand)
    hand.say("r", f"</Parallel>not a digit{BEHIND}no1 2d3i4gits5 6 and more")
    assert _answer(hand) == "123456"
    (forked,) = hand.events("forked")
    assert len(forked["threads"]) == 2
    assert "</Parallel>not a digit" in hand.text("r")
    assert len(hand.events("joined")) == 1


@both_modes
def test_nothing_forks_in_an_answer_that_a_grammar_holds_for(drive, is_async):
    hand = drive(reasoning_parser=PARSER, is_async=is_async)
    hand.add("r", "q", structured=StructuredOutputsParams(choice=[OUTLINES]))
    hand.say("r", f"{BEHIND}{OUTLINES}")
    assert _answer(hand) == OUTLINES
    assert hand.events("forked") == hand.events("refused") == []


def test_nothing_is_asked_for_in_an_answer_that_a_grammar_holds_for(drive):
    hand = drive("asyncthink", reasoning_parser=PARSER)
    hand.add("r", "q", structured=StructuredOutputsParams(choice=["<JOIN-1>"]))
    hand.say("r", "<FORK-1>do</FORK-1>")
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r", f"{BEHIND}<JOIN-1>")
    assert _answer(hand) == "<JOIN-1>"
    assert hand.events("joined") == []


def test_a_turn_that_ends_with_the_answer_does_not_fork(drive):
    dialect = changed("explicit", trigger="[0-9]{6}", outline=None, width=2, join={"text": "\n"})
    hand = drive(dialect, reasoning_parser=PARSER)
    hand.add("r", "q", structured=DIGITS)
    hand.say("r", f"{BEHIND}123456<|end|>")
    assert _answer(hand) == "123456"
    assert hand.events("forked") == []


def test_no_thread_writes_the_end_of_the_reasoning(drive):
    hand = drive(reasoning_parser=PARSER)
    hand.add("r", "q", structured=DIGITS)
    hand.say("r", OUTLINES)
    hand.steps_until(lambda: hand.decodes("r#0") and hand.decodes("r#1"))
    for thread in ("r#0", "r#1"):
        assert not hand.request(thread).use_structured_output
        hand.say(thread, f"a{BEHIND}b</Thread>")
    hand.say("r", f"c{BEHIND}123456")
    assert _answer(hand) == "123456"
    assert hand.text("r").count(BEHIND) == 1


def test_a_plain_requests_thread_writes_what_it_likes(drive):
    hand = drive(reasoning_parser=PARSER)
    hand.add("r", "q")
    hand.say("r", OUTLINES)
    hand.steps_until(lambda: hand.decodes("r#0"))
    assert not hand.request("r#0").sampling_params.bad_words_token_ids


@both_modes
def test_what_a_join_writes_may_end_the_reasoning(drive, is_async):
    hand = drive(changed(join={"text": f"\n{BEHIND}"}), reasoning_parser=PARSER, is_async=is_async)
    hand.add("r", "q", structured=DIGITS)
    _fork_and_join(hand)
    hand.say("r", "x1y23456")
    answer = _answer(hand)
    assert len(answer) == 6
    assert answer.isdigit()


@pytest.mark.parametrize(
    ("written", "answer"), [("12", "12[0-9]{4}"), (" It is ", " It is [0-9]{6}")], ids=["obeys", "does_not"]
)
def test_the_grammar_goes_on_behind_what_a_closing_says_of_the_answer(drive, written, answer):
    """If that obeys it; else it begins behind it."""
    hand = drive(reasoning_parser=PARSER)
    branches = {"branches": [{"text": "a"}, {"text": "b"}], "closing": f"{BEHIND}{written}"}
    hand.add("r", "q", structured=DIGITS, forkjoin=branches)
    hand.steps_until(lambda: hand.decodes("r#0"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "<|end|>")
    assert re.fullmatch(answer, _answer(hand))


@both_modes
def test_a_grammar_keeps_its_place_where_its_request_is_preempted(drive, is_async):
    hand = drive(reasoning_parser=PARSER, is_async=is_async)
    hand.add("r", "q", structured="012345")
    _fork_and_join(hand)
    hand.preempt("r")
    hand.say("r", f"{BEHIND}012")
    hand.steps_until(lambda: hand.text("r").endswith("012"))
    hand.preempt("r")
    hand.say("r", "012345")
    assert _answer(hand) == "012345"


@both_modes
def test_a_stitched_family_that_is_evicted_in_its_answer_goes_on_where_it_was(drive, is_async):
    hand = drive("multiverse", reasoning_parser=PARSER, is_async=is_async)
    hand.add("r", "q", structured="012345")
    _fork_and_join(hand, GOAL, "</Path>")
    hand.say("r", f"{BEHIND}012")
    hand.steps_until(lambda: hand.text("r").endswith("012"))
    hand.evict()
    hand.scheduler._eviction.restore_next()
    hand.say("r", "345")
    assert _answer(hand) == "012345"
    assert hand.oracle.num_compared_stitched > 5


def test_spliced_threads_stand_before_the_answer(drive):
    hand = drive("apar", reasoning_parser=PARSER)
    hand.add("r", "q", structured=DIGITS)
    hand.say("r", "a[SplitMask]")
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r", f"{BEHIND}123456<|end|>")
    hand.say("r#0", "xyz<|end|>")
    assert _answer(hand) == "123456"
    assert "xyz" in hand.text("r").partition(BEHIND)[0]


# ---- what stays vLLM's alone --------------------------------------------------------------------


def _never_forks(hand, **params):
    hand.add("r", "q", structured=StructuredOutputsParams(choice=[OUTLINES]), **params)
    hand.say("r", OUTLINES)
    hand.finish()
    assert hand.text("r") == f"{OUTLINES}<|end|>"
    assert hand.events("forked") == []


def test_without_a_parser_the_grammar_holds_from_the_first_token(drive):
    _never_forks(drive())


def test_a_parser_that_says_that_the_reasoning_is_over_already(drive):
    _never_forks(drive(reasoning_parser="deepseek_v3"))


def test_a_parser_that_does_not_say_what_ends_the_reasoning(drive, monkeypatch):
    """Its end can't be kept out of threads."""
    from vllm.reasoning.deepseek_r1_reasoning_parser import DeepSeekR1ReasoningParser

    monkeypatch.setattr(DeepSeekR1ReasoningParser, "reasoning_end_str", None)
    hand = drive(reasoning_parser=PARSER)
    hand.add("r", "q", structured=DIGITS)
    hand.say("r", f"{OUTLINES}{BEHIND}123456")
    assert _answer(hand) == "123456"
    assert hand.events("forked") == []


def test_more_bad_words_than_vllm_has_places_for(drive):
    from vllm import envs

    hand = drive(reasoning_parser=PARSER)
    # as vLLM's front end makes it of bad_words
    words = [[200 + i % 50, 65] for i in range(envs.VLLM_MAX_NUM_BAD_WORDS)]
    hand.add("r", "q", structured=DIGITS, _bad_words_token_ids=words)
    hand.say("r", f"{OUTLINES}{BEHIND}123456")
    assert _answer(hand) == "123456"
    assert hand.events("forked") == []


def test_an_answer_that_is_the_threads_themselves(drive):
    """Of skeleton-of-thought: what is written behind the reasoning is an outline, which a grammar forbids."""
    hand = drive("skeleton", reasoning_parser=PARSER)
    hand.add("r", "q", structured=DIGITS)
    hand.say("r", f"1. a\n2. b{BEHIND}123456")
    assert _answer(hand) == "123456"
    assert hand.events("forked") == []


# ---- where the dialect says that the answer begins ----------------------------------------------

ANSWER = {"structured": "answer"}


@both_modes
@pytest.mark.parametrize("after", [BEHIND, "So it is "], ids=["token", "text"])
def test_the_dialect_says_behind_what_the_answer_begins(drive, after, is_async):
    hand = drive(changed(answer={"after": after}), is_async=is_async)
    hand.add("r", "q", structured=DIGITS, forkjoin=ANSWER)
    _fork_and_join(hand)
    hand.say("r", f"no digit{after}a1b2c3d4e5f6g")
    assert _answer(hand, behind=after) == "123456"
    assert len(hand.events("forked")) == 1


@both_modes
def test_the_answer_may_begin_behind_the_join(drive, is_async):
    hand = drive("parathinker", is_async=is_async)
    hand.add("r", "q", structured=DIGITS, forkjoin=ANSWER)
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#0", "abc</think1>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "x1y2z3456")
    answer = _answer(hand, behind="final answer is")
    assert len(answer) == 6
    assert answer.isdigit()
    assert len(hand.events("forked")) == 1


def test_a_summary_that_a_reasoning_parser_never_sees_needs_to_be_said(drive):
    """ParaThinker writes no </think> behind its paths: without ``structured`` no grammar would ever hold."""
    hand = drive("parathinker", reasoning_parser=PARSER)
    hand.add("r", "q", structured=DIGITS, forkjoin=ANSWER)
    hand.add("s", "q", structured=DIGITS)
    hand.say("s", f"x{BEHIND}123456")
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#0", "abc</think1>")
    hand.finish()
    assert hand.text("r").partition("final answer is")[2].removesuffix("<|end|>").isdigit()
    assert hand.text("s").removesuffix("<|end|>") == f"x{BEHIND}123456"


def test_behind_a_closing_of_the_requests_own_the_answer_begins(drive):
    hand = drive()
    branches = {"branches": [{"text": "a"}, {"text": "b"}], "closing": "\nSo: "}
    hand.add("r", "q", structured=DIGITS, forkjoin=branches | ANSWER)
    hand.steps_until(lambda: hand.decodes("r#0"))
    for thread in ("r#0", "r#1"):
        hand.say(thread, "<|end|>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "a123456")
    answer = _answer(hand, behind="So: ")
    assert len(answer) == 6
    assert answer.isdigit()


@pytest.mark.parametrize("forkjoin", [{"max_forks": 0}, {"enabled": False}], ids=["refused", "disabled"])
def test_where_there_is_no_join_the_answer_begins_at_once(drive, forkjoin):
    hand = drive("parathinker")
    hand.add("r", "q", structured=DIGITS, forkjoin=ANSWER | forkjoin)
    hand.say("r", "a123456")
    hand.finish()
    assert hand.text("r").removesuffix("<|end|>").isdigit()


def test_decoding_sequentially_the_grammar_holds_for_the_same_answer(drive):
    hand = drive()
    hand.add("r", "q", structured=DIGITS, forkjoin=ANSWER | {"enabled": False})
    hand.say("r", f"{OUTLINES}{BEHIND}a123456")
    assert _answer(hand) == "123456"
    assert hand.events("forked") == []


@pytest.mark.parametrize(("prompt", "free"), [(f"x{BEHIND}\n\n", False), (f"{BEHIND}q", True)])
def test_a_prompt_that_ends_with_the_end_of_the_reasoning_has_begun_the_answer(drive, prompt, free):
    hand = drive()
    hand.add("r", prompt, structured=DIGITS, forkjoin=ANSWER)
    hand.say("r", f"x{BEHIND}123456")
    hand.finish()
    begins = f"x{BEHIND}" if free else ""
    assert hand.text("r") == f"{begins}123456<|end|>"


def test_beside_such_a_request_others_are_constrained_from_their_first_token(drive):
    hand = drive()
    hand.add("r", "q", structured=DIGITS, forkjoin=ANSWER)
    hand.add("s", "q", structured=DIGITS)
    for request in "rs":
        hand.say(request, f"x{BEHIND}123456")
    hand.finish()
    assert hand.text("r") == f"x{BEHIND}123456<|end|>"
    assert hand.text("s") == "123456<|end|>"


# ---- votes --------------------------------------------------------------------------------------

VOTE = {"best_of": 3, "vote": "[0-9]+"}


@both_modes
@pytest.mark.parametrize(
    ("parser", "asked"), [("", {}), (PARSER, {}), ("", ANSWER)], ids=["at_once", "parser", "dialect"]
)
def test_each_thread_of_a_vote_obeys_by_itself(drive, parser, asked, is_async):
    hand = drive(reasoning_parser=parser, is_async=is_async)
    hand.add("r", "q", structured="[0-9]{3}", forkjoin=VOTE | asked | {"include_threads": True})
    hand.steps_until(lambda: hand.decodes("r#2"))
    thinks = bool(parser or asked)
    texts = ["12345", "77777", "77777"]
    for index, text in enumerate(texts):
        hand.say(f"r#{index}", f"why{BEHIND}x{text}" if thinks else f"x{text}")
    hand.finish()
    (voted,) = hand.events("voted")
    begins = hand.text("r").partition(BEHIND)[0] + BEHIND if thinks else ""
    answer = hand.text("r").removeprefix(begins).removesuffix("<|end|>")
    assert len(answer) == 3
    assert answer.isdigit()
    assert voted["result"] == answer
    assert not thinks or "why" in begins


def test_while_a_threads_grammar_is_compiled_its_family_keeps_its_blocks(drive):
    hand = drive()
    manager, compiled = hand.scheduler.structured_output_manager, []
    hand.add("r", "q", structured=DIGITS, forkjoin=VOTE)
    init = manager.grammar_init

    def slow(request):
        init(request)
        grammar = request.structured_output_request._grammar.result()
        request.structured_output_request.grammar = waiting = Future()
        compiled.append((waiting, grammar))

    manager.grammar_init, hand.waits_for_grammars = slow, False
    hand.steps_until(lambda: len(compiled) == 3)
    hand.step(3)
    assert hand.request("r").num_computed_tokens > 0
    assert hand.scheduler._waits.count() == (3, 0)
    for waiting, grammar in compiled:
        waiting.set_result(grammar)
    hand.finish()
    assert hand.text("r").removesuffix("<|end|>").isdigit()


def test_a_grammar_that_can_not_be_compiled_ends_its_request_with_an_error(drive):
    from vllm.v1.engine import FinishReason

    hand = drive()
    manager = hand.scheduler.structured_output_manager
    hand.add("r", "q", structured=DIGITS, forkjoin=VOTE)
    hand.add("s", "q", structured=DIGITS)

    def fails(request):
        request.structured_output_request.grammar = failed = Future()
        failed.set_exception(ValueError("no such grammar"))

    manager.grammar_init = fails
    hand.allowed_errors = {"take"}
    hand.finish()
    (end,) = [o for o in hand.outputs if o.request_id == "r" and o.finish_reason is not None]
    assert end.finish_reason is FinishReason.ERROR
    assert hand.text("s").removesuffix("<|end|>").isdigit()


def test_the_place_of_an_answer_is_one():
    with pytest.raises(ValueError, match=r"answer\.after or answer\.behind_join"):
        Answer(after="x", behind_join=True)
    with pytest.raises(ValueError, match=r"answer\.after or answer\.behind_join"):
        Answer()


# ---- a schema for each branch -------------------------------------------------------------------


def _schema(*values):
    schema = {"type": "object", "properties": {"a": {"enum": list(values)}}, "required": ["a"]}
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}


def _branches(**more):
    one = {"title": "one", "text": "1:", "response_format": _schema("x", "y")}
    two = {"title": "two", "text": "2:", "response_format": _schema(7)}
    return {"branches": [one, two, {"text": "3:"}]} | more


@both_modes
@pytest.mark.parametrize("parser", ["", PARSER], ids=["plain", "parser"])
def test_each_branch_obeys_a_schema_of_its_own(drive, parser, is_async):
    hand = drive(is_async=is_async, reasoning_parser=parser)
    hand.add("r", "q", forkjoin=_branches())
    hand.steps_until(lambda: hand.decodes("r#2"))
    hand.say("r#0", '{"a":"y"}')
    hand.say("r#1", '{"a":"y"7}')
    hand.say("r#2", "anything<|end|>")
    hand.finish()
    texts = re.fullmatch(r"1:(.*)2:(.*)3:x*anything<\|end\|>", hand.text("r"))
    assert texts is not None, hand.text("r")
    assert [json.loads(text) for text in texts.groups()] == [{"a": "y"}, {"a": 7}]


@both_modes
def test_branches_with_schemas_join_before_an_answer_with_another(drive, is_async):
    hand = drive(is_async=is_async)
    hand.add("r", "q", structured=DIGITS, forkjoin=_branches(closing="\nSo: ") | ANSWER)
    hand.steps_until(lambda: hand.decodes("r#2"))
    hand.say("r#2", "<|end|>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.preempt("r")
    hand.say("r", "a123456")
    answer = _answer(hand, behind="So: ")
    assert len(answer) == 6
    assert answer.isdigit()
    assert len(re.findall(r'\{"a": ?("[xy]"|7)\}', hand.text("r").partition("So: ")[0])) == 2


def test_a_branch_whose_grammar_is_compiled_late_still_copies_its_parents_last_block(drive):
    hand = drive()
    manager, compiled = hand.scheduler.structured_output_manager, []
    init = manager.grammar_init

    def slow(request):
        init(request)
        grammar = request.structured_output_request._grammar.result()
        request.structured_output_request.grammar = waiting = Future()
        compiled.append((waiting, grammar))

    manager.grammar_init, hand.waits_for_grammars = slow, False
    hand.add("r", "q" * 20, forkjoin=_branches(closing="\nSo: "))
    hand.steps_until(lambda: hand.decodes("r#2"))
    hand.step(3)
    assert len(hand.scheduler._tails.copied_from) == 1
    for waiting, grammar in compiled:
        waiting.set_result(grammar)
    hand.steps_until(lambda: hand.decodes("r#0") or "r#0" not in hand.scheduler.requests)
    hand.say("r#2", "<|end|>")
    hand.steps_until(lambda: hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()
    assert hand.text("r").startswith('1:{"a":')


def test_a_schema_that_vllm_does_not_take_is_refused_naming_its_branch(drive):
    from forkjoin_scheduler.errors import BadRequestOptions

    hand = drive()
    for wrong in (
        {"type": "json_schema"},
        {"type": "nonsense"},
        {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object", "properties": 3}}},
    ):
        branches = {"branches": [{"text": "a"}, {"text": "b", "response_format": wrong}]}
        with pytest.raises(BadRequestOptions, match=r"^forkjoin\.branches\[1\]\.response_format: "):
            hand.add("r", "q", forkjoin=branches)
    hand.add("r", "q", forkjoin={"branches": [{"text": "a", "response_format": {"type": "text"}}]})
    hand.steps_until(lambda: hand.decodes("r#0"))
    hand.say("r#0", "<|end|>")
    hand.finish()
