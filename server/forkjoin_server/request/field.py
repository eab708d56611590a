"""What a request's body says of fork/join: checked, and taken out of what vLLM reads."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter, ValidationError

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut, excerpt
from forkjoin_scheduler.publish.feed import key_in
from forkjoin_scheduler.request.options import RequestOptions, parse_options
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.answer.agents import without_calls
from forkjoin_server.answer.responses import without_threads
from forkjoin_server.asgi import Json
from forkjoin_server.request import structured
from forkjoin_server.request.bypass import bypass_reason
from forkjoin_server.request.instruction import with_instruction
from forkjoin_server.routes import BATCH, CHAT, GENERATE, MESSAGES, PATHS, RESPONSES

DEFAULTS = Settings()
#: More choices than any server makes; Python writes out no number of thousands of digits.
_MANY = 1 << 31
#: Reads a number as vLLM's routes do, which take "2" and "2.0" for 2.
_INTEGER = TypeAdapter(int)
#: Of vLLM's extra arguments: it is a 500 where these are anything else, and a traceback in a stream.
_OBJECTS = ("kv_transfer_params", "ec_transfer_params")
#: Of the same: what the keys begin with by which the server itself speaks to its engine.
_RESERVED = f"{KEY}_"


def prepare(
    body: Json, path: str, key: str, settings: Settings = DEFAULTS, *, reasons: bool = False
) -> tuple[Json, RequestOptions]:
    """Take the fork/join field out of ``body``. ``reasons``: whether the server has a reasoning parser.

    Returns the body for vLLM and what the field asks for. Raises BadRequestOptions.
    """
    body = dict(body)
    _check_hides_no_options(body)
    options = _take_options(body)
    options.check_limits(settings.limits, settings.caps)
    structured.check_place(options, settings.dialect)
    options.check_pruning(settings.prune_policy)
    options.check_rounds(settings.dialect)
    options = _with_lease(body, path, options, settings)
    _check_num_threads(body, path, options, settings)
    if options.include_threads:
        _check_threads_can_be_shown(body, path)
    if options.return_tree:
        _check_has_tree(body, path)
    if options.stream_segments and not body.get("stream"):
        raise BadRequestOptions("forkjoin.stream_segments: expected stream = true beside it: drop one")
    if options.continues_tree is not None:
        _check_continues_tree(sampling_of(body, path), options, settings, reasons)
    if options.forks_at_prompt or options.rounds is not None:
        asked = f"forkjoin.{options.asked}"
        _check_may_fork(asked, sampling_of(body, path), options, settings, reasons)
    elif instruction := _instruction(sampling_of(body, path), options, settings, reasons):
        body = with_instruction(body, path, instruction)
    if sampling_of(body, path).get("use_beam_search"):
        options = options.model_copy(update={"enabled": False})  # each step is a request to the engine
    if path == RESPONSES:
        _prepare_responses(body, key)
    return body, options


def options_in(body: Json, path: str, settings: Settings = DEFAULTS) -> RequestOptions:
    """What the field in ``body`` asks for, before ``prepare``. Raises BadRequestOptions."""
    return _going_on(body, path, _take_options(dict(body)), settings)


def sampling_of(body: Json, path: str) -> Json:
    """``body`` with its sampling parameters in it, which one route has in an object of their own."""
    own = body.get("sampling_params")
    return body | own if path == GENERATE and isinstance(own, dict) else body


def _check_hides_no_options(body: Json) -> None:
    """Raise BadRequestOptions if options, or what is to be an object, stand where nobody checks them."""
    sampling = body.get("sampling_params")
    places = {
        "vllm_xargs": body.get("vllm_xargs"),
        "sampling_params.extra_args": sampling.get("extra_args") if isinstance(sampling, dict) else None,
    }
    for name, place in places.items():
        if not isinstance(place, dict):
            continue
        if KEY in place:
            raise BadRequestOptions(f"{name}.{KEY}: expected the field {KEY} in the body itself")
        if reserved := sorted(key for key in place if key.startswith(_RESERVED)):
            raise BadRequestOptions(
                f"{name}.{reserved[0]}: expected no key that the server reserves for itself: leave it out",
                field=name,
            )
        for key in _OBJECTS:
            value = place.get(key)
            if value is not None and not isinstance(value, dict):
                raise BadRequestOptions(f"{name}.{key}: expected an object, got {excerpt(value)}", field=name)


def _with_lease(body: Json, path: str, options: RequestOptions, settings: Settings) -> RequestOptions:
    """The same as ``_going_on``. Raises BadRequestOptions for a ``keep`` that can't be."""
    options.check_keep(settings)
    if options.keep is not None:
        num_answers, _ = count_answers(sampling_of(body, path), path)
        if num_answers != 1:
            raise BadRequestOptions(
                f"forkjoin.keep: expected one answer, got {cut(str(num_answers))}: ask for each by itself"
            )
        if path == RESPONSES and body.get("background") and body.get("request_id") is not None:
            raise BadRequestOptions(
                "forkjoin.keep: expected no request_id beside background, for the answer is kept by the id "
                "that the server makes: leave it out"
            )
    return _going_on(body, path, options, settings)


