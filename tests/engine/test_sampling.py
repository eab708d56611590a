"""Sampling parameters act inside threads as they do outside."""

from __future__ import annotations

import pickle
import re

import pytest

from forkjoin_scheduler.publish.injected import INJECTED_LOGPROB

pytestmark = pytest.mark.engine

TWO = "<Parallel>\n<Outlines>\n<Outline>1: x</Outline>\n<Outline>2: x</Outline>\n</Outlines>"
PROBLEMS = "a=482*731, b=907*36"


def test_every_token_has_its_logprobs_and_injected_ones_are_certain(engine):
    params = engine.scripted(TWO, {"1": "a</Thread>", "2": "b</Thread>"}, "</Parallel>\n", logprobs=2)
    (answer,) = engine.run([engine.prompt("q")], params)
    assert len(answer.logprobs) == len(answer.token_ids)
    injected = len(engine.tokenizer.encode(TWO))
    entry = answer.logprobs[injected]
    assert [(t, p.logprob) for t, p in entry.items()] == [(answer.token_ids[injected], INJECTED_LOGPROB)]


def test_a_seed_makes_sampled_threads_reproducible(engine):
    # the weights are so certain that below vLLM's highest temperature two seeds may agree
    hot, prompts = {"temperature": 2.0, "max_tokens": 600}, [engine.prompt(PROBLEMS)]
    params = engine.params(**hot, seed=12)
    first, second = engine.run(prompts, params), engine.run(prompts, params)
    other = engine.run(prompts, engine.params(**hot, seed=13))
    assert first[0].text.count("<Thread>") == 2
    assert first[0].token_ids == second[0].token_ids != other[0].token_ids


@pytest.mark.parametrize("seed", [7, 8])
def test_what_follows_a_join_is_drawn_with_the_seed_derived_for_it(engine, seed):
    """As by a client that sends each stretch of text as a request; test_matrix has both runners."""
    from tests.engine.matrix_case import explicit_is_exact

    assert explicit_is_exact(engine, engine.prompt("a=48*36, b=57*18"), seed)


def test_an_answer_that_may_not_fork_after_its_prompt_is_drawn_as_without_forks(engine):
    """Its first sample is dropped for the fork, and drawn again."""
    from forkjoin_scheduler.dialects.files import load

    drawn, prompt = {"temperature": 2.0, "seed": 7, "max_tokens": 20}, engine.prompt("q")
    with engine.speaking(load("ssft")):
        (refused,) = engine.run([prompt], engine.params(forkjoin={"max_forks": 0}, **drawn))
        (plain,) = engine.run([prompt], engine.params(forkjoin={"enabled": False}, **drawn))
    assert refused.token_ids == plain.token_ids


@pytest.mark.parametrize(("name", "num_threads"), [("ssft", 6), ("pacore", 4)])
def test_a_grammar_holds_for_each_answer_of_threads_and_for_the_request(engine, name, num_threads):
    from vllm.sampling_params import StructuredOutputsParams

    from forkjoin_scheduler.dialects.files import load

    grammar = StructuredOutputsParams(regex="x[0-9]{6}y")
    with engine.speaking(load(name)):
        params = engine.params(structured_outputs=grammar, temperature=1.0, seed=3)
        request_id = engine.add(engine.prompt("q"), params)
        live = engine.scheduler._core.live
        engine.step_until(lambda: live)
        family = next(iter(live.values())).family
        answer = engine.drain()[request_id]
    threads = [engine.tokenizer.decode(thread.token_ids) for thread in family.threads]
    texts = [text.removesuffix("<|end|>") for text in threads]
    assert len(texts) == num_threads
    assert len(set(texts)) > 1, "each is drawn by itself"
    assert all(re.fullmatch("x[0-9]{6}y", text) for text in (*texts, answer.text))
    assert answer.finish_reason == "stop"


def test_min_tokens_is_owed_by_the_whole_family(engine):
    params = engine.scripted(TWO, {"1": "a</Thread>", "2": "b</Thread>"}, "</Parallel>\n", min_tokens=60)
    (answer,) = engine.run([engine.prompt("q")], params)
    assert "1:a</Thread>" in answer.text


def test_logit_bias_acts_inside_threads(engine):
    banned = engine.tokenizer.token_id("7")
    (answer,) = engine.run(
        [engine.prompt(PROBLEMS)], engine.params(logit_bias={banned: -100.0}, max_tokens=900)
    )
    assert "7" not in answer.text.replace("482*731", "")
    assert "<Thread>" in answer.text


