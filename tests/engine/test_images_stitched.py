"""Stitched joins after prompts with images: a small random Qwen2.5-VL, against transformers in fp32."""

from __future__ import annotations

import pytest

from tests.engine.stitched_cases import TRAJECTORIES, Driver

pytestmark = pytest.mark.engine

NUM_FREE, NATS, IMAGE = 16, 1e-4, 7
NAMES = ["uneven", "two_rounds", "nested_in_both"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tests.engine.image_model import image_model
    from tests.engine.renamed import MULTIVERSE

    return image_model(tmp_path_factory.mktemp("images"), MULTIVERSE)


@pytest.fixture(scope="module")
def engine(checkpoint):
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import Engine
    from tests.engine.image_model import do_without_torchvision

    with pytest.MonkeyPatch.context() as patch:
        do_without_torchvision(patch)
        return Engine(
            load("multiverse"), checkpoint, max_num_batched_tokens=256, mm_processor_cache_gb=0,
            limit_mm_per_prompt={"image": 1, "video": 0}, skip_mm_profiling=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def reference(checkpoint):
    from tests.engine.image_model import ImageReference

    return ImageReference(checkpoint)


@pytest.fixture(autouse=True)
def all_comes_back(engine):
    yield
    assert engine.snapshot() == engine.baseline


def off(engine, reference, name, answer, **wrong):
    """How far the logprobs of what the model chose are from the reference, and how many tokens it would not choose."""
    from tests.engine.image_model import with_image
    from tests.engine.stitched_reference import Run, flatten

    tokens = answer.token_ids[-NUM_FREE:]
    own = [e[t].logprob for e, t in zip(answer.logprobs[-NUM_FREE:], tokens, strict=True)]
    context = Driver(engine).context("q", TRAJECTORIES[name], tokens)
    without_image = len(engine.tokenizer.encode("<|user|>q<|assistant|>"))
    prompt = with_image(engine, "q", IMAGE)["prompt_token_ids"]
    context[0] = Run([*prompt, *context[0].token_ids[without_image:]])
    rows = reference.logprobs(engine, "q", IMAGE, context, **wrong)
    slots = list(flatten(context).slots[(len(context) - 1,)])[-NUM_FREE:]
    chosen = [rows[slot - 1] for slot in slots]
    deltas = [abs(float(row[t]) - o) for row, t, o in zip(chosen, tokens, own, strict=True)]
    return max(deltas), sum(float(r[t]) < float(r.max()) - NATS for r, t in zip(chosen, tokens, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_a_stitched_join_after_an_image_is_what_the_reference_says(engine, reference, name):
    from tests.engine.image_model import with_image

    params = Driver(engine).params(TRAJECTORIES[name], NUM_FREE)
    (answer,) = engine.run([with_image(engine, "q", IMAGE)], params)
    assert off(engine, reference, name, answer) == (pytest.approx(0, abs=NATS), 0)
    assert off(engine, reference, name, answer, ignores_forks=True)[0] > 100 * NATS


def test_a_family_evicted_at_any_step_is_restored_with_its_image(engine, reference):
    from tests.engine.image_model import with_image

    params = Driver(engine).params(TRAJECTORIES["two_rounds"], NUM_FREE)
    for num_steps in range(70, 260, 61):
        request_id = engine.add(with_image(engine, "q", IMAGE), params)
        for _ in range(num_steps):
            engine.step()
        engine.scheduler.reset_prefix_cache(reset_running_requests=True)
        answer = engine.drain()[request_id]
        assert off(engine, reference, "two_rounds", answer) == (pytest.approx(0, abs=NATS), 0)
