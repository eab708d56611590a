"""ParaThinker's path embeddings in the engine, against transformers with rows added by hand, in fp32."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.engine

NATS = 1e-4
#: What a request may write: three paths of ten tokens, then the summary.
LIMITS = {"max_tokens": 54, "logprobs": 0, "ignore_eos": True, "forkjoin": {"max_tokens_per_thread": 10}}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from tests.engine.path_model import path_model

    return path_model(tmp_path_factory.mktemp("paths"))


@pytest.fixture(scope="module")
def engine(checkpoint):
    from tests.engine.harness import Engine
    from tests.engine.path_model import path_dialect

    # paths that wait for each other differ in length
    join = path_dialect().join.model_dump() | {"when": "all"}
    return Engine(path_dialect(join=join), checkpoint, max_num_batched_tokens=64)


@pytest.fixture(scope="module")
def reference(checkpoint):
    from tests.engine.path_model import PathReference

    return PathReference(checkpoint)


@pytest.fixture(autouse=True)
def all_comes_back(engine):
    yield
    assert engine.snapshot() == engine.baseline


def check(reference, told):
    assert told.errors(reference.logprobs(told.context)) == (pytest.approx(0, abs=NATS), 0)
    off, others = told.errors(reference.logprobs(told.context, forget_paths=True))
    assert (off > 100 * NATS, others > 0) == (True, True), "the test would not see a wrong row"


def scripted(engine, lengths):
    """Parameters under which the paths write text of these lengths, and the model the summary."""
    threads = {str(n): "ab1*2=" * 40 for n in (1, 2, 3)}
    threads = {
        n: t[:length] + f"</think{n}>" for (n, t), length in zip(threads.items(), lengths, strict=True)
    }
    return engine.scripted(
        "", threads, None, ending=engine.dialect.join.text, max_tokens=sum(lengths) + 40, logprobs=0,
        ignore_eos=True,
    )  # fmt: skip


def test_a_checkpoint_that_names_qwen2_is_loaded_with_its_path_embeddings(engine):
    import torch

    executor = engine.core.engine_core.engine_core.model_executor
    model = executor.driver_worker.worker.model_runner.get_model()
    assert type(model).__name__ == "ParaThinkerForCausalLM"
    assert engine.core.vllm_config.model_config.architectures == ["ParaThinkerForCausalLM"]
    tables = [layer.self_attn.seg_embeddings.weight for layer in model.model.layers]
    assert [tuple(t.shape) for t in tables] == [(6, 32)] * 2
    assert not torch.equal(*tables)


def test_paths_and_summary_are_what_the_reference_says(engine, reference):
    from tests.engine.path_model import take_apart

    prompts = [engine.prompt(text) for text in ("q", "a=482*731, b=9047*36, c=1", "x" * 100)]
    for prompt, answer in zip(prompts, engine.run(prompts, engine.params(**LIMITS)), strict=True):
        told = take_apart(engine, prompt, answer)
        assert len(told.tokens) == 54
        check(reference, told)


@pytest.mark.parametrize("lengths", [(9, 9, 9), (40, 3, 25), (0, 70, 1)], ids=str)
def test_what_follows_paths_of_any_length_is_what_the_reference_says(engine, reference, lengths):
    from tests.engine.path_model import take_apart

    prompt = engine.prompt("a=482*731")
    (answer,) = engine.run([prompt], scripted(engine, lengths))
    check(reference, take_apart(engine, prompt, answer, chosen=False))


def test_the_first_path_to_end_cuts_the_others_off_as_published(engine, reference):
    from tests.engine.path_model import path_dialect, take_apart

    prompt = engine.prompt("a=482*731")
    with engine.speaking(path_dialect()):
        (answer,) = engine.run([prompt], scripted(engine, (40, 12, 30)))
        told = take_apart(engine, prompt, answer, chosen=False)
    fork = told.context[1]
    assert max(len(thread[0].token_ids) for thread in fork.threads) < 20
    check(reference, told)


def test_a_family_that_loses_its_blocks_at_any_step_goes_on_as_if_nothing_had_happened(engine, reference):
    from tests.engine.path_model import take_apart

    prompt = engine.prompt("a=482*731, b=9047*36")
    params = scripted(engine, (40, 13, 25))
    (right,) = engine.run([prompt], params)
    for num_steps in range(2, 60, 9):
        request_id = engine.add(prompt, params)
        for _ in range(num_steps):
            engine.step()
        for live in list(engine.scheduler._core.live.values()):
            engine.scheduler._eviction.evict(live)
        engine.scheduler._eviction.restore_next()
        answer = engine.drain()[request_id]
        assert answer.token_ids == right.token_ids
        check(reference, take_apart(engine, prompt, answer, chosen=False))


def test_a_path_that_is_preempted_is_computed_again_with_its_embedding(engine, reference):
    from tests.engine.path_model import take_apart

    prompt = engine.prompt("a=482*731, b=9047*36")
    request_id = engine.add(prompt, engine.params(**LIMITS))
    scheduler = engine.scheduler

    def has_begun() -> bool:
        threads = [t for live in scheduler._core.live.values() for t in live.family.threads]
        return len(threads) > 1 and threads[1].num_generated == 5

    engine.step_until(has_begun)
    request = scheduler.requests[f"{next(iter(scheduler._core.live))}#1"]
    scheduler.running.remove(request)
    scheduler._preempt_request(request, 0.0)
    scheduler.prev_step_scheduled_req_ids.clear()  # as vLLM does where it preempts between two steps
    check(reference, take_apart(engine, prompt, engine.drain()[request_id]))


def test_a_prompt_that_quotes_a_path_shares_no_kv_with_it(engine, reference):
    """The same tokens outside a path have other KV: neither may find the other's in the prefix cache."""
    from tests.engine.path_model import take_apart
    from tests.engine.stitched_reference import Run

    prompt = engine.prompt("quoted")
    (answer,) = engine.run([prompt], scripted(engine, (60, 50, 5)))
    told = take_apart(engine, prompt, answer, chosen=False)
    quoting = [*prompt, *told.context[1].threads[0][0].token_ids]
    engine.steps.clear()
    plain = engine.params(forkjoin={"enabled": False}, max_tokens=4, logprobs=0, ignore_eos=True)
    (quoted,) = engine.run([quoting], plain)
    rows = reference.logprobs([Run([*quoting, *quoted.token_ids])])
    own = [e[t].logprob for e, t in zip(quoted.logprobs, quoted.token_ids, strict=True)]
    right = [float(rows[len(quoting) - 1 + n][t]) for n, t in enumerate(quoted.token_ids)]
    assert own == pytest.approx(right, abs=NATS)
    (again,) = engine.run([prompt], scripted(engine, (60, 50, 5)))
    assert again.token_ids == answer.token_ids
    check(reference, take_apart(engine, prompt, again, chosen=False))


def test_branches_of_a_request_have_no_path(engine, reference):
    from tests.engine.stitched_reference import Run

    prompt = engine.prompt("q")
    asked = {"branches": [{"text": "<think1>a"}, {"text": "<think2>b"}], "max_tokens_per_thread": 8}
    (answer,) = engine.run(
        [prompt], engine.params(forkjoin=asked, max_tokens=16, logprobs=0, ignore_eos=True)
    )
    first = [*prompt, *answer.token_ids[: len(answer.token_ids) // 2]]
    rows = reference.logprobs([Run(first)])
    start = len(prompt) + 2
    assert [int(rows[n - 1].argmax()) for n in range(start, len(first))] == first[start:]


def test_the_published_dialect_is_served_by_the_class(engine):
    from forkjoin_scheduler.dialects.files import load
    from forkjoin_scheduler.vllm_seam import compat

    compat.check_model(load("parathinker"), engine.core.vllm_config.model_config)
    compat.check_paths(load("parathinker"), engine.core.vllm_config)
