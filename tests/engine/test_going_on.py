"""An answer that is cut off after any step, and goes on from its tree, becomes the one that was not cut off."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.policies import Policy

pytestmark = pytest.mark.engine

OUTLINES = "<Outlines><Outline>{0}: a</Outline><Outline>{1}: b</Outline></Outlines>"
GOAL = "<Goal><Outline>{0}: a</Outline><Outline>{1}: b</Outline></Goal>"

#: Two forks one after the other, and one inside a thread: what each context goes on with, behind its last key.
THREADWEAVER = {
    "Z": f"ab{OUTLINES.format(1, 2)}",
    "<Thread>\n1:": f"cd{OUTLINES.format('1.1', '1.2')}",
    "<Thread>\n1.1:": "efgh</Thread>",
    "<Thread>\n1.2:": "ij</Thread>",
    "ij</Thread>\n": "kl</Thread>",
    "<Thread>\n2:": "mnopqrstuvwxyz</Thread>",
    "wxyz</Thread>\n": f"AB{OUTLINES.format(3, 4)}",
    "<Thread>\n3:": "CDEFG</Thread>",
    "<Thread>\n4:": "H</Thread>",
    "H</Thread>\n": "IJKL<|end|>",
}
MULTIVERSE = {
    "Z": f"ab{GOAL.format(1, 2)}",
    "<Path>\n1:": f"cd{GOAL.format('1.1', '1.2')}",
    "<Path>\n1.1:": "efgh</Path>",
    "<Path>\n1.2:": "ij</Path>",
    "ij</Path>\n<Conclusion>\n": "kl</Path>",
    "<Path>\n2:": "mnopqrstuvwxyz</Path>",
    "wxyz</Path>\n<Conclusion>\n": f"AB{GOAL.format(3, 4)}",
    "<Path>\n3:": "CDEFG</Path>",
    "<Path>\n4:": "H</Path>",
    "H</Path>\n<Conclusion>\n": "IJKL<|end|>",
}
#: The thread that stands second forks first.
LATE = {
    **THREADWEAVER,
    "<Thread>\n1:": f"cdcdcdcdcd{OUTLINES.format('1.1', '1.2')}",
    "<Thread>\n2:": f"m{OUTLINES.format('2.1', '2.2')}",
    "<Thread>\n2.1:": "no</Thread>",
    "<Thread>\n2.2:": "pqpqpqpqpq</Thread>",
    "pqpq</Thread>\n": "wxyz</Thread>",
}
CASES = {
    "reprefill": ("threadweaver", THREADWEAVER),
    "reprefill-late": ("threadweaver", LATE),
    "stitch": ("multiverse", MULTIVERSE),
}


def nested(name):
    dialect = load(name)
    return Dialect.model_validate(dialect.model_dump() | {"max_depth": 3})


@pytest.fixture
def tell(model_of):
    from tests.engine.cut_off import Told

    def make(name, story, **options):
        return Told(nested(name), model_of(name), story=story, **options)

    return make


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("case", CASES)
def test_an_answer_that_was_cut_off_after_any_step_goes_on_to_the_same_end(tell, case, is_async):
    from tests.engine.cut_off import num_sampled, told

    hand = tell(*CASES[case], is_async=is_async)
    hand.ask("whole", "Z")
    before = hand.num_steps
    whole = hand.run("whole")
    assert hand.text("whole").endswith("IJKL<|end|>")
    num_cuts = 0
    for num_steps in range(1, hand.num_steps - before):
        hand.ask(f"cut{num_steps}", "Z")
        hand.step(num_steps)
        if f"cut{num_steps}" not in hand.scheduler.requests:
            break
        tree = hand.cut_off(f"cut{num_steps}")
        hand.ask(f"on{num_steps}", "Z", tree)
        after = hand.run(f"on{num_steps}")
        assert hand.text(f"on{num_steps}") == hand.text("whole"), num_steps
        assert told(after) == told(whole), num_steps
        assert hand.num_written(f"on{num_steps}") == num_sampled(whole) - num_sampled(tree), num_steps
        hand.outputs = [o for o in hand.outputs if o.request_id == "whole"]
        num_cuts = num_steps
    assert num_cuts > 30
    hand.finish()


@pytest.mark.parametrize(("case", "policy"), [("reprefill", "end_request"), ("stitch", "close_thread")])
def test_an_answer_that_ran_into_its_limit_of_tokens_goes_on_to_the_same_end(model_of, case, policy):
    from tests.engine.cut_off import Told, num_sampled, told

    name, story = CASES[case]
    dialect = nested(name)
    policies = dialect.policies.model_copy(update={"thread_length": Policy(policy)})
    hand = Told(dialect.model_copy(update={"policies": policies}), model_of(name), story=story)
    hand.ask("whole", "Z")
    whole, num_gone_on = hand.run("whole"), 0
    for num in range(1, num_sampled(whole)):
        hand.ask(f"cut{num}", "Z", max_tokens=num)
        tree = hand.run(f"cut{num}")
        assert num_sampled(tree) == num
        # the last thread that wrote has ended by that limit, and stays ended (docs/offline.md)
        if any(s.thread >= 0 and s.finish_reason == "length" for s in tree.segments):
            continue
        hand.ask(f"on{num}", "Z", tree)
        assert told(hand.run(f"on{num}")) == told(whole), num
        hand.outputs = []
        num_gone_on += 1
    assert num_gone_on > num_sampled(whole) / 2
    hand.finish()


def middle(hand):
    """A whole answer, and the tree of one that was cut off where forks inside forks were open."""
    from tests.engine.cut_off import told

    hand.ask("whole", "Z")
    whole = hand.run("whole")
    hand.ask("cut", "Z")
    hand.steps_until(lambda: hand.decodes("cut#3"))
    hand.step()
    return told(whole), hand.cut_off("cut")


@pytest.mark.parametrize("case", ["reprefill", "stitch"])
@pytest.mark.parametrize("num_steps", range(2, 9))
def test_what_goes_on_may_lose_its_blocks_meanwhile(tell, case, num_steps):
    from tests.engine.cut_off import told

    hand = tell(*CASES[case])
    whole, tree = middle(hand)
    hand.ask("on", "Z", tree)
    hand.step(num_steps)
    hand.evict()
    assert told(hand.run("on")) == whole
    hand.finish()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_drafts_beside_it_change_nothing(tell, is_async):
    from tests.engine.cut_off import told

    hand = tell(*CASES["reprefill"], is_async=is_async, max_drafts=3)
    whole, tree = middle(hand)
    hand.ask("on", "Z", tree)
    assert told(hand.run("on")) == whole
    hand.finish()


def test_what_a_request_goes_on_from_counts_as_what_it_will_need(tell):
    from tests.engine.cut_off import num_sampled

    hand = tell(*CASES["reprefill"])
    _, tree = middle(hand)
    hand.ask("plain", "Z")
    hand.ask("on", "Z", tree)
    gate, num = hand.scheduler._gate, num_sampled(tree)
    plain, on = (gate.new_need(hand.request(name)) for name in ("plain", "on"))
    assert (plain.generated, on.generated) == (0, num)
    assert on.blocks == plain.blocks + -(-num // 16)
    costs = [gate._expected_cost(hand.request(name)) for name in ("plain", "on")]
    assert costs[1] - costs[0] == num
    hand.finish()


def test_several_requests_go_on_from_one_tree_and_one_goes_on_twice(tell):
    from tests.engine.cut_off import told

    hand = tell(*CASES["reprefill"])
    whole, tree = middle(hand)
    for name in ("one", "other"):
        hand.ask(name, "Z", tree)
    hand.step(6)
    again = hand.cut_off("other")
    hand.ask("again", "Z", again)
    assert told(hand.run("again")) == whole
    assert told(hand.run("one") if "one" in hand.scheduler.requests else hand.tree("one")) == whole
    hand.finish()


def test_what_a_tree_tells_of_its_tokens_stays_as_it_was(tell):
    hand = tell(*CASES["reprefill"])
    _, tree = middle(hand)
    for segment in tree.segments:
        segment.weight_version, segment.seed = "step-1", 7
    hand.ask("on", "Z", tree)
    after = hand.run("on")
    versions = {(s.weight_version, s.seed) for s in after.segments if any(s.sampled)}
    assert versions == {("step-1", 7), ("default", None)}
    before = [s.token_ids[s.num_injected :] for s in tree.segments if any(s.sampled)]
    given = [s.token_ids[s.num_injected :] for s in after.segments if s.weight_version == "step-1"]
    assert sorted(given) == sorted(before)


VOTE = {"best_of": 3, "vote": r"= *(?P<result>\d+)"}
#: A vote's threads have no text of their own to tell them by, so they write the same.
STORY = {"Z": "abcdef = 7<|end|>"}
BRANCHES = {
    "Z": "never",
    "ZX": "ab<|end|>",
    "ZY": "cdefgh<|end|>",
    "so": "IJKL<|end|>",
}


@pytest.mark.parametrize(
    ("story", "asked"),
    [
        (STORY, VOTE),
        (BRANCHES, {"branches": [{"text": "X"}, {"text": "Y"}], "closing": "so"}),
    ],
    ids=["vote", "branches"],
)
def test_forks_after_the_prompt_go_on_too(tell, story, asked):
    from tests.engine.cut_off import told

    hand = tell("threadweaver", story)
    hand.ask("whole", "Z", forkjoin=asked)
    before = hand.num_steps
    whole = told(hand.run("whole"))
    for num_steps in range(2, hand.num_steps - before - 4):
        hand.ask(f"cut{num_steps}", "Z", forkjoin=asked)
        hand.step(num_steps)
        if f"cut{num_steps}" not in hand.scheduler.requests:
            break
        hand.ask(f"on{num_steps}", "Z", hand.cut_off(f"cut{num_steps}"), forkjoin=asked)
        assert told(hand.run(f"on{num_steps}")) == whole
        assert hand.text(f"on{num_steps}") == hand.text("whole")
    assert num_steps > 4
    hand.finish()


def test_forks_of_the_tree_are_made_however_few_tokens_are_left(tell):
    from tests.engine.cut_off import num_sampled

    hand = tell(*CASES["stitch"], min_left=150)
    hand.ask("cut", "Z", max_tokens=900)
    hand.steps_until(lambda: hand.decodes("cut#3"))
    tree = hand.cut_off("cut")
    hand.ask("on", "Z", tree, max_tokens=num_sampled(tree) + 4)
    after = hand.run("on")
    assert after.segments[0].finish_reason == "length"
    assert hand.num_written("on") == 4
    hand.finish()


@pytest.mark.parametrize(
    ("story", "asked"),
    [(THREADWEAVER, {}), (STORY, VOTE), (BRANCHES, {"branches": [{"text": "X"}, {"text": "Y"}]})],
    ids=["trigger", "vote", "branches"],
)
def test_from_a_tree_of_a_prompt_alone_a_request_begins_as_any(tell, story, asked):
    from forkjoin_server.trees import sequential
    from tests.engine.cut_off import told

    hand = tell("threadweaver", story)
    hand.ask("whole", "Z", forkjoin=asked)
    whole = told(hand.run("whole"))
    assert len(whole) > 2
    hand.ask("on", "Z", sequential(hand.prompts["whole"], [], None, 0, None, "abort"), forkjoin=asked)
    assert told(hand.run("on")) == whole
    hand.finish()


def test_a_cancelled_thread_of_a_vote_stays_without_a_vote(tell):

    hand, request_id = tell("threadweaver", STORY), "fj" + "0" * 32
    hand.ask(request_id, "Z", forkjoin=VOTE)
    hand.steps_until(lambda: hand.decodes(f"{request_id}#2"))
    assert hand.scheduler.cancel_thread(request_id, 0, "") == "cancelling"
    hand.step(2)
    hand.ask("on", "Z", hand.cut_off(request_id), forkjoin=VOTE)
    after = hand.run("on")
    assert [segment.finish_reason for segment in after.segments if segment.thread == 0][
        -1
    ] == "client_cancelled"
    assert (hand.events("voted")[-1]["index"], after.voted) == (1, 1)
    hand.finish()


@pytest.mark.parametrize("is_behind", [False, True], ids=["before", "behind"])
@pytest.mark.parametrize("name", ["give", "has_arrived", "_begin", "_append"])
def test_an_error_in_it_ends_one_family(tell, name, is_behind):
    from forkjoin_scheduler.vllm_seam.threads.giving import Giving
    from tests.engine import faults
    from tests.engine.cut_off import told

    hand = tell(*CASES["stitch"])
    hand.allowed_errors = {"fork", "advance"}
    whole, tree = middle(hand)
    hand.ask("on", "Z", tree)
    with faults.raising((Giving, name), 1, is_behind=is_behind):
        hand.steps_until(lambda: "on" not in hand.scheduler.requests)
    hand.step(2)
    assert len(hand.events("internal_error")) == 1
    hand.ask("again", "Z", tree)
    assert told(hand.run("again")) == whole
    hand.finish()


# ---- on engines -------------------------------------------------------------------------------

NATS = 1e-4
PROMPT = "a=482*731, b=9047*36"


@pytest.fixture(scope="module")
def stitched(tmp_path_factory):
    from tests.engine.harness import Engine
    from tests.engine.renamed import MULTIVERSE, with_tokens

    return Engine(load("multiverse"), with_tokens(tmp_path_factory.mktemp("multiverse"), MULTIVERSE))


@pytest.mark.parametrize("name", ["engine", "stitched"])
def test_on_an_engine_it_is_the_same_answer_and_one_pass_over_its_tree(request, name):
    from tests.engine.cut_off import going_on, num_sampled, told
    from tests.engine.stitched_reference import load_model
    from tests.engine.tree_reference import deltas, run

    engine, model = request.getfixturevalue(name), load_model()
    engine.steps.clear()
    (whole,) = run(engine, [engine.prompt(PROMPT)], [engine.params(max_tokens=1500)])
    num_steps = len(engine.steps)
    assert len(whole.segments) > 3
    for at in (3, num_steps // 3, num_steps // 2, num_steps - 8):
        cut = cut_off(engine, at)
        assert 0 < num_sampled(cut) < num_sampled(whole)
        engine.steps.clear()
        (after,) = run(engine, [engine.prompt(PROMPT)], [going_on(engine, cut, max_tokens=1500)])
        assert after.linear() == whole.linear()
        assert told(after) == told(whole)
        assert deltas(model, after).max() <= NATS
        assert len(engine.steps) < num_steps - at + 12, "what was given is not decoded"


def cut_off(engine, num_steps):
    """The tree of an answer that is aborted after so many steps."""
    from forkjoin_scheduler.settings import TREE
    from forkjoin_server.trees import tree_of
    from forkjoin_server.vllm_seam.offline.tree_output import TreeOutputProcessor

    core, of_engine = engine.core, engine.scheduler._core
    settings = of_engine.settings
    before, core.output_processor = (
        core.output_processor,
        TreeOutputProcessor.in_place_of(core.output_processor),
    )
    try:
        params = engine.params(max_tokens=1500, logprobs=0)
        params.extra_args |= {TREE: True}
        prompt = engine.prompt(PROMPT)
        request_id = engine.add(prompt, params)
        for _ in range(num_steps):
            core.step()
        of_engine.settings = settings.model_copy(update={"on_new_weights": "abort"})
        engine.scheduler.new_weights.take()
        answer = engine.drain()[request_id]
        builder = core.output_processor.builders.get((request_id, 0))
        assert answer.finish_reason == "abort"
        return tree_of(builder, prompt, answer.token_ids, answer.logprobs, 0, None, "abort")
    finally:
        core.output_processor, of_engine.settings = before, settings
