from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from vllm import SamplingParams
from vllm.config.multimodal import MultiModalConfig
from vllm.sampling_params import RepetitionDetectionParams

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.given import OPEN, Given, Part, Stretch
from forkjoin_scheduler.request.options import CompiledBranch, CompiledOptions, parse_options
from forkjoin_scheduler.settings import Settings
from forkjoin_server.answer.trees import Trees
from forkjoin_server.request.handover import Asked, compiled, handing_over, install, width_in_answers


class Tokenizer:
    """A token a byte; notes what it is asked, and on which thread."""

    max_chars_per_token = 4

    def __init__(self):
        self.asked, self.threads = [], set()

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        self.asked.append(text)
        self.threads.add(threading.current_thread())
        return list(text.encode())


@pytest.fixture
def client():
    """vLLM's engine client, as far as it is called: of a context of 100 tokens, it notes what it is asked."""
    client = SimpleNamespace(model_config=SimpleNamespace(max_model_len=100), calls=[])

    def generate(prompt, sampling_params, request_id, **more):
        client.calls.append(sampling_params.extra_args)
        return request_id

    async def process(prompt, arrival_time):
        return {"type": "token", "prompt_token_ids": prompt}

    with ThreadPoolExecutor(1) as executor:
        tokenizer = Tokenizer()
        client.renderer = SimpleNamespace(
            _executor=executor,
            get_tokenizer=lambda: tokenizer,
            process_for_engine_async=process,
            tokenizer=tokenizer,
        )
        client.generate = generate
        install(client)
        yield client


def _params(**given):
    params = SamplingParams(max_tokens=10)
    for name, value in given.items():
        setattr(params, "_bad_words_token_ids" if name == "bad_words_token_ids" else name, value)
    return params


def _generate(client, asked, params=None, prompt=()):
    prompt = {"type": "token", "prompt_token_ids": list(prompt)}
    with handing_over(asked):
        return client.generate(prompt, params or _params(), "r")


def _compile(client, value):
    return asyncio.run(compiled(parse_options(value), client))


def test_texts_are_tokenised_where_vllm_does_and_not_on_the_event_loop(client):
    options = _compile(client, {"branches": [{"text": "ab"}], "closing": "c"})
    assert (options.branches[0].token_ids, options.closing) == ([97, 98], [99])
    assert threading.main_thread() not in client.renderer.tokenizer.threads


@pytest.mark.parametrize(
    "value",
    [
        {"branches": [{"text": "a" * 20_000_000}]},
        {"branches": [{"text": "a"}], "closing": "a" * 1_000_000},
        {"branches": [{"text": "a"}, {"text": "a" * 401}]},
    ],
    ids=["huge_branch", "huge_closing", "too_long"],
)
def test_what_no_context_holds_is_refused_before_any_of_it_is_tokenised(client, value):
    with pytest.raises(BadRequestOptions, match=r"forkjoin\.\S+: expected at most 400 characters"):
        _compile(client, value)
    assert client.renderer.tokenizer.asked == []


def test_others_are_served_while_texts_are_tokenised(client):
    """The tokeniser waits until another task has run."""

    async def ask():
        ran = threading.Event()
        encode = client.renderer.tokenizer.encode
        client.renderer.tokenizer.encode = lambda *a, **k: (ran.wait(), encode(*a, **k))[1]
        asked = asyncio.create_task(compiled(parse_options({"branches": [{"text": "a"}]}), client))
        await asyncio.sleep(0)
        ran.set()
        return await asked

    assert asyncio.run(ask()).branches[0].token_ids == [97]


def test_the_engine_gets_what_is_asked_beside_what_the_client_gave(client):
    options = _compile(client, {"branches": [{"title": "x", "text": "ab"}], "max_forks": 2})
    _generate(client, Asked(options), _params(extra_args={"mine": 1}))
    fields = {"branches": [{"title": "x", "token_ids": [97, 98]}], "max_forks": 2}
    assert client.calls == [{"mine": 1, "forkjoin_compiled": fields}]


def test_a_request_that_asks_for_nothing_is_vllms_own(client):
    _generate(client, Asked(CompiledOptions()))
    assert client.calls == [None]


def test_a_request_of_a_route_that_is_none_of_ours_does_not_fork(client):
    """As those of ``/generative_scoring``: a dialect would fork them after their prompt."""
    client.generate({}, _params(extra_args={"mine": 1}), "r")
    assert client.calls == [{"mine": 1, "forkjoin_compiled": {"enabled": False}}]