def test_siblings_with_a_seed_draw_apart():
    from forkjoin_scheduler.vllm_seam.threads.sampling import derived_seed

    assert len({derived_seed(7, f"1/{i}") for i in range(100)}) == 100


def test_what_a_dialect_bans_stands_behind_the_requests_own_bad_words_where_there_is_room():
    from vllm import SamplingParams, envs

    from forkjoin_scheduler.vllm_seam.threads.sampling import without_banned

    params = SamplingParams()
    assert without_banned(params, [[7], [8, 8]]).bad_words_token_ids == [[7], [8, 8]]
    assert params.bad_words_token_ids is None
    for own in (
        [[i] for i in range(envs.VLLM_MAX_NUM_BAD_WORDS)],
        [[1] * envs.VLLM_MAX_BAD_WORDS_TOTAL_TOKENS],
    ):
        params._bad_words_token_ids = own
        assert without_banned(params, [[7]]).bad_words_token_ids == own
        params._bad_words_token_ids = own[:-1]
        assert without_banned(params, [[7]]).bad_words_token_ids == [*own[:-1], [7]]


def test_the_end_tag_of_a_thread_is_no_stop_token_of_its_request():
    # both go to a worker in one pickle, and each copy adds its stop tokens to the set that it holds
    from vllm import SamplingParams

    from forkjoin_scheduler.dialects.dialect import SamplingOverrides
    from forkjoin_scheduler.vllm_seam.threads.sampling import thread_params

    request = SamplingParams(stop_token_ids=[5])
    thread = thread_params(request, SamplingOverrides(), end_ids=[9], max_tokens=8, generated=0, salt="1/0")
    at_worker = pickle.loads(pickle.dumps([request, thread]))
    assert [params.all_stop_token_ids for params in at_worker] == [{5}, {5, 9}]


@pytest.mark.parametrize(
    ("asked", "always", "drawn"), [(0.0, True, 1.0), (0.3, True, 1.0), (0.3, False, 0.3)]
)
def test_a_dialect_may_sample_threads_its_own_way_whatever_the_request_wants(asked, always, drawn):
    from vllm import SamplingParams
    from vllm.sampling_params import SamplingType

    from forkjoin_scheduler.dialects.files import load
    from forkjoin_scheduler.vllm_seam.threads.sampling import thread_params

    paths = load("parallel-r1").sampling.thread.model_copy(update={"always": always})
    request = SamplingParams(temperature=asked)
    thread = thread_params(request, paths, end_ids=[9], max_tokens=8, generated=0, salt="1/0")
    assert (thread.temperature, thread.sampling_type) == (drawn, SamplingType.RANDOM)
    assert request.temperature == asked


def test_the_repetition_penalty_of_a_step_of_npr_counts_what_the_step_wrote():
    from vllm import SamplingParams

    from forkjoin_scheduler.dialects.files import load
    from forkjoin_scheduler.vllm_seam.repetition import counts_output
    from forkjoin_scheduler.vllm_seam.threads.sampling import resumed_params

    sampling, request = load("npr").sampling, SamplingParams()
    step = resumed_params(request, sampling.thread, max_tokens=8, generated=0, salt="1")
    assert (step.repetition_penalty, counts_output(step)) == (1.02, True)
    behind = resumed_params(request, sampling.after_join, max_tokens=8, generated=0, salt="2")
    assert (behind.repetition_penalty, counts_output(behind)) == (1.0, False)


def test_a_seed_draws_the_same_where_the_prompt_is_computed_in_parts(engine):
    """On a CPU it ended the engine: vLLM takes back the sample of a part as GPUs can only."""
    from tests.engine.harness import Engine

    in_parts = Engine(
        max_num_batched_tokens=64, max_num_seqs=16, num_gpu_blocks_override=100, max_model_len=1024
    )
    prompt = engine.prompt("1234567890" * 20)
    params = engine.params(seed=7, temperature=1.0, max_tokens=40, forkjoin={"enabled": False})
    whole, again = engine.run([prompt], params), in_parts.run([prompt], params)
    assert again[0].token_ids == whole[0].token_ids
    assert len([step for step in in_parts.steps if max(step.values(), default=0) > 1]) >= 4
