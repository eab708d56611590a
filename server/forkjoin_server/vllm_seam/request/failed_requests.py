"""Errors of requests that failed in the engine: each says which it was, in the shape of its route."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from forkjoin_server.vllm_seam.patching import put_in_place


class StreamFailed(Exception):
    """What a stream of /v1/responses ends with. No GenerationError, of which vLLM would make JSON."""


def name_failed_requests() -> None:
    """Let every error of a request that failed in the engine name it."""
    _name_requests()
    _end_streams_of_responses()
    _end_streams_of_messages()


def failure_of(request_id: str) -> str:
    """The error for a client whose request failed in the engine."""
    return (
        f"Internal server error: the request {request_id} failed in the engine, and no other; the server's "
        "log says why. Ask again, or report it with this id"
    )


def _name_requests() -> None:
    """Patch: ``GenerateBaseServing._raise_if_error``.

    Symptom without it: "Internal server error", of whatever request.
    Upstream: so in stock ``vllm serve``, too. Remove when its errors name the request.
    """
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing
    from vllm.exceptions import GenerationError

    raise_if_error = GenerateBaseServing._raise_if_error

    def _raise_if_error(self: Any, finish_reason: str | None, request_id: str) -> None:
        try:
            raise_if_error(self, finish_reason, request_id)
        except GenerationError as error:
            error.args = (failure_of(request_id),)
            raise

    put_in_place(GenerateBaseServing, _raise_if_error)


def _end_streams_of_responses() -> None:
    """Patch: ``OpenAIServingResponses.responses_stream_generator``, and how it makes an event of an error.

    Symptom without it: the stream is cut off without a word, with a traceback in the log, for the error
    that vLLM wants to send is none of the stream's events.
    Upstream: so in stock ``vllm serve``, too. Remove when its streams end with an error.
    """
    from openai.types.responses import ResponseErrorEvent
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses
    from vllm.exceptions import GenerationError

    stream_responses = OpenAIServingResponses.responses_stream_generator

    def _convert_generation_error_to_streaming_response(self: Any, error: GenerationError) -> str:
        raise StreamFailed(str(error)) from None

    async def responses_stream_generator(self: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        number = 0
        try:
            async for event in stream_responses(self, *args, **kwargs):
                number = getattr(event, "sequence_number", number) + 1
                yield event
        except StreamFailed as error:
            yield ResponseErrorEvent(
                type="error", code="server_error", message=str(error), param=None, sequence_number=number
            )

    put_in_place(
        OpenAIServingResponses, responses_stream_generator, _convert_generation_error_to_streaming_response
    )


def _end_streams_of_messages() -> None:
    """Patch: ``AnthropicServingMessages.message_stream_converter``.

    Symptom without it: the stream ends with pydantic's report of what an error is not, and a traceback in
    the log: it takes the error of a chat's stream for one of its chunks.
    Upstream: so in stock ``vllm serve`` 0.32, too. From 0.33 on the chunks are objects, and the stream ends
    with an error by itself: remove with 0.32.
    """
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages, wrap_data_with_event

    convert_messages = AnthropicServingMessages.message_stream_converter

    async def message_stream_converter(self: Any, generator: AsyncIterator[Any]) -> AsyncIterator[str]:
        errors: list[str] = []
        async for event in convert_messages(self, _until_error(generator, errors)):
            yield event
        for message in errors:
            error = {"type": "error", "error": {"type": "api_error", "message": message}}
            yield wrap_data_with_event(json.dumps(error), "error")

    put_in_place(AnthropicServingMessages, message_stream_converter)


async def _until_error(chunks: AsyncIterator[Any], errors: list[str]) -> AsyncGenerator[Any, None]:
    """The ``chunks`` of a chat's stream before an error that is text; its message goes into ``errors``."""
    async for chunk in chunks:
        if isinstance(chunk, str) and chunk.startswith('data: {"error"'):
            errors.append(json.loads(chunk.removeprefix("data: "))["error"]["message"])
            return
        yield chunk
