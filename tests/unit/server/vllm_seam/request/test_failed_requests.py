"""Streams of requests that failed in the engine."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

from forkjoin_server.vllm_seam.request.failed_requests import _until_error


def taken(*chunks):
    """What of a chat's stream becomes a message, and the errors in it."""
    errors: list[str] = []

    async def stream():
        for chunk in chunks:
            yield chunk

    async def take():
        return [chunk async for chunk in _until_error(stream(), errors)]

    return asyncio.run(take()), errors


def test_a_stream_of_text_ends_before_its_error():
    before = 'data: {"id": 1}\n\n'
    error = 'data: {"error": {"message": "the request r failed"}}\n\n'
    assert taken(before, error, "data: [DONE]\n\n") == ([before], ["the request r failed"])


def test_a_stream_of_objects_as_vllm_makes_since_0_33_is_left_to_vllm():
    chunks = [SimpleNamespace(choices=[]), SimpleNamespace(error="failed")]
    assert taken(*chunks) == (chunks, [])
