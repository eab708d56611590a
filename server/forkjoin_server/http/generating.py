"""A request that may fork: its field is taken out of the body, and threads are woven into vLLM's answer."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_scheduler.publish.feed import FEEDS, new_key
from forkjoin_scheduler.request.options import RequestOptions
from forkjoin_scheduler.request.visits import BACKLOG, VISIT
from forkjoin_scheduler.settings import Settings
from forkjoin_server import own_responses
from forkjoin_server.access import entrance
from forkjoin_server.answer import agents
from forkjoin_server.answer.chat import ChatThreads
from forkjoin_server.answer.responses import ResponseThreads
from forkjoin_server.answer.stored import AnothersResponse, StoredResponses, feed_of
from forkjoin_server.answer.threads import ThreadLog
from forkjoin_server.answer.tokens import TokenThreads
from forkjoin_server.answer.trees import TreePresenter, Trees
from forkjoin_server.answer.weaver import PassThrough, Presenter, Weaver
from forkjoin_server.asgi import App, Json, Message, Receive, Send
from forkjoin_server.http.app_state import client_of, num_engines_of, vllm_config_of
from forkjoin_server.http.hangup import noticing
from forkjoin_server.operate.logs import REQUEST_ID
from forkjoin_server.request.continuing import check_answers
from forkjoin_server.request.field import count_answers, options_in, prepare, sampling_of
from forkjoin_server.request.grammars import check_grammars
from forkjoin_server.request.handover import Asked, compiled, handing_over, width_in_answers
from forkjoin_server.request.incoming import replay
from forkjoin_server.request.placement import Placement, place
from forkjoin_server.request.shape import check_beside_prompt, check_request_id
from forkjoin_server.routes import GENERATE, RESPONSES
from forkjoin_server.vllm_seam.request.keeping import check_keeps
from forkjoin_server.vllm_seam.request.reasoning import has_reasoning_parser
from forkjoin_server.vllm_seam.request.responses import stores_responses

#: What all answers to a request may come to, unless the operator says: as much as that many full contexts.
_MAX_CONTEXTS = 256
Present = Callable[[ThreadLog], Presenter]


@dataclass(frozen=True)
class Prepared:
    """A request that vLLM may read: its body and headers, and what the engine is asked beside these."""

    body: Json
    data: bytes
    scope: Message
    asked: Asked
    num_answers: int
    #: How many different prompts these have.
    num_prompts: int
    #: Names the requests that share a prompt with it.
    group: str | None
    #: The engine that is to answer; None: any.
    engine: int | None
    #: What its request id ends with, and its events are published under.
    key: str
    #: Gathers the threads of all its answers, which ``present`` shows if that ``is_wanted``.
    log: ThreadLog
    present: Present
    is_wanted: bool


class Generating:
    """Lets ``app`` answer requests that may fork; ``stored`` keeps the responses that are fetched later."""

    def __init__(self, app: App, stored: StoredResponses) -> None:
        self.app, self._stored = app, stored

    async def answer(
        self, path: str, given: Json, settings: Settings, scope: Message, receive: Receive, send: Send
    ) -> None:
        """Answer the body ``given`` as the route ``path`` does, or refuse it."""
        try:
            prepared = await _prepared(path, given, settings, scope)
            _announce(prepared)
            if is_stored := path == RESPONSES and stores_responses():
                self._stored.claim(prepared.body, served_tenant())
        except AnothersResponse as error:
            await own_responses.respond(send, 404, error.body)
        except Overloaded as error:
            await entrance.refuse(error, path, send)
        except BadRequestOptions as error:
            refusal = own_responses.error(str(error), path, param=error.field)
            await own_responses.respond(send, 400, refusal)
        else:
            await self._weave(path, prepared, receive, send, is_stored=is_stored)

    async def _weave(self, path: str, of: Prepared, receive: Receive, send: Send, *, is_stored: bool) -> None:
        request_id = _request_id(of.scope)
        REQUEST_ID.set(request_id)
        feed = feed_of(of.body, path, of.key)
        queue = FEEDS.subscribe(feed)
        receive, send = noticing(receive, send, request_id)
        weaver = Weaver(send, queue, of.log, of.present(of.log) if of.is_wanted else PassThrough())
        if is_stored:
            weaver.at_end = partial(self._stored.keep, of.body, weaver, of.present)
        pump = asyncio.create_task(weaver.pump())
        try:
            with handing_over(of.asked):
                await self.app(of.scope, replay(of.data, receive), weaver.send)
        finally:
            pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await pump
            if is_stored:
                self._stored.answered(of.body, weaver, feed, of.present)
            else:
                FEEDS.unsubscribe(feed)
            if of.asked.trees is not None:
                of.asked.trees.ended.clear()  # a response that is stored keeps what presents them


def served_tenant() -> str:
    """Who is being served; all are one where there are no API keys."""
    visit = VISIT.get()
    return "" if visit is None else visit.tenant.id


def _announce(of: Prepared) -> None:
    """Say what its visit is to become. Raises Overloaded if so much may not wait."""
    if (visit := VISIT.get()) is not None:
        visit.num_families, visit.num_prompts = of.num_answers, of.num_prompts
        visit.width, visit.group, visit.engine = of.asked.options.width, of.group, of.engine
        BACKLOG.announce(visit)


async def _prepared(path: str, given: Json, settings: Settings, scope: Message) -> Prepared:
    """``given`` checked and without what is ours. Raises BadRequestOptions."""
    client, placement = client_of(scope), _placement(path, given, settings, scope)
    key = placement.key
    scope = _with_request_id(scope, given.get("request_id"), key)
    check_grammars(given)
    given, as_agents = agents.take(given, path)
    reasons = has_reasoning_parser(vllm_config_of(scope))
    body, options = prepare(given, path, key, settings, reasons=reasons)
    check_keeps(options, vllm_config_of(scope))
    data = _encoded(body)
    num_answers, num_choices = count_answers(sampling_of(body, path), path)
    check_beside_prompt(body, len(data), num_answers)
    compiled_options = await compiled(options, client, settings)
    if compiled_options.given is not None:
        check_answers(compiled_options.given, num_answers, settings.max_request_threads)
    width = width_in_answers(compiled_options, settings)
    trees = None
    if options.return_tree:
        closes = settings.dialect is not None and settings.dialect.join.moves_kv
        trees = Trees(key, num_choices, num_answers, options.stream_segments, closes_threads=closes)
    asked = Asked(compiled_options, _max_tokens(settings, client), width=width, limits=settings.limits)
    asked.trees, asked.max_tree_tokens = trees, settings.max_tree_tokens
    is_wanted = options.include_threads or options.return_tree
    log = ThreadLog(key, num_answers, num_choices, is_wanted=is_wanted, has_token_ids=path == GENERATE)
    if compiled_options.given is not None:
        log.num_given = compiled_options.given.num_tokens
    present = _present(as_agents or _presenter(path), options, trees)
    num_prompts = max(num_answers // num_choices, 1)
    group, engine = options.group_id, placement.engine
    return Prepared(
        body, data, scope, asked, num_answers, num_prompts, group, engine, key, log, present, is_wanted
    )


def _placement(path: str, given: Json, settings: Settings, scope: Message) -> Placement:
    """Of one engine there is nothing to choose, so the field is read once."""
    num_engines = num_engines_of(scope)
    return Placement(new_key()) if num_engines == 1 else place(options_in(given, path, settings), num_engines)


def _max_tokens(settings: Settings, client: Any) -> int | None:
    """What all answers to a request may come to; no limit of ours where fork/join is off."""
    if settings.dialect is None or client is None:
        return None
    return max_request_tokens(settings, client.model_config.max_model_len)


def max_request_tokens(settings: Settings, max_model_len: int) -> int:
    """Tokens that one request may come to."""
    return settings.max_request_tokens or _MAX_CONTEXTS * max_model_len


def _presenter(path: str) -> Present:
    presenters: dict[str, Present] = {GENERATE: TokenThreads, RESPONSES: ResponseThreads}
    return presenters.get(path, ChatThreads)


def _present(threads: Present, options: RequestOptions, trees: Trees | None) -> Present:
    """What shows ``threads``, if they are wanted, and ``trees``."""
    inner = threads if options.include_threads else _nothing
    return inner if trees is None else lambda log: TreePresenter(inner(log), trees)


def _nothing(_log: ThreadLog) -> Presenter:
    return PassThrough()


def _encoded(body: Json) -> bytes:
    """``body`` as UTF-8. Raises BadRequestOptions for half of a surrogate pair, or too deep a nesting."""
    try:
        return json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        raise BadRequestOptions(
            f"the body: expected valid Unicode, got half of a surrogate pair, \\u{half:x}"
        ) from error
    except RecursionError as error:
        raise BadRequestOptions("the body: expected lists and objects in fewer of each other") from error


def _with_request_id(scope: Message, in_body: object, key: str) -> Message:
    """``scope`` with our key in the X-Request-Id that vLLM derives its request id from.

    That header goes before a request id in the body, which is kept by putting it there. Raises
    BadRequestOptions for an id that is too long.
    """
    check_request_id(in_body)
    given = [v for k, v in scope["headers"] if k == b"x-request-id"]
    if not given and isinstance(in_body, str) and in_body.isascii() and in_body.isprintable():
        given = [in_body.encode()]
    check_request_id(b"-".join(given).decode("latin-1"))
    value = b"-".join([*given, key.encode()])
    others = [(k, v) for k, v in scope["headers"] if k not in (b"x-request-id", b"content-length")]
    return {**scope, "headers": [*others, (b"x-request-id", value)]}


def _request_id(scope: Message) -> str:
    value: bytes = dict(scope["headers"])[b"x-request-id"]
    return value.decode("latin-1")
