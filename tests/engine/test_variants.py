"""Exact under other block sizes and batch mixes, in bf16, with LoRA, and with penalties."""

from __future__ import annotations

import pytest

from tests.engine.conftest import BF16_NATS, worksheets

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(
    ("seed", "options"),
    [
        (21, {"block_size": 64, "max_num_seqs": 24, "max_num_batched_tokens": 96}),
        (22, {"block_size": 128, "max_num_seqs": 64, "num_gpu_blocks_override": 60, "max_model_len": 2048}),
        (23, {"join_ahead_tokens": 24, "max_num_seqs": 30}),
    ],
    ids=["blocks_of_64_small_chunks", "blocks_of_128_preempted", "joins_prefilled_ahead"],
)
def test_every_block_size_and_batch_mix_is_exact(seed, options):
    """Over 200 held-out prompts in all, beside the 200 of test_exact."""
    from tests.engine.harness import Engine

    engine = Engine(**options, enable_chunked_prefill=True)
    prompts = [engine.prompt(s.prompt) for s in worksheets(70, seed=seed)]
    answers = engine.run(prompts, engine.params(max_tokens=1800))
    assert [a.token_ids for a in answers] == engine.reference(prompts)
    assert sum("</Parallel>" in a.text for a in answers) > 40
    assert engine.snapshot() == engine.baseline


def test_a_fork_in_a_full_batch_beside_plain_traffic_is_exact_for_all():
    from tests.engine.harness import Engine

    engine = Engine(max_num_seqs=6)
    prompts = [engine.prompt(s.prompt) for s in worksheets(10, seed=31)]
    plain = [i % 2 == 0 for i in range(len(prompts))]
    params = [engine.params(forkjoin={"enabled": not p}) for p in plain]
    answers = [a.token_ids for a in engine.run(prompts, params)]
    alone = engine.run(prompts, engine.params(forkjoin={"enabled": False}))
    expected = [
        a.token_ids if p else r for a, r, p in zip(alone, engine.reference(prompts), plain, strict=True)
    ]
    assert answers == expected
    assert max(len(step) for step in engine.steps) == 6
    assert engine.snapshot() == engine.baseline


def test_in_bf16_each_token_is_as_likely_as_in_a_plain_request_with_the_same_context():
    from tests.engine.harness import Engine

    engine = Engine(dtype="bfloat16")
    prompts = [engine.prompt(s.prompt) for s in worksheets(40, seed=41)]
    answers = engine.run(prompts, engine.params(logprobs=0))
    forked = [(p, a) for p, a in zip(prompts, answers, strict=True) if "</Parallel>" in a.text]
    assert len(forked) > 20

    def drift(prompt, answer, *, upto=None):
        """Largest |Δlogprob| of the tokens behind the join, the text before it being prefilled."""
        start = len(prompt) + answer.token_ids.index(engine.tokenizer.token_id("</Parallel>"))
        context = [*prompt, *answer.token_ids]
        if upto:  # the control: a context without the threads' text
            cut = context.index(engine.tokenizer.token_id("</Outlines>")) + 1
            context, start = [*context[:cut], *context[start:]], cut
        params = engine.params(forkjoin={"enabled": False}, max_tokens=1, prompt_logprobs=0)
        request_id = engine.add(context, params)
        given = engine.prompt_logprobs(request_id)[start:]
        own = answer.logprobs[-len(given) :]
        tokens = context[start:]
        return max(abs(g[t].logprob - o[t].logprob) for g, o, t in zip(given, own, tokens, strict=True))

    drifts = [drift(p, a) for p, a in forked]
    assert max(drifts) < BF16_NATS
    assert sorted(drift(p, a, upto=True) for p, a in forked)[len(forked) // 2] > 2 * BF16_NATS


@pytest.mark.parametrize(
    "options",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.2},
        {"repetition_penalty": 1.2},
        {"logit_bias": {20: 3.0}},
        {"temperature": 1.2, "top_k": 1},
        {"temperature": 0.9, "min_p": 0.99},
    ],
    ids=lambda o: next(reversed(o)),
)
def test_a_sampling_parameter_acts_in_threads_as_in_plain_requests(engine, options):
    prompts = [engine.prompt(s.prompt) for s in worksheets(12, seed=51)]
    answers = engine.run(prompts, engine.params(**options))
    # a request whose thread ended by end-of-sequence ends behind the block: not for the reference
    whole = [
        i for i, a in enumerate(answers) if a.text.partition("</Parallel>")[2] and a.finish_reason == "stop"
    ]
    assert len(whole) > 3
    reference = engine.reference([prompts[i] for i in whole], **options)
    assert [answers[i].token_ids for i in whole] == reference


def test_allowed_tokens_and_bad_words_hold_inside_threads(engine):
    nine = engine.tokenizer.token_id("9")
    allowed = [i for i in range(engine.llm.llm_engine.model_config.get_vocab_size()) if i != nine]
    for options in ({"allowed_token_ids": allowed}, {"bad_words": ["9"]}):
        (answer,) = engine.run(
            [engine.prompt("a=482*731, b=807*36")], engine.params(**options, max_tokens=900)
        )
        assert "<Thread>" in answer.text
        assert nine not in answer.token_ids


@pytest.mark.filterwarnings("ignore:(?s).*reflected list")  # numba's, of vLLM's n-gram drafter
@pytest.mark.parametrize("is_drafted", [False, True], ids=["plain", "drafted"])
def test_threads_use_the_lora_of_their_request(tmp_path, is_drafted):
    from forkjoin_server.start.configuration import EMBEDDED_MODEL
    from tests.engine.adapters import RANK, adapter
    from tests.engine.drafters import drafter
    from tests.engine.harness import Engine

    # no logits processor of ours: vLLM takes none beside drafts
    more = {"speculative_config": drafter("ngram", tmp_path), "logits_processors": None} if is_drafted else {}
    engine = Engine(enable_lora=True, max_lora_rank=RANK, **more)
    prompts = [engine.prompt(s.prompt) for s in worksheets(10, seed=61)]
    base = [a.token_ids for a in engine.run(prompts, engine.params())]
    engine.lora = adapter(1, tmp_path, EMBEDDED_MODEL)
    adapted = engine.run(prompts, engine.params(max_tokens=1500))
    forked = [i for i, a in enumerate(adapted) if "</Parallel>" in a.text]
    assert len(forked) > 2
    answers = [adapted[i].token_ids for i in forked]
    assert answers == engine.reference([prompts[i] for i in forked])
    assert answers != [base[i] for i in forked]
    assert engine.snapshot() == engine.baseline
