"""What the soak asks, and the right answers to some of it: those that the idle server gave."""

from __future__ import annotations

from typing import Any

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
BATCH = f"{CHAT}/batch"

TWO, THREE, FIVE = (
    "a=482*731, b=9047*36",
    "a=482*731, b=7*8, c=9047*36",
    "a=482*731, b=907*36, c=913*846, d=623*547, e=819*364",
)
PROBLEMS = (TWO, THREE, FIVE, "a=48*36", "a=57*18, b=12*34")
#: More than any answer takes: where an answer is cut inside threads depends on how far each has come.
MAX_TOKENS = 3000


def chat(problem: str, **more: Any) -> dict[str, Any]:
    message = {"role": "user", "content": problem}
    return {"model": "abacus", "temperature": 0, "max_tokens": MAX_TOKENS, "messages": [message]} | more


#: Asked again and again, at temperature 0: the answer must always be the same.
KNOWN: tuple[dict[str, Any], ...] = (
    *(chat(problem) for problem in PROBLEMS),
    chat(TWO, forkjoin={"enabled": False}),
    chat(THREE, forkjoin={"max_threads_per_fork": 2}),
    chat(
        "Go on.",
        forkjoin={"branches": [{"text": "a=48*36\n"}, {"text": "b=57*18\n"}], "closing": "\ntotal"},
        max_tokens=400,
    ),
    chat(TWO, forkjoin={"best_of": 3, "vote": "(?P<result>[0-9]+)"}),
)

#: Each is refused, and none costs the engine anything.
WRONG: tuple[tuple[str, dict[str, Any]], ...] = (
    (CHAT, chat(TWO, forkjoin={"bogus": 1})),
    (CHAT, chat(TWO, forkjoin=[])),
    (CHAT, chat(TWO, forkjoin={"branches": [{"text": "a"}] * 2, "best_of": 1, "vote": "x"})),
    (CHAT, chat(TWO, forkjoin={"best_of": 4, "vote": "("})),
    (CHAT, chat(TWO, forkjoin={"branches": [{"text": "\ud800"}]})),
    (CHAT, chat(TWO, forkjoin={"branches": [{"title": "\ud800", "text": "a="}]})),
    (CHAT, chat(TWO, forkjoin={"x": "y" * 100_000})),
    (CHAT, chat(TWO, max_tokens=-1)),
    (CHAT, {"model": "abacus"}),
    (CHAT, chat("a" * 50_000)),
    (COMPLETIONS, {"model": "abacus", "prompt": "x", "forkjoin": {"include_threads": True}}),
    (RESPONSES, {"model": "abacus", "input": TWO, "background": True, "forkjoin": {"include_threads": True}}),
    ("/tokenize", {"model": "abacus", "prompt": "x", "forkjoin": {}}),
    ("/v1/nothing", {}),
)