@pytest.mark.parametrize("given", [{"enabled": False}, "{}", None, 3])
def test_nothing_of_ours_comes_from_a_client_by_whatever_route(client, given):
    forged = {"forkjoin": given, "forkjoin_compiled": given}
    client.generate({}, _params(extra_args=dict(forged)), "r")
    _generate(client, Asked(CompiledOptions()), _params(extra_args=forged | {"mine": 1}))
    asked = Asked(CompiledOptions(max_forks=2))
    _generate(client, asked, _params(extra_args=dict(forged)))
    assert client.calls == [
        {"forkjoin_compiled": {"enabled": False}},
        {"mine": 1},
        {"forkjoin_compiled": {"max_forks": 2}},
    ]


def test_a_task_that_serves_the_request_later_hands_over_the_same(client):
    """As a response in the background, whose task outlives the request."""

    async def ask():
        with handing_over(Asked(CompiledOptions(max_forks=2))):
            task = asyncio.create_task(_later())
        await task

    async def _later():
        await asyncio.sleep(0)
        client.generate({}, _params(), "r")

    asyncio.run(ask())
    assert client.calls == [{"forkjoin_compiled": {"max_forks": 2}}]


def test_a_branch_that_does_not_fit_beside_the_prompt_is_refused_before_the_answer_begins(client):
    asked = Asked(_compile(client, {"branches": [{"text": "a"}, {"text": "a" * 40}]}))

    async def render(length):
        with handing_over(asked):
            return await asyncio.gather(
                client.renderer.process_for_engine_async([1] * length, arrival_time=0)
            )

    asyncio.run(render(59))
    with pytest.raises(BadRequestOptions, match=r"branches\[1\]\.text: expected at most 39 tokens"):
        asyncio.run(render(60))
    with pytest.raises(BadRequestOptions, match=r"branches\[1\]\.text: expected at most 39 tokens"):
        _generate(client, asked, prompt=[1] * 60)
    assert client.calls == []


@pytest.mark.parametrize(
    ("params", "prompt", "reason"),
    [
        ({"prompt_logprobs": 1}, {"type": "token"}, "prompt_logprobs"),
        ({"thinking_token_budget": 5}, {"type": "token"}, "thinking_token_budget"),
        ({}, {"type": "embeds"}, "a prompt of the kind embeds"),
    ],
)
def test_a_fork_that_the_engine_would_drop_is_refused(client, params, prompt, reason):
    asked = Asked(CompiledOptions(best_of=2, vote="a"))
    with handing_over(asked), pytest.raises(BadRequestOptions, match=rf"forkjoin\.best_of: .*{reason}"):
        client.generate(prompt, _params(**params), "r")
    with handing_over(Asked(CompiledOptions())):
        client.generate(prompt, _params(**params), "r")
    assert client.calls == [None]


@pytest.mark.parametrize(
    "options", [{}, {"video_pruning_rate": 0.5}, {"mm_processor_cache_type": "shm"}], ids=str
)
def test_a_fork_after_images_is_handed_over_unless_threads_cannot_share_them(client, options):
    client.model_config.multimodal_config = MultiModalConfig(**options)
    with handing_over(Asked(CompiledOptions(best_of=2, vote="a"))):
        if not options:
            client.generate({"type": "multimodal"}, _params(), "r")
        else:
            with pytest.raises(BadRequestOptions, match=r"forkjoin\.best_of: .*--video-pruning-rate"):
                client.generate({"type": "multimodal"}, _params(), "r")
    assert len(client.calls) == (not options)


@pytest.mark.parametrize("name", ["top_k", "thinking_token_budget", "seed"])
def test_a_number_that_cannot_be_sent_to_an_engine_is_refused_before_vllm_has_it_in_its_books(client, name):
    _generate(client, Asked(CompiledOptions()), _params(**{name: 2**63 - 1}))
    with pytest.raises(BadRequestOptions, match=rf"^{name}: expected an integer of at most 63 bits, got 922"):
        client.generate({"type": "token"}, _params(**{name: 2**63}), "r")
    assert client.calls == [None]


