"""Trees that requests go on from: read as they were given, and no others."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest

from forkjoin.tree.segment import Segment
from forkjoin.tree.tree import Tree
from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.families.family import Family
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine import planning
from forkjoin_scheduler.machine.machine import Machine, Terms
from forkjoin_scheduler.replay.characters import Characters
from forkjoin_scheduler.replay.given import Engine, GivenWorld, replay_given
from forkjoin_scheduler.request.explicit import explicit_dialect
from forkjoin_scheduler.request.given import FORK, OPEN, Given, Part, Stretch
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import Settings
from forkjoin_server.request import continuing
from forkjoin_server.request.continuing import check_answers, check_prompt, continued
from forkjoin_server.trees import TreeBuilder

VOCAB_SIZE = 0x120000
VOTE = CompiledOptions(best_of=2, vote=r"= *(?P<result>\d+)")
FORKS = "go<Outlines><Outline>1: a</Outline><Outline>2: b</Outline></Outlines>"


def dialect(name="threadweaver", **more):
    return Dialect.model_validate(load(name).model_dump() | more)


def engine_of(dialect, max_model_len=4096):
    bound_dialect = BoundDialect.bind(dialect, Characters(dialect.control_tokens))
    return Engine(bound_dialect, max_model_len, frozenset())


def given_as(engine, **stretches):
    """What branches had written, each a list of (text, what followed); ``root`` is the request itself."""
    encode = engine.bound_dialect.tokenizer.encode
    paths = {name.replace("_", "/", 1).replace("_", "."): of for name, of in stretches.items()}
    of_paths = {"" if path == "root" else path: of for path, of in paths.items()}
    made = {
        path: [Stretch([Part(encode(text), weight_version="v1")] if text else [], then) for text, then in of]
        for path, of in of_paths.items()
    }
    return Given(encode("What?"), made)


def tree_of(engine, given, options=None):
    dialect = engine.bound_dialect.dialect
    terms = Terms(options or CompiledOptions(given=given), engine.bound_dialect, 1000, prompt_len=5)
    builder = TreeBuilder()
    builder.hear(replay_given(given, terms, Family("f", dialect.limits), engine))
    return builder.tree([], "abort")


CUT = {"root": [(FORKS, FORK)], "_0_0": [("7</Thread>", "stop")], "_0_1": [("nine", OPEN)]}
JOINED = {
    "root": [(FORKS, FORK), ("and", OPEN)],
    "_0_0": [("7</Thread>", "stop")],
    "_0_1": [("9</Thread>", "stop")],
}


@pytest.fixture
def engine():
    return engine_of(dialect())


def go_on(engine, value, options=None, settings=None):
    settings = settings or Settings(dialect=engine.bound_dialect.dialect)
    return continued(value, options or CompiledOptions(), settings, engine, VOCAB_SIZE)


@pytest.mark.parametrize("stretches", [{"root": [("a", OPEN)]}, CUT, JOINED])
def test_what_branches_had_written_is_read_from_a_tree(engine, stretches):
    given = given_as(engine, **stretches)
    value = json.loads(json.dumps(tree_of(engine, given).to_dict()))
    assert go_on(engine, value).given == given


def test_threads_that_forked_in_another_order_are_read_all_the_same():
    engine = engine_of(dialect(max_depth=3))
    nested = "x<Outlines><Outline>3: c</Outline></Outlines>"
    given = given_as(
        engine,
        root=[(FORKS, FORK)],
        _0_0=[(nested, FORK)],
        _0_1=[(nested, FORK), ("then", OPEN)],
        **{"_0_0/0_0": [("c", OPEN)], "_0_1/0_0": [("d</Thread>", "stop")]},
    )
    value = tree_of(engine, given).to_dict()
    for segment in value["segments"]:  # as if the second had forked first
        segment["thread"] = {2: 3, 3: 2}.get(segment["thread"], segment["thread"])
    assert set(go_on(engine, value).given.stretches) == {"", "/0.0", "/0.1", "/0.0/0.0", "/0.1/0.0"}


def _set(number, **fields):
    def change(value):
        value["segments"][number] |= fields

    return change


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda value: value.pop("segments"), "a tree as return_tree gives it"),
        (lambda value: value["segments"].clear(), "expected segments, got none"),
        (_set(0, token_ids=["a"]), "a tree as return_tree gives it"),
        (_set(0, token_ids=[VOCAB_SIZE]), r"segments\[0\].token_ids: expected tokens of the model's"),
        (_set(0, token_ids=[-1]), r"segments\[0\].token_ids: expected tokens of the model's"),
        (_set(0, thread=0), r"segments\[0\]: expected the prompt"),
        (_set(0, num_injected=999), r"segments\[0\].num_injected: expected at most"),
        (_set(1, num_injected=0), r"segments\[1\].(num_injected|token_ids): expected what this server"),
        (_set(1, parent=2), r"segments\[1\].parent: expected the number of an earlier segment"),
        (_set(1, parent=None), r"segments\[1\].parent: expected what this server"),
        (_set(1, position=3), r"segments\[1\].position: expected what this server"),
        (_set(1, fork_offset=3), r"segments\[1\].fork_offset: expected what this server"),
        (_set(1, forked_by=None), r"segments\[1\].forked_by: expected a segment"),
        (_set(1, forked_by=1), r"segments\[1\].forked_by: expected the number of an earlier"),
        (_set(1, finish_reason="soon"), "expected a finish_reason that threads have, got 'soon'"),
        (_set(1, weight_version="\ud800"), r"segments\[1\].weight_version: expected a text"),
        (_set(1, weight_version="v" * 257), r"weight_version: expected a text of at most 256 characters"),
        (_set(1, seed=1 << 63), r"segments\[1\].seed: expected an integer of at most 63 bits"),
        (_set(1, seed=-(1 << 70)), r"segments\[1\].seed: expected an integer of at most 63 bits"),
        (
            _set(1, top_logprobs=[{1 << 80: 0.0}]),
            r"segments\[1\].top_logprobs: expected tokens of the model's",
        ),
        (_set(1, top_logprobs=[{"-1": 0.0}]), r"segments\[1\].top_logprobs: expected tokens of the model's"),
        (
            _set(1, finish_reason="request_stop"),
            "thread 0 has ended it with one of the request's stop tokens",
        ),
        (_set(1, logprobs=[0.0]), r"segments\[1\].logprobs: expected \d+, one for each token"),
        (_set(1, joined=[{"segment": 9, "num_tokens": 1, "num_skipped": 0}]), r"segments\[1\].joined"),
        (_set(1, thread=2), "it|expected"),
        (_set(0, finish_reason="stop"), "ended by 'stop'"),
    ],
)
def test_another_tree_is_refused_by_name(engine, change, problem):
    value = tree_of(engine, given_as(engine, **CUT)).to_dict()
    change(value)
    if problem == "ended by 'stop'":
        value["segments"][0]["finish_reason"] = "stop"
    with pytest.raises(BadRequestOptions, match=f"forkjoin.continues_tree.*{problem}"):
        go_on(engine, value)


def test_a_tree_of_another_dialect_is_refused(engine):
    value = tree_of(engine, given_as(engine, **JOINED)).to_dict()
    other = engine_of(dialect(thread=dialect().thread.model_dump() | {"header": "\n<Thread>\nno {n}:"}))
    with pytest.raises(BadRequestOptions, match=r"segments\[1\]\.token_ids: .* same model and dialect"):
        go_on(other, value)
    with pytest.raises(BadRequestOptions, match=r"continues_tree.*(segments|fork)"):
        go_on(engine_of(dialect("multiverse")), value)


def test_a_fork_that_the_limits_of_the_request_forbid_is_refused(engine):
    value = tree_of(engine, given_as(engine, **CUT)).to_dict()
    with pytest.raises(BadRequestOptions, match="the request may not fork where it has: too_many_forks"):
        go_on(engine, value, CompiledOptions(max_forks=0))


def test_a_tree_that_is_longer_than_a_context_is_refused(engine):
    value = tree_of(engine, given_as(engine, root=[("a" * 30, OPEN)])).to_dict()
    with pytest.raises(BadRequestOptions, match="expected contexts of less than 30 tokens, got one of 35"):
        go_on(engine_of(dialect(), max_model_len=30), value)


def test_an_answer_that_would_have_ended_here_is_refused(engine):
    value = tree_of(engine, given_as(engine, **JOINED)).to_dict()
    with pytest.raises(BadRequestOptions, match="would have ended"):
        go_on(engine_of(dialect(), max_model_len=30), value)


@pytest.mark.parametrize("name", ["asyncthink", "pasta", "pacore", "parallel-r1"])
def test_dialects_that_can_not_go_on_are_named(engine, name):
    value = tree_of(engine, given_as(engine, root=[("a", OPEN)])).to_dict()
    other = load(name)
    bound = BoundDialect(other, Characters(other.control_tokens), None)
    with pytest.raises(BadRequestOptions, match=f"but not with a dialect .*{name}"):
        go_on(Engine(bound, 4096, frozenset()), value, settings=Settings(dialect=other))


@pytest.mark.parametrize(
    "options", [CompiledOptions(enabled=False), CompiledOptions(best_of=2, vote="x", prune="memory")]
)
def test_requests_that_can_not_go_on_are_named(engine, options):
    value = tree_of(engine, given_as(engine, root=[("a", OPEN)])).to_dict()
    with pytest.raises(BadRequestOptions, match=r"but not with (prune|enabled = false)"):
        go_on(engine, value, options)


def test_the_prompt_must_be_that_of_the_tree(engine):
    given = given_as(engine, **CUT)
    check_prompt(given, given.prompt_ids, given.num_tokens + 1)
    with pytest.raises(BadRequestOptions, match="with another token at 1"):
        check_prompt(given, [given.prompt_ids[0], 7, *given.prompt_ids[2:]], None)
    with pytest.raises(BadRequestOptions, match="with another length"):
        check_prompt(given, given.prompt_ids[:-1], None)
    with pytest.raises(BadRequestOptions, match="raise max_tokens"):
        check_prompt(given, given.prompt_ids, given.num_tokens)


@pytest.mark.parametrize("options", [CompiledOptions(), CompiledOptions(best_of=2, vote="x")])
def test_of_a_tree_that_has_only_a_prompt_nothing_is_given(engine, options):
    value = tree_of(engine, given_as(engine, root=[("", OPEN)])).to_dict()
    assert go_on(engine, value, options).given == given_as(engine)


def test_a_request_that_forks_first_does_not_go_on_from_a_tree_that_has_not(engine):
    value = tree_of(engine, given_as(engine, root=[("a", OPEN)])).to_dict()
    with pytest.raises(BadRequestOptions, match="expected a tree that forked after its prompt"):
        go_on(engine, value, VOTE)


def forked_at_prompt(engine, *ends, then=()):
    """The tree of a request that has forked after its prompt, each thread with a text and how it ended."""
    encode = engine.bound_dialect.tokenizer.encode
    prompt = encode("What?")
    segments = [Segment(-1, prompt, len(prompt), 0, finish_reason="abort")]
    for thread, (text, end) in enumerate(ends):
        segments.append(
            Segment(
                thread, encode(text), 0, 5, parent=0, fork_offset=5, forked_by=0, finish_reason=end, title=""
            )
        )
    return Tree([*segments, *then], []).to_dict()


def test_a_vote_that_no_engine_can_have_had_is_refused(engine):
    value = forked_at_prompt(engine, ("", "stop"), ("", "stop"))
    with pytest.raises(BadRequestOptions, match=r"continues_tree: .* can't write again \(IndexError\)"):
        go_on(engine, value, VOTE)


@pytest.mark.parametrize("end", ["client_cancelled", "pruned", "cut"])
def test_a_thread_that_was_stopped_from_outside_has_no_vote_again(engine, end):
    ends = [("= 1", end), ("= 1\0", "stop"), ("= 2", None), ("", "cancelled")]
    vote = msgspec.structs.replace(VOTE, best_of=4)
    given = go_on(engine, forked_at_prompt(engine, *ends), vote).given
    assert [given.stretches[f"/0.{n}"][0].then for n in range(4)] == [end, "stop", OPEN, OPEN]
    decided = [("= 1\0", "stop"), *ends[1:]]
    with pytest.raises(BadRequestOptions, match="would have ended"):
        go_on(engine, forked_at_prompt(engine, *decided), vote)


def test_a_tree_of_more_or_deeper_threads_than_the_server_lets_is_refused(engine):
    value = tree_of(engine, given_as(engine, **CUT)).to_dict()
    few = Settings(dialect=engine.bound_dialect.dialect, max_request_threads=1)
    with pytest.raises(
        BadRequestOptions, match=r"at most 1 threads \(the server's --max-request-threads\), got 2"
    ):
        go_on(engine, value, settings=few)
    deep = [Segment(n, [], 0, 5, parent=n, fork_offset=0, forked_by=n) for n in range(2, 60)]
    value = forked_at_prompt(engine, ("a", None), ("b", None), then=deep)
    with pytest.raises(BadRequestOptions, match=r"at most 1 threads in each other \(max_depth\), got 59"):
        go_on(engine, value)


@pytest.mark.parametrize("whose", ["the request", "a thread"])
def test_a_fork_that_a_request_asks_for_is_made_once(engine, whose):
    family = Family("f", Limits())
    dialect = explicit_dialect(VOTE, Limits())
    bound_dialect = BoundDialect(dialect, engine.bound_dialect.tokenizer, None)
    world = GivenWorld(bound_dialect.tokenizer, engine)
    machine = Machine(family, Terms(VOTE, bound_dialect, 100), world)
    plan = planning.plan(machine, family.root, [1], 1)
    threads = family.fork(family.root, plan, 1)
    for thread in threads[whose == "a thread" :]:
        family.end(thread, ThreadEnd.STOP)
    branch = threads[0]
    if whose == "the request":
        family.join(family.root, [])
        branch = family.root
    reason = {"the request": "too_many_forks", "a thread": "nested_fork"}[whose]
    assert planning.plan(machine, branch, [1], 1).reason == reason


def test_a_tree_is_sent_with_each_answer_again(engine, monkeypatch):
    given = given_as(engine, **CUT)
    check_answers(given, 3, 6)
    with pytest.raises(BadRequestOptions, match=r"at most 5 threads over all answers .* got 6 in 3 answers"):
        check_answers(given, 3, 5)
    num_bytes = len(msgspec.msgpack.encode(given))
    monkeypatch.setattr(continuing, "MAX_BESIDE_PROMPT_BYTES", 3 * num_bytes)
    check_answers(given, 3, 6)
    with pytest.raises(BadRequestOptions, match=f"at most {3 * num_bytes} bytes, .* for 4 answers"):
        check_answers(given, 4, 256)


def test_a_tree_tells_of_as_many_likeliest_tokens_as_the_server_does(engine):
    value = tree_of(engine, given_as(engine, root=[("a", OPEN)])).to_dict()
    value["segments"][0]["top_logprobs"] = [*[{}] * 5, {"1": 0.0, "2": 0.0}]
    assert go_on(replace(engine, max_logprobs=2), value).given is not None
    with pytest.raises(BadRequestOptions, match=r"segments\[0\].top_logprobs: expected at most 1 .* got 2"):
        go_on(replace(engine, max_logprobs=1), value)


def test_a_tree_in_which_a_text_was_swapped_is_refused_by_name(engine):
    swapped = Segment(0, [65, 66], 1, 6, parent=1, fork_offset=1, finish_reason="cancelled")
    value = forked_at_prompt(engine, ("ab", None), ("", None), then=[swapped])
    with pytest.raises(BadRequestOptions, match=r"segments\[3\]: .* in which a dialect made its swaps"):
        go_on(engine, value, VOTE)
