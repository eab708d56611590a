"""Stitched joins in the engine, against transformers with explicit positions and masks, in fp32."""

from __future__ import annotations

import pytest

from tests.engine.conftest import BF16_NATS
from tests.engine.stitched_cases import END, TRAJECTORIES, Driver, Split, arithmetic, compare, split
from tests.engine.stitched_reference import Fork, Run

pytestmark = pytest.mark.engine

PROMPT = "a=482*731, b=9047*36"
#: As many as a request must have left to fork (``min_left``), and some more.
NUM_FREE = 32
NATS = 1e-4
#: The same of tokens that were forced, of which many are unlikely: rounding moves these more.
FORCED_NATS = 5e-4


@pytest.fixture(scope="module")
def multiverse(tmp_path_factory):
    from tests.engine.renamed import MULTIVERSE, with_tokens

    return with_tokens(tmp_path_factory.mktemp("multiverse"), MULTIVERSE)


@pytest.fixture(scope="module")
def engine(multiverse):
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import Engine

    return Engine(load("multiverse"), multiverse)


@pytest.fixture(scope="module")
def wide_blocks(multiverse):
    """vLLM's default on CPUs."""
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import Engine

    return Engine(load("multiverse"), multiverse, block_size=128, num_gpu_blocks_override=400)


@pytest.fixture(scope="module")
def model():
    from tests.engine.stitched_reference import load_model

    return load_model()


def run(engine, trajectories, **options):
    """Run all of them together; each answer's free tokens and their logprobs."""
    driver = Driver(engine)
    params = [driver.params(t, NUM_FREE, **options) for t in trajectories]
    answers = engine.run([engine.prompt(PROMPT)] * len(params), params)
    found = []
    for answer in answers:
        tokens = answer.token_ids[-NUM_FREE:]
        found.append(
            (tokens, [e[t].logprob for e, t in zip(answer.logprobs[-NUM_FREE:], tokens, strict=True)])
        )
    return found


def check(engine, model, trajectory, tokens, own):
    context = Driver(engine).context(PROMPT, trajectory, tokens)
    right = compare(model, context, tokens, own)
    assert right.same_tokens
    assert right.max_delta <= NATS
    return context


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_what_follows_a_stitched_join_is_what_the_reference_says(engine, model, name):
    ((tokens, own),) = run(engine, [TRAJECTORIES[name]])
    context = check(engine, model, TRAJECTORIES[name], tokens, own)
    controls = [compare(model, context, tokens, own, **{w: True}) for w in ("positions_wrong", "mask_wrong")]
    if name != "one_thread":  # which stands in a row
        assert all(c.max_delta > NATS for c in controls)


def test_the_trees_of_all_of_them_are_one_masked_pass(engine, model):
    from tests.engine import tree_reference as reference

    driver = Driver(engine)
    params = [driver.params(trajectory, NUM_FREE) for trajectory in TRAJECTORIES.values()]
    trees = reference.run(engine, [engine.prompt(PROMPT)] * len(params), params)
    for name, tree in zip(TRAJECTORIES, trees, strict=True):
        right = reference.deltas(model, tree)
        assert right[-NUM_FREE:].max() <= NATS, name
        assert right.max() <= FORCED_NATS, name
        if name != "one_thread":  # which stands in a row
            wrong = reference.deltas(model, tree, mask=reference.in_a_row(tree))
            assert wrong.max() > FORCED_NATS, name
            in_slots = list(range(len(tree.positions())))
            assert reference.deltas(model, tree, positions=in_slots).max() > FORCED_NATS, name