@pytest.mark.parametrize(
    ("params", "name"),
    [
        (
            {"repetition_detection": RepetitionDetectionParams(5, 2, 2**70)},
            "repetition_detection.min_count",
        ),
        ({"extra_args": {"x": [1, {"y": 2**70}]}}, "extra_args.x.y"),
        ({"extra_args": {"x" * 1000: -(2**64)}}, "extra_args.xxx"),
    ],
    ids=["in_a_field", "in_a_list", "long_name"],
)
def test_a_number_inside_a_parameter_is_refused_likewise(client, params, name):
    with pytest.raises(BadRequestOptions, match=f"^{re.escape(name)}.*: expected an integer") as refused:
        client.generate({"type": "token"}, _params(**params), "r")
    assert len(str(refused.value)) < 200
    assert client.calls == []


@pytest.mark.parametrize(
    ("options", "params", "num_tokens"),
    [
        ({}, {"n": 3}, 30),
        ({"best_of": 4, "vote": "a"}, {"n": 3}, 120),
        ({"max_total_tokens": 7}, {"n": 3}, 21),
        ({"best_of": 4, "vote": "a", "max_total_tokens": 7}, {}, 7),
        ({}, {"max_tokens": None}, 100),
    ],
    ids=["choices", "vote", "cap", "cap_of_a_vote", "whole_context"],
)
def test_what_all_answers_may_come_to_is_limited(client, options, params, num_tokens):
    options = CompiledOptions(**options)
    width = width_in_answers(options, Settings())
    _generate(client, Asked(options, num_tokens, width=width), _params(**params))
    with pytest.raises(BadRequestOptions, match=rf"at most {num_tokens - 1} tokens.*--max-request-tokens"):
        _generate(client, Asked(options, num_tokens - 1, width=width), _params(**params))
    assert len(client.calls) == 1


def test_an_answer_comes_to_what_the_server_lets_one_have_at_most(client):
    asked = Asked(CompiledOptions(), 14, limits=Limits(max_total_tokens=7))
    _generate(client, asked, _params(n=2))
    given = Given([], {"": [Stretch([Part([1] * 7)], OPEN)]})
    asked = Asked(CompiledOptions(given=given), limits=Limits(max_total_tokens=7))
    with pytest.raises(BadRequestOptions, match="than the 7 that the tree has, got 7: raise max_tokens"):
        _generate(client, asked)


@pytest.mark.parametrize(
    ("name", "options", "num"),
    [
        ("ssft", {}, 6),
        ("ssft", {"max_threads_per_fork": 2}, 2),
        ("ssft", {"enabled": False}, 1),
        ("ssft", {"best_of": 3, "vote": "x"}, 3),
        ("pacore", {}, 5),
        ("pacore", {"rounds": [32, 4]}, 37),
        ("parathinker", {}, 1),
        (None, {}, 1),
    ],
)
def test_each_thread_of_a_dialect_that_votes_has_a_budget_of_its_own(name, options, num):
    settings = Settings() if name is None else Settings.of(load(name), {})
    assert width_in_answers(CompiledOptions(**options), settings) == num


def test_the_prompts_of_one_body_are_counted_together(client):
    asked = Asked(CompiledOptions(), 25)
    _generate(client, asked)
    _generate(client, asked)
    with pytest.raises(BadRequestOptions, match="got up to 30"):
        _generate(client, asked)


# ---- structured output beside branches ---------------------------------------------------------

ENDS = "</think>"
_OUTPUTS = {"structured_outputs": {"json": {}}, "bad_words_token_ids": None}


@pytest.fixture
def reasoning(client):
    """The same with a reasoning parser of vLLM's, which knows one token that ends reasoning: 7."""
    tokenizer = SimpleNamespace(
        get_vocab=lambda: {"<think>": 6, ENDS: 7}, encode=lambda text, **_: [7] if text == ENDS else [0]
    )
    client.renderer.get_tokenizer = lambda: tokenizer
    config = SimpleNamespace(reasoning_parser="deepseek_r1", enable_in_reasoning=False)
    client.vllm_config = SimpleNamespace(structured_outputs_config=config)
    return client


def _structured(client, text_ids=(1,), prompt=(1, 2), **more):
    options = CompiledOptions(branches=[CompiledBranch("A", list(text_ids))], closing=[3])
    with handing_over(Asked(options)):
        client.generate({"type": "token", "prompt_token_ids": list(prompt)}, _params(**_OUTPUTS), "r", **more)


