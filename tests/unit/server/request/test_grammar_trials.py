"""Grammars that are compiled on trial, in a real process beside this one."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import closing
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_scheduler.policy.backlog import Tenant, Visit
from forkjoin_scheduler.request.visits import VISIT
from forkjoin_scheduler.settings import COMPILED
from forkjoin_server.request.grammar_trials import (
    MAX_WAITING_S,
    NUM_SAMPLED,
    Grammar,
    Trials,
    Verdict,
    block_reason,
    sample,
)
from forkjoin_server.vllm_seam.request.grammar_library import (
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


@pytest.mark.parametrize(
    ("kind", "grammar"),
    [("grammar", "root ::= root"), ("regex", r"[^\s\S]"), ("json_schema", '{"$ref": "#"}')],
)
def test_a_grammar_that_no_text_obeys_is_refused(trials, kind, grammar):
    """The engine took it, and then failed at each token."""
    assert _try(trials, kind, grammar).error == "no text obeys it"
    assert _try(trials, "grammar", 'root ::= ""').error == ""  # but the empty one obeys this


class Played(Trials):
    """Trials of grammars that say what they cost, and which are tried when the test lets them."""

    def __init__(self):
        super().__init__(list)
        self.tried, self.may_go = [], threading.Event()

    def _try(self, grammar, digest):
        self.may_go.wait(60)
        self.tried.append(grammar.grammar)
        return Verdict("", is_over=False, cpu_s=float(grammar.kind), num_bytes=0)


def _ask(trials, tenant, name, cpu_s=1.0):
    return trials.of(Grammar(str(cpu_s), name), tenant)


@pytest.fixture
def played():
    trials = Played()
    yield trials
    trials.may_go.set()
    trials.close()


def test_of_several_keys_next_is_the_one_that_used_the_least(played):
    asked = [
        _ask(played, tenant, name) for tenant, name in [("a", "a0"), *(("a", f"a{n}") for n in range(1, 5))]
    ]
    asked += [_ask(played, "b", "b0", 0.01), _ask(played, "b", "b1", 0.01), _ask(played, "c", "c0", 5.0)]
    played.may_go.set()
    for future in asked:
        future.result(timeout=60)
    assert played.tried[:4] in (["a0", "b0", "b1", "c0"], ["a0", "b0", "c0", "b1"])
    assert played.tried[4:] == ["a1", "a2", "a3", "a4"]


def test_a_grammar_that_nobody_waits_for_any_more_is_not_tried(played):
    asked = [_ask(played, "", name) for name in ("first", "second", "third")]
    assert asked[1].cancel()
    played.may_go.set()
    asked[2].result(timeout=60)
    assert played.tried == ["first", "third"]


@pytest.mark.parametrize(("tenant", "status"), [("", 503), ("a", 429)])
def test_who_sends_costly_grammars_may_have_a_few_waiting_and_cheap_ones_many(played, tenant, status):
    cheap = [_ask(played, tenant, f"cheap{n}", 0.001) for n in range(500)]
    played.may_go.set()
    cheap[-1].result(timeout=60)
    for n in range(10):  # so this tenant's grammars are known to cost much
        _ask(played, tenant, f"costly{n}", 4.0).result(timeout=60)
    played.may_go.clear()
    for n in range(3):
        _ask(played, tenant, f"waits{n}", 4.0)
    while played._num_waiting[tenant] > 2:  # until the first is being tried
        time.sleep(0.01)
    _ask(played, tenant, "waits3", 4.0)
    with pytest.raises(Overloaded, match="to be compiled on trial, got about") as raised:
        _ask(played, tenant, "refused", 4.0)
    assert (raised.value.status, raised.value.reason) == (status, "queued_grammars")
    assert MAX_WAITING_S < raised.value.retry_after_s < 2 * MAX_WAITING_S
    assert not _ask(played, "another", "x").done()  # waits, and is not refused


def test_of_a_burst_of_costly_grammars_those_that_would_wait_too_long_are_refused(played):
    """Nobody knows what they cost until the first was tried."""
    burst = [_ask(played, "", f"costly{n}", 4.0) for n in range(100)]
    played.may_go.set()
    errors = [future.exception(timeout=60) for future in burst]
    assert len(played.tried) < 12
    assert {type(error) for error in errors[20:]} == {Overloaded}
    assert errors[0] is None
    assert _ask(played, "", "then").result(timeout=60)


def test_a_known_grammar_waits_for_nobody(trials):
    _try(trials, "regex", "known{2}")
    others = [trials.of(Grammar("grammar", BOMB + f" [0-{n}]")) for n in range(3)]
    assert trials.of(Grammar("regex", "known{2}")).done()
    assert all(other.cancel() for other in others[1:])


def test_where_the_process_is_killed_the_next_grammar_has_another():
    with closing(Trials(lambda: WORDS)) as trials:
        assert _try(trials, "regex", "a").error == ""
        trials._process.kill()
        trials._process.wait()
        assert not _try(trials, "regex", "b").is_over


def test_nobody_waits_for_ever_where_a_trial_can_not_be_made():
    def no_vocabulary():
        raise KeyError("a fault for a test")

    with closing(Trials(no_vocabulary)) as broken:
        for _ in range(2):
            with pytest.raises(KeyError, match="a fault for a test"):
                _try(broken, "regex", "a")


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
    return SamplingParams(structured_outputs=own, extra_args={COMPILED: asked})


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


def test_a_requests_further_grammars_are_not_tried_once_it_is_refused(visit, played, monkeypatch):
    monkeypatch.setattr("forkjoin_server.vllm_seam.request.grammar_library.Trials", lambda vocabulary: played)
    monkeypatch.setattr(played, "_try", lambda grammar, digest: Verdict("", False, 1.5, 0))
    tried = []
    monkeypatch.setattr(played, "of", lambda *asked, of=played.of: (tried.append(asked), of(*asked))[1])
    client = Client("xgrammar")
    try_grammars(client)
    params = _params(branches=[{"regex": f"a{n}"} for n in range(100)])
    with pytest.raises(BadRequestOptions, match="takes longer"):
        asyncio.run(client.add_request("mine", None, params))
    assert len(tried) == 2


def test_what_has_no_grammar_goes_to_the_engine_at_once():
    client = Client("xgrammar")
    with closing(try_grammars(client)):
        asyncio.run(client.add_request("mine", None, _params()))
    assert client.added == ["mine"]
