"""Each published client on what a scripted model writes: its text is the answer that the engine is tested to give.

The answers are those of ``tests/engine/malformed_cases.py``, which ``tests/engine/test_malformed.py`` holds
against the engine. What our limits do has no counterpart in a client.
"""

from __future__ import annotations

import pytest

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.replay.characters import Characters
from tests.engine.malformed_cases import CASES
from tests.reference_clients.clients import CLIENTS, NONE, SHORT
from tests.reference_clients.completions import Scripted

#: Kinds that are the engine's own: its limits, and its policies at them.
LIMITS = {"too_many_threads", "max_forks", "total_tokens", "joined_too_long"}
PROMPT = "<|user|>q<|assistant|>"


_CASES = [
    pytest.param(name, case, id=f"{name}-{kind}-{i}")
    for (name, kind), of_kind in CASES.items()
    if name in CLIENTS and kind not in LIMITS
    for i, case in enumerate(of_kind)
    if case.forkjoin.keys() <= {"max_tokens_per_thread"}
]


@pytest.mark.parametrize(("name", "case"), _CASES)
def test_the_published_client_writes_what_the_engine_does(name, case):
    model = Scripted(case.script, Characters(load(name).control_tokens).encode)
    limit = case.forkjoin.get("max_tokens_per_thread")
    assert (CLIENTS | SHORT)[name](model, PROMPT, limit) == case.answer


def test_each_built_in_dialect_has_a_published_client_or_a_reason_for_none():
    assert not CLIENTS.keys() & NONE.keys()
    assert {*CLIENTS, *NONE} == set(builtin_names())