def test_in_bf16_it_is_as_likely_as_the_reference_says(multiverse, model):
    """On CPUs with AMX this moves the tiles that its kernels read."""
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import Engine

    engine, right, wrong = Engine(load("multiverse"), multiverse, dtype="bfloat16"), [], []
    trajectories = [t for name, t in TRAJECTORIES.items() if name != "one_thread"]  # which stands in a row
    for trajectory, (tokens, own) in zip(trajectories, run(engine, trajectories), strict=True):
        context = Driver(engine).context(PROMPT, trajectory, tokens)
        right.append(compare(model, context, tokens, own).max_delta)
        wrong += [
            compare(model, context, tokens, own, **{w: True}).max_delta
            for w in ("positions_wrong", "mask_wrong")
        ]
    # one of the twelve may stand where a rounding decides; in fp32 each is compared
    assert sorted(right)[-2] < BF16_NATS
    assert sorted(wrong)[len(wrong) // 2] > 2 * BF16_NATS


STAGES_OF_TWO = ((("", "a"), ("", "b")), (("1", "c"), ("2", "d")))


@pytest.mark.parametrize(
    ("stages", "lengths", "join_gap"),
    [
        ((*STAGES_OF_TWO, (("3, 4", "e"),)), (9, 30, 5, 21, 12), 1),
        # the newline between two steps has a position that what follows the longer one has, too
        (STAGES_OF_TWO, (30, 9, 21, 5), 0),
    ],
    ids=["longest_last", "longest_first"],
)
def test_what_follows_steps_in_stages_is_what_the_reference_says(
    tmp_path_factory, model, stages, lengths, join_gap
):
    """Each stage is joined, and the next one forks behind that: two stages are two forks of one context."""
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import Engine
    from tests.engine.renamed import MEDVERSE, with_tokens

    engine = Engine(load("medverse"), with_tokens(tmp_path_factory.mktemp("medverse"), MEDVERSE))
    encode, end = engine.tokenizer.encode, "</Step>"
    steps = [step for stage in stages for step in stage]
    plan = "".join(f"Transient Step {n}: {t}; Dependency: [{d}]\n" for n, (d, t) in enumerate(steps, 1))
    headers = [f"<Step> Transient Step {n}: {title}\n" for n, (_, title) in enumerate(steps, 1)]
    texts = [arithmetic(n, length) + end for n, length in enumerate(lengths)]
    root, join = f"{plan}</Plan>", "\n</Execution>\n<Conclusion>\n"
    script = [[[], encode(root)], *([encode(h), encode(t)] for h, t in zip(headers, texts, strict=True))]
    extra = {"script": [*script, [encode(join), None]], "eos": engine.eos}
    limit = sum(map(len, map(encode, [root, *texts]))) + NUM_FREE
    params = engine.params(max_tokens=limit, logprobs=0, ignore_eos=True, extra_args=extra)
    (answer,) = engine.run([engine.prompt(PROMPT)], params)
    tokens = answer.token_ids[-NUM_FREE:]
    own = [e[t].logprob for e, t in zip(answer.logprobs[-NUM_FREE:], tokens, strict=True)]

    context: list[Run | Fork] = [Run([*engine.prompt(PROMPT), *encode(f"{root}\n<Execution>\n")])]
    wrote = [encode(header + text) for header, text in zip(headers, texts, strict=True)]
    for stage in stages:
        own_steps, wrote = wrote[: len(stage)], wrote[len(stage) :]
        threads = [[*ids, *encode("\n")] for ids in own_steps[:-1]] + own_steps[-1:]
        context += [Fork([[Run(ids)] for ids in threads]), Run(encode("\n"))]
    context[-1] = Run([*encode(join), *tokens])
    right = compare(model, context, tokens, own, join_gap=join_gap)
    assert right.same_tokens
    assert right.max_delta <= NATS
    assert compare(model, context, tokens, own, join_gap=join_gap + 1).max_delta > NATS
    assert compare(model, context, tokens, own, join_gap=join_gap, mask_wrong=True).max_delta > NATS


def test_all_of_them_side_by_side_are_as_they_are_alone(engine, model):
    found = run(engine, list(TRAJECTORIES.values()))
    for trajectory, (tokens, own) in zip(TRAJECTORIES.values(), found, strict=True):
        check(engine, model, trajectory, tokens, own)


def test_a_later_thread_that_forks_in_a_wide_block_loses_nothing_of_its_start(model, wide_blocks):
    """Where it begins, forks and goes on in one block, at every place in it, beside longer inner threads."""
    trajectories = [
        [arithmetic(1, n), Split("u", [["a"], ["b\n", split("i", [2, 160]), "c\n"]])]
        for n in range(0, 128, 12)
    ]
    for trajectory, (tokens, own) in zip(trajectories, run(wide_blocks, trajectories), strict=True):
        check(wide_blocks, model, trajectory, tokens, own)


@pytest.mark.parametrize("index", [2, 3, 4])
def test_a_thread_that_is_preempted_behind_a_join_in_its_block_is_as_undisturbed(model, wide_blocks, index):
    """It takes what was stitched in the block from its parent again: in a row it is other KV."""
    engine = wide_blocks
    trajectory = ["one\n", split("u", [8, 5]), "two\n", split("v", [9, 20, 14])]
    params = Driver(engine).params(trajectory, NUM_FREE)
    request_id = engine.add(engine.prompt(PROMPT), params)
    scheduler = engine.scheduler

    def has_begun() -> bool:
        threads = [t for live in scheduler._core.live.values() for t in live.family.threads]
        return len(threads) > index and threads[index].num_generated == 4

    engine.step_until(has_begun)
    (live,) = scheduler._core.live.values()
    assert live.family.root.stitched_len // 128 == live.family.threads[index].fork_len // 128, "not one block"
    request = scheduler.requests[f"{live.family.request_id}#{index}"]
    scheduler.running.remove(request)
    scheduler._preempt_request(request, 0.0)
    scheduler.prev_step_scheduled_req_ids.clear()  # as vLLM does where it preempts between two steps
    answer = engine.drain()[request_id]
    tokens = answer.token_ids[-NUM_FREE:]
    own = [e[t].logprob for e, t in zip(answer.logprobs[-NUM_FREE:], tokens, strict=True)]
    check(engine, model, trajectory, tokens, own)
    assert engine.snapshot() == engine.baseline


def test_a_stitched_join_computes_the_injected_text_only(engine):
    engine.steps.clear()
    run(engine, [TRAJECTORIES["uneven"]])
    last_thread_step = max(n for n, s in enumerate(engine.steps) if any("#" in i for i in s))
    assert list(engine.steps[last_thread_step + 1].values()) == [
        len(engine.tokenizer.encode("<Conclusion>\n"))
    ]
    # one step before, two tokens a thread: its end tag, sampled last, has no KV yet, and the injected newline
    closing = [n for s in engine.steps for i, n in s.items() if "#fill" in i]
    assert closing == [engine.num_late + 1] * 4


def test_a_thread_starts_with_its_trigger_and_header_only(engine):
    engine.steps.clear()
    run(engine, [TRAJECTORIES["equal"]])
    first = next(s for s in engine.steps if any("#" in i for i in s))
    assert list(first.values()) == [engine.num_late + len(engine.tokenizer.encode("\n<Path>\n1:"))] * 2


def test_stitched_blocks_are_never_found_in_the_prefix_cache(engine):
    run(engine, [TRAJECTORIES["over_many_blocks"]])
    driver = Driver(engine)
    params = driver.params(TRAJECTORIES["over_many_blocks"], NUM_FREE)
    (answer,) = engine.run([engine.prompt(PROMPT)], params)
    context = [*engine.prompt(PROMPT), *answer.token_ids]
    fork = context.index(engine.tokenizer.token_id("</Goal>"))
    engine.steps.clear()
    # the same tokens in a row, as an ordinary request
    engine.run([context], engine.params(forkjoin={"enabled": False}, max_tokens=1))
    found = len(context) - next(iter(engine.steps[0].values()))
    # the first thread stands in a row behind the fork; no block that holds the second one is found
    second = [i for i, t in enumerate(context) if t == engine.tokenizer.token_id("<Path>")][1]
    assert fork // 32 * 32 <= found <= second // 32 * 32


@pytest.mark.parametrize("limit", [1, 3, 8])
def test_a_thread_cut_off_is_closed_and_stitched(engine, limit):
    trajectory = ["w\n", split("u", [20, 6])]
    driver = Driver(engine)
    params = driver.params(trajectory, NUM_FREE, forkjoin={"max_tokens_per_thread": limit})
    (answer,) = engine.run([engine.prompt(PROMPT)], params)
    block = answer.text.partition("</Goal>")[2].partition("<Conclusion>\n")[0]
    texts = [arithmetic(1, 20), arithmetic(2, 6)]
    kept = [t[:limit] + "\n</Path>" if len(t) >= limit else t + "</Path>" for t in texts]
    assert block == "\n" + "".join(f"<Path>\n{n}:{t}\n" for n, t in enumerate(kept, 1))


def test_a_stop_token_in_a_thread_beside_a_later_one_that_is_being_closed(engine):
    """The third has ended and its end tag still gets its KV when the second ends the answer."""
    outlines = "".join(f"<Outline>\n{n}: t\n</Outline>\n" for n in (1, 2, 3))
    params = engine.scripted(
        f"<Parallel>\n<Goal>\n{outlines}</Goal>",
        {"1": arithmetic(1, 60) + END, "2": "aaaZ", "3": "aa"},
        stop_token_ids=[engine.tokenizer.token_id("Z")],
    )
    (answer,) = engine.run([engine.prompt(PROMPT)], params)
    assert answer.stop_reason == engine.tokenizer.token_id("Z")
    assert answer.text.endswith("<Path>\n2:aaa")
    assert engine.snapshot() == engine.baseline
