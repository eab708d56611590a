"""What is sent, and to what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from forkjoin_server.start.configuration import EMBEDDED_NAME

QUESTION = "a=482*731, b=9047*36"


@dataclass(frozen=True)
class Plan:
    """Of the ``requests``, ``cancelled`` clients hang up early and ``stalled`` ones never read.

    ``limit_s``: seconds in which every request must be over; one that is not counts as lost.
    ``health_s``: seconds in which ``/health`` must answer, on a machine that does nothing else.
    """

    requests: int = 2000
    stalled: int = 100
    cancelled: int = 50
    max_tokens: int = 120
    num_blocks: int = 400
    limit_s: float = 600
    health_s: float = 1.0
    is_stock: bool = False
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of the server."""
        return "vllm serve" if self.is_stock else "forkjoin serve"


def body(plan: Plan) -> dict[str, Any]:
    """A request for ``/v1/chat/completions``.

    Without a seed: a seeded request whose prompt takes several steps ends stock vLLM's worker on a CPU
    (``vllm_seam/mends/seeded.py`` mends that).
    """
    return {
        "model": EMBEDDED_NAME,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": plan.max_tokens,
        "temperature": 1.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def big_body(plan: Plan) -> dict[str, Any]:
    """One whose answer fills the buffers of a connection that nobody reads."""
    return body(plan) | {"logprobs": True, "top_logprobs": 20, "max_tokens": 2000}