def _going_on(body: Json, path: str, options: RequestOptions, settings: Settings) -> RequestOptions:
    """``options`` with the answer that the body goes on from."""
    previous = body.get("previous_response_id") if path == RESPONSES else None
    if isinstance(previous, str) and options.continues is None and settings.dialect is not None:
        options = options.model_copy(update={"continues": previous})
    return options


def _instruction(body: Json, options: RequestOptions, settings: Settings, reasons: bool) -> str | None:
    """The dialect's, unless the request will not fork: then it is not to be asked for the tags of threads."""
    dialect = settings.dialect
    if not options.enabled or dialect is None or _block_reason(body, options, reasons) is not None:
        return None
    # An answer that is the threads themselves no grammar lets through.
    is_answer = structured.is_structured(body) and not dialect.join.goes_on
    return None if is_answer else dialect.instruction


def _block_reason(body: Json, options: RequestOptions, reasons: bool) -> str | None:
    """Why a request will not fork, None if it may."""
    if structured.is_structured(body) and (reason := structured.block_reason(options, reasons)):
        return reason
    return bypass_reason(body)


def count_answers(body: Json, path: str) -> tuple[int, int]:
    """How many sequences a request body asks for at ``path``, and how many of them for each prompt.

    1 where vLLM will refuse it.
    """
    if path == BATCH:
        messages = body.get("messages")
        num_prompts = len(messages) if isinstance(messages, list) else 1
    else:  # /invocations makes a completion of what is no chat: prompts count beside messages, too
        num_prompts = _num_prompts(body.get("prompt")) + _num_prompts(body.get("prompt_embeds"))
    try:
        num_choices = max(min(_INTEGER.validate_python(body.get("n", 1)), _MANY), 1)
    except ValidationError:
        num_choices = 1
    return max(num_prompts, 1) * num_choices, num_choices


def _num_prompts(given: Any) -> int:
    """How many prompts ``given`` is, of which one may be a list of token ids."""
    is_batch = isinstance(given, list) and bool(given) and not isinstance(given[0], (int, dict))
    return len(given) if is_batch else int(given is not None)


def _check_num_threads(body: Json, path: str, options: RequestOptions, settings: Settings) -> None:
    """Raise BadRequestOptions if the body asks for too many threads, over all its answers."""
    most, (num_answers, _) = settings.max_request_threads, count_answers(sampling_of(body, path), path)
    num_threads = options.width or sum(options.rounds or ())
    if num_answers * num_threads > most:
        raise BadRequestOptions(
            f"forkjoin.{options.asked}: expected at most {most} threads over all answers to a request (the "
            f"server's --max-request-threads), got {cut(str(num_answers))} answers of {num_threads}"
        )


