"""vLLM's routes whose requests may fork: by path, and on ``/invocations`` by the body's shape."""

from __future__ import annotations

from forkjoin_scheduler.excerpt import cut
from forkjoin_server.asgi import Json

CHAT = "/v1/chat/completions"
BATCH = "/v1/chat/completions/batch"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
MESSAGES = "/v1/messages"
#: Tokens in, tokens out; its sampling parameters are an object of their own.
GENERATE = "/inference/v1/generate"
#: Below it, responses in the background are fetched, and streamed while they are made.
STORED = f"{RESPONSES}/"
#: The routes whose requests may fork with options of their own and whose usage is corrected.
PATHS = (CHAT, BATCH, COMPLETIONS, RESPONSES, MESSAGES, GENERATE)
#: Events that carry a response as it ended.
FINAL_EVENTS = ("response.completed", "response.incomplete", "response.failed")
#: SageMaker's, which vLLM hands to whichever of its routes takes the body.
INVOCATIONS = "/invocations"
#: Of each of many items, or questions, one token's probabilities; these do not fork.
SCORING = "/generative_scoring"
DECISIONS = "/v1/systemone"
#: Where a request becomes work for the engine: refused before anything of it is read, where too much waits.
GENERATING = (*PATHS, INVOCATIONS, SCORING, DECISIONS)
#: Whether the server should be started again. The second is SageMaker's name for the first.
HEALTH = ("/health", "/ping")


def misplaced(path: str) -> str:
    """What is wrong with the field ``forkjoin`` in a body at ``path`` that no route of ``PATHS`` answers."""
    if path == INVOCATIONS:
        return (
            f"forkjoin: expected messages, prompt or prompt_embeds beside it, got none of them, and {path} "
            "chooses what answers a body by these"
        )
    return f"forkjoin: {cut(path)} does not know it: expected one of {', '.join(PATHS)}"


def route_of(path: str, body: Json) -> str | None:
    """Which of ``PATHS`` answers ``body`` at ``path``, None if none does.

    On ``/invocations`` vLLM tries a chat first, which must have messages; then a completion, then
    what does not generate (embeddings have an ``input``).
    """
    if path != INVOCATIONS:
        return path if path in PATHS else None
    if isinstance(body.get("messages"), list):
        return CHAT
    return COMPLETIONS if "prompt" in body or "prompt_embeds" in body else None
