"""Lets workers encode an image again of whose tokens they were given the KV.

Patch: ``vllm.v1.core.sched.output.strip_covered_mm_data`` -> all that a request has.
Symptom without it: a request that starts on the KV of an image, as each thread does after one, reaches the
workers without the pixels. If it loses that KV, and the encoder's cache has lost the image, the V1 runner
fails with "Expected number of multimodal embeddings to match", and the engine ends.
Upstream: so in stock ``vllm serve``, too, for a request that was found in the prefix cache and is preempted.
Remove when vLLM sends the pixels again with a request that resumes.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.core.sched import output


def send_media_with_each_request() -> None:
    """Let each new request have its media with it. Costs their transport to workers in other processes."""

    def keep_all(mm_features: list[Any], *args: Any, **kwargs: Any) -> list[Any]:
        return mm_features

    setattr(output, "strip_covered_mm_data", keep_all)  # noqa: B010
