"""Grammars that are compiled on trial, in a real process beside this one."""

from __future__ import annotations

import asyncio
import json
from contextlib import closing
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.policy.backlog import Tenant, Visit
from forkjoin_scheduler.settings import KEY
from forkjoin_scheduler.visits import VISIT
from forkjoin_server.grammar_trials import NUM_SAMPLED, Grammar, Trials, block_reason, sample
from forkjoin_server.vllm_seam.grammar_library import (
    keep_to_one_library,
    refuse_what_it_does_not_take,
    try_grammars,
)

WORDS = [f"word{n}".encode() for n in range(5000)]
#: Each class takes nearly all that the next one takes.
BOMB = 'root ::= "x" ' + " ".join(f"[^{chr(97 + i % 26)}]*" for i in range(3_000))
LETTERS = {"type": "string", "pattern": r"\p{L}{1000}"}


@pytest.fixture(scope="module")
def trials():
    made = Trials(lambda: WORDS)
    yield made
    made.close()


def _try(trials, kind, grammar, *options):
    return trials.of(Grammar(kind, grammar, options)).result(timeout=300)


@pytest.mark.parametrize(
    ("kind", "grammar"),
    [
        ("json_schema", json.dumps({"type": "object", "properties": {"a": {"type": "string"}}})),
        ("json_schema", json.dumps({"type": "string", "maxLength": 65_536})),
        ("json_schema", json.dumps({"enum": [f"value {i}" for i in range(5_000)]})),
        ("regex", r"\d{4}-\d{2}-\d{2}"),
        ("grammar", 'root ::= "a" [0-9]+'),
        ("lark", 'start: "a" /[0-9]+/'),
        ("structural_tag", json.dumps({"type": "structural_tag", "format": {"type": "any_text"}})),
    ],
)
def test_what_people_send_passes(trials, kind, grammar):
    verdict = _try(trials, kind, grammar)
    assert (verdict.error, verdict.is_over) == ("", False)
    assert block_reason([verdict]) is None


def test_a_grammar_that_takes_too_long_is_ended_and_the_next_one_tried(trials):
    verdict = _try(trials, "grammar", BOMB)
    assert verdict.is_over
    assert "takes longer" in block_reason([verdict])
    assert block_reason([_try(trials, "regex", "a{3}")]) is None


def test_a_grammar_that_takes_much_memory_for_a_large_vocabulary_is_refused():
    rules = [f'r{i} ::= [^{chr(97 + i % 26)}]{{0,{10 + i % 7}}} "z"' for i in range(20)]
    grammar = "\n".join([f"root ::= {' | '.join(f'r{i}' for i in range(20))}", *rules])
    with closing(Trials(lambda: WORDS)) as few, closing(Trials(lambda: WORDS * 1000)) as many:
        small, large = _try(few, "grammar", grammar), _try(many, "grammar", grammar)
    assert large.num_bytes > 500 * small.num_bytes > 0
    assert block_reason([small]) is None
    assert "MiB when compiled, got about" in block_reason([large])


def test_what_the_library_says_against_a_grammar_is_its_verdict(trials):
    assert "Unicode character class" in _try(trials, "json_schema", json.dumps(LETTERS)).error


def test_grammars_that_pass_alone_may_be_too_much_together(trials):
    verdict = _try(trials, "json_schema", json.dumps({"type": "string", "maxLength": 5000}))
    assert block_reason([verdict]) is None
    assert block_reason([verdict] * 500) is not None


def test_a_grammar_that_is_known_is_not_tried_again(trials):
    first = trials.of(Grammar("regex", "known"))
    first.result(timeout=300)
    assert trials.of(Grammar("regex", "known")).done()


def test_where_the_process_is_killed_the_next_grammar_has_another():
    with closing(Trials(lambda: WORDS)) as trials:
        assert _try(trials, "regex", "a").error == ""
        trials._process.kill()
        trials._process.wait()
        assert not _try(trials, "regex", "b").is_over


def test_of_a_vocabulary_all_bytes_take_part_and_always_the_same_tokens():
    taken = sample(WORDS)
    assert taken == sample(WORDS[::-1])
    assert {bytes([byte]) for byte in range(256)} <= set(taken)
    assert len(taken) == 257 + NUM_SAMPLED
    assert len(sample([])) == 257


# ---- in vLLM's client --------------------------------------------------------------------------


class Client:
    """What of vLLM's engine client has to do with grammars."""

    def __init__(self, backend="auto"):
        config = SimpleNamespace(backend=backend, disable_any_whitespace=False)
        self.vllm_config = SimpleNamespace(structured_outputs_config=config)
        self.model_config = SimpleNamespace(is_diffusion=False, get_vocab_size=lambda: 300)
        self.renderer = SimpleNamespace(get_tokenizer=object)
        self.added = []

    @property
    def backend(self):
        return self.vllm_config.structured_outputs_config.backend

    async def add_request(self, request_id, prompt, params):
        self.added.append(request_id)


@pytest.fixture
def visit():
    made = Visit(Tenant())
    token = VISIT.set(made)
    yield made
    VISIT.reset(token)


def _params(branches=(), **wanted):
    from vllm.sampling_params import SamplingParams, StructuredOutputsParams

    own = StructuredOutputsParams(**wanted) if wanted else None
    asked = {"branches": [{"structured": structured} for structured in branches]}
    return SamplingParams(structured_outputs=own, extra_args={KEY: asked})


def test_an_engine_has_one_library_for_all_its_grammars():
    client = Client()
    keep_to_one_library(client)
    assert client.backend == "xgrammar"
    chosen = Client("guidance")
    keep_to_one_library(chosen)
    assert chosen.backend == "guidance"


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"json": LETTERS}, "Unicode character class escape sequence is not supported"),
        ({"json": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}}, "features not supported"),
        ({"json": {"type": "array", "minItems": 10**6}}, "minItems"),
        ({"json": {"properties": [1]}}, "expected a JSON schema"),
        ({"grammar": "root ::= nope"}, "nope"),
        ({"regex": r"(a)\1"}, "Backreference"),
    ],
)  # fmt: skip
def test_what_the_library_does_not_take_is_refused_with_its_reason(visit, wanted, said):
    refuse_what_it_does_not_take()
    client = Client("xgrammar")
    config = client.vllm_config.structured_outputs_config
    with pytest.raises(BadRequestOptions, match=said) as raised:
        _params(**wanted)._validate_structured_outputs(client.model_config, config, object())
    assert visit.refused is raised.value
    assert "/project/" not in str(raised.value)
    assert len(str(raised.value)) < 400


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"grammar": BOMB}, "takes longer"),
        ({"branches": [{"json": {"type": "string"}}, {"grammar": BOMB}]}, "takes longer"),
        ({"json": LETTERS}, "Unicode character class"),
        ({"structural_tag": json.dumps({"structures": [{"schema": LETTERS}], "triggers": []})}, "Unicode"),
    ],
    ids=["own", "branch", "wrong", "older_tag"],
)
def test_a_request_is_refused_before_its_grammar_goes_to_the_engine(visit, params, said):
    client = Client("xgrammar")
    trials = try_grammars(client)
    with pytest.raises(BadRequestOptions, match=said) as raised:
        asyncio.run(client.add_request("mine", None, _params(**params)))
    trials.close()
    assert visit.refused is raised.value
    assert client.added == []


def test_what_has_no_grammar_goes_to_the_engine_at_once():
    client = Client("xgrammar")
    with closing(try_grammars(client)):
        asyncio.run(client.add_request("mine", None, _params()))
    assert client.added == ["mine"]