def test_branches_may_stand_in_the_reasoning_before_a_structured_answer(reasoning):
    _structured(reasoning)
    _structured(reasoning, reasoning_ended=False, prompt=(1, 7))  # vLLM's handler knows its own prompt
    assert len(reasoning.calls) == 2


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"reasoning_ended": True}, "a prompt that ends the reasoning"),
        ({"prompt": (1, 7)}, "a prompt that ends the reasoning"),
        ({"text_ids": (1, 7, 2)}, "the end of the reasoning in the text of branch 'A'"),
    ],
)
def test_branches_that_would_stand_in_a_structured_answer_are_refused(reasoning, how, reason):
    with pytest.raises(BadRequestOptions, match=rf"forkjoin\.branches: .*structured output and {reason}"):
        _structured(reasoning, **how)
    assert reasoning.calls == []


def test_without_a_reasoning_parser_nothing_stands_before_a_structured_answer(client):
    with pytest.raises(BadRequestOptions, match=r"forkjoin\.branches: .*structured output from the first"):
        _structured(client)


def test_each_thread_of_a_vote_is_a_structured_answer(client):
    with handing_over(Asked(CompiledOptions(best_of=2, vote="a"))):
        client.generate({"type": "token"}, _params(**_OUTPUTS), "r")
    assert len(client.calls) == 1


def _asked_for_trees(client, max_tree_tokens, prompt=(), options=None, **given):
    """The parameters that the engine gets of a request for ten tokens that wants its tree."""
    seen = []

    async def generate(prompt, sampling_params, request_id):
        seen.append(sampling_params)
        yield SimpleNamespace(prompt_token_ids=[1], outputs=[])

    async def read(outputs):
        return [output async for output in outputs]

    client.generate = generate
    install(client)
    client.model_config.get_vocab_size = lambda: 64
    options = CompiledOptions(return_tree=True, **(options or {}))
    asked = Asked(options, trees=Trees("k"), max_tree_tokens=max_tree_tokens)
    params = _params(**given)
    assert len(asyncio.run(read(_generate(client, asked, params, prompt)))) == 1
    assert seen[0] is not params
    return params, seen[0]


def test_who_wants_a_tree_gets_log_probabilities_that_only_the_tree_has(client):
    own, engines = _asked_for_trees(client, 10)
    assert (own.logprobs, engines.logprobs) == (None, 0)
    assert engines.extra_args == {"forkjoin_compiled": {"return_tree": True}}


@pytest.mark.parametrize(
    ("given", "num"),
    [
        ({}, 10),
        ({"logprobs": 3}, 40),
        ({"logprobs": -1}, 650),
        ({"prompt": range(7)}, 17),
        ({"prompt": range(7), "n": 3, "logprobs": 1}, 3 * 7 + 3 * 10 * 2),
        ({"prompt": range(7), "options": {"rounds": [2, 1]}}, 10 + 3 * 7),
    ],
    ids=str,
)
def test_trees_that_may_grow_over_the_servers_limit_are_refused(client, given, num):
    _asked_for_trees(client, num, **given)
    with pytest.raises(
        BadRequestOptions, match=rf"at most {num - 1} tokens .* got up to {num}: lower max_tokens"
    ):
        _asked_for_trees(client, num - 1, **given)


def test_the_trees_of_all_prompts_of_a_request_are_counted(client):
    asked = Asked(CompiledOptions(return_tree=True), trees=Trees("k"), max_tree_tokens=2 * 17)
    _generate(client, asked, prompt=range(7))
    _generate(client, asked, prompt=range(7))
    with pytest.raises(BadRequestOptions, match=r"forkjoin\.return_tree: .* got up to 51"):
        _generate(client, asked, prompt=range(7))


@pytest.mark.parametrize(
    ("prompt", "reason"),
    [
        ({"type": "embeds", "prompt_token_ids": [1], "prompt_embeds": "x"}, "prompt embeddings"),
        (
            {"type": "multimodal", "prompt_token_ids": [1], "mm_placeholders": {"prompt_embeds": []}},
            "prompt embeddings",
        ),
        ({"type": "enc_dec"}, "a prompt of the kind enc_dec"),
    ],
)
def test_a_tree_of_what_are_no_tokens_is_refused(client, prompt, reason):
    asked = Asked(CompiledOptions(return_tree=True), trees=Trees("k"), max_tree_tokens=100)
    with handing_over(asked), pytest.raises(BadRequestOptions, match=f"return_tree: .* got {reason}"):
        client.generate(prompt, _params(), "r")
    assert client.calls == []
