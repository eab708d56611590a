"""A policy of the user's own that raises ends no request, and the log and the metrics say that it was the policy."""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.policy.admission import Admission
from forkjoin_scheduler.policy.pruning import Pruning
from forkjoin_scheduler.settings import OWN_POLICIES
from forkjoin_server.start.configuration import EMBEDDED_MODEL

pytestmark = pytest.mark.engine


class AdmissionFails(Admission):
    def admits(self, new, running, room):
        raise RuntimeError("a fault for a test")


class AdmissionExits(Admission):
    def admits(self, new, running, room):
        raise SystemExit("a fault for a test")


class ChoosingFails:
    def choose(self, facts):
        raise RuntimeError("a fault for a test")


class ChoosingExits:
    def choose(self, facts):
        raise SystemExit("a fault for a test")


class ChoosingNothing:
    def choose(self, facts):
        return None


class AdmissionChangesWhatRuns(Admission):
    def admits(self, new, running, room):
        running[:] = [None]
        raise RuntimeError("a fault for a test")


class ChoosingEmptiesFacts:
    def choose(self, facts):
        facts.clear()
        raise RuntimeError("a fault for a test")


class AdmissionForgetsToReturn(Admission):
    def admits(self, new, running, room):
        return None


class ChoosingFamilies:
    def choose(self, facts):
        return {thread.family for thread in facts.threads}


class ChoosingMoreThreads:
    def choose(self, facts):
        return {thread.key for thread in facts.threads} | {f"{facts.threads[0].family}#99"}


class ChoosingAnother:
    def choose(self, facts):
        return "another"


class PruningFails(Pruning):
    ask_every = 0

    def stop(self, facts):
        raise RuntimeError("a fault for a test")


class PruningExits(Pruning):
    ask_every = 0

    def stop(self, facts):
        raise SystemExit("a fault for a test")


class PruningByHalfTokens(Pruning):
    window = 0.5


class PruningSometimes(Pruning):
    ask_every = "sometimes"


class PruningByNegativeTokens(Pruning):
    num_logprobs = -1


class PruningNobody(Pruning):
    ask_every = 0

    def stop(self, facts):
        return {0, 17}


FAILING = [
    *(("admission_policy", cls) for cls in (AdmissionFails, AdmissionExits, AdmissionChangesWhatRuns)),
    *(("thread_policy", cls) for cls in (ChoosingFails, ChoosingExits, ChoosingNothing)),
    *(("eviction_policy", cls) for cls in (ChoosingFails, ChoosingExits, ChoosingEmptiesFacts)),
    *(("prune_policy", cls) for cls in (PruningFails, PruningExits, PruningSometimes)),
]
#: Of the right kind, but nothing that can be used: what is expected, and what it is.
ANSWERING_WRONGLY = [
    ("admission_policy", AdmissionForgetsToReturn, "expected True or False, got None"),
    ("thread_policy", ChoosingFamilies, "expected keys of the threads it was asked of, got '"),
    ("thread_policy", ChoosingMoreThreads, "expected keys of the threads it was asked of, got '"),
    ("eviction_policy", ChoosingAnother, "expected the key of a family that holds blocks, got 'another'"),
    ("eviction_policy", ChoosingNothing, "expected the key of a family that holds blocks, got None"),
    ("prune_policy", PruningByHalfTokens, "window: expected a whole number from 1 on, got 0.5"),
    ("prune_policy", PruningByNegativeTokens, "num_logprobs: expected a whole number from 0 on, got -1"),
    ("prune_policy", PruningNobody, "expected sibling indices of threads that run, got 17 in a vote of 3"),
]


@pytest.fixture
def logged(monkeypatch):
    """The errors that are logged, in words."""
    from forkjoin_scheduler.vllm_seam import fence

    texts: list[str] = []
    # not by a handler: each new engine configures all loggers anew
    monkeypatch.setattr(fence.logger, "error", lambda text, *of, **_: texts.append(text % of))
    return texts


def test_each_kind_of_policy_fails_here():
    for cases in (FAILING, ANSWERING_WRONGLY):
        assert {case[0] for case in cases} == OWN_POLICIES.keys()


@pytest.mark.parametrize(("setting", "failing"), FAILING)
def test_no_request_fails_and_the_policy_is_named(setting, failing, logged):
    path = f"{__name__}.{failing.__name__}"
    _fails_no_request(setting, path, logged, " raised ")


@pytest.mark.parametrize(("setting", "wrong", "said"), ANSWERING_WRONGLY)
def test_what_a_policy_answers_wrongly_is_said_with_what_was_expected(setting, wrong, said, logged):
    _fails_no_request(setting, f"{__name__}.{wrong.__name__}", logged, f": {said}")


def _fails_no_request(setting, path, logged, then):
    from tests.engine.by_hand import ByHand

    hand = ByHand(load("explicit"), EMBEDDED_MODEL, filler="y", policies={setting: path})
    hand.allowed_errors.add(setting)
    for name in "ab":
        forkjoin = {"best_of": 3, "vote": "y"} | ({"prune": "own"} if setting == "prune_policy" else {})
        hand.add(name, "q" * 20, max_tokens=20, forkjoin=forkjoin)
    hand.steps_until(lambda: all(hand.decodes(f"{name}#1") for name in "ab"))
    hand.scheduler._eviction.relieve()
    hand.finish()
    ends = {o.request_id: str(o.finish_reason) for o in hand.outputs if o.finish_reason is not None}
    assert ends == {"a": "length", "b": "length"}
    num_failed = 2 if setting == "prune_policy" else 1  # which each vote asks
    assert [e["where"] for e in hand.events("internal_error")] == [setting] * num_failed
    flag = f"--{setting.replace('_', '-')}"
    assert len(logged) == num_failed
    assert all(text.startswith(f"your policy {path} ({flag}){then}") for text in logged)