def _take_options(body: Json) -> RequestOptions:
    """Take the options out of ``body``: its ``forkjoin``, and one of its ``stream_options``."""
    given = body.pop("forkjoin", None)
    if isinstance(given, str):
        raise BadRequestOptions("forkjoin: expected an object, got str")
    asked = {} if given is None else given
    stream_options = body.get("stream_options")
    if isinstance(stream_options, dict) and "include_threads" in stream_options:
        body["stream_options"] = {k: v for k, v in stream_options.items() if k != "include_threads"}
        if isinstance(asked, dict):
            asked = asked | {"include_threads": stream_options["include_threads"]}
    return parse_options(asked)


def _check_threads_can_be_shown(body: Json, path: str) -> None:
    if path not in (CHAT, RESPONSES, GENERATE):
        raise BadRequestOptions(f"include_threads: expected {CHAT}, {RESPONSES} or {GENERATE}, got {path}")
    n = sampling_of(body, path).get("n")
    if path != RESPONSES and n not in (None, 1):
        raise BadRequestOptions(f"include_threads: expected n = 1, got n = {excerpt(n)}: ask for one choice")
    if path == RESPONSES and body.get("background"):
        raise BadRequestOptions(
            "include_threads: expected background = false: what is fetched later has no threads"
        )


def _check_has_tree(body: Json, path: str) -> None:
    """Raise BadRequestOptions where an answer can't come with its tree."""
    asked = "forkjoin.return_tree"
    if path == MESSAGES:
        others = ", ".join(known for known in PATHS if known != path)
        raise BadRequestOptions(f"{asked}: expected one of {others}, got {path}")
    if body.get("background"):
        raise BadRequestOptions(f"{asked}: expected background = false: what is fetched later has no tree")
    for name in ("use_beam_search", "prompt_embeds"):
        if body.get(name):
            raise BadRequestOptions(f"{asked}: expected a request without {name}: drop one")


def _check_continues_tree(body: Json, options: RequestOptions, settings: Settings, reasons: bool) -> None:
    """Raise BadRequestOptions if the engine could not go on from a tree."""
    asked = "forkjoin.continues_tree"
    options.check_continued_tree(settings.max_continued_tokens)
    _check_may_fork(asked, body, options, settings, reasons)
    if structured.is_structured(body):
        raise BadRequestOptions(f"{asked}: expected a request without structured output: drop one")


def _check_may_fork(
    asked: str, body: Json, options: RequestOptions, settings: Settings, reasons: bool
) -> None:
    """Raise BadRequestOptions if the engine would not fork, or go on with forks, as is ``asked``."""
    if not options.enabled:
        raise BadRequestOptions(f"{asked}: expected forkjoin.enabled = true beside it, got false")
    if settings.dialect is None:
        raise BadRequestOptions(f"{asked}: expected a server that forks, but it runs with --dialect none")
    if reason := _block_reason(body, options, reasons):
        raise BadRequestOptions(f"{asked}: expected a request that may fork, but not with {reason}: drop one")
    if body.get("prompt_logprobs") is not None or body.get("echo"):
        raise BadRequestOptions(f"{asked}: expected no prompt_logprobs and no echo beside it: drop one")


def _prepare_responses(body: Json, key: str) -> None:
    """Put ``key`` in the request id, which this route takes from the body only."""
    given = body.get("request_id")
    if given is None:
        body["request_id"] = f"resp_{key}"
    elif isinstance(given, str) and not body.get("background"):
        body["request_id"] = f"{given}_{key}"
    elif isinstance(given, str) and key_in(given):
        # A response in the background is fetched and cancelled by the id that the client gave. So our
        # key can't be appended, and events of its threads would reach the request that has this key.
        raise BadRequestOptions(
            "request_id: expected a new id for a response in the background, got a used one"
        )
    if isinstance(body.get("input"), list):
        body["input"] = without_calls(without_threads(body["input"]))
