"""How a client is told that there is no room: by middleware around a stand-in for vLLM."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace

import msgspec
import pytest
from vllm import SamplingParams

from forkjoin_scheduler.errors import BadRequestOptions, Overloaded
from forkjoin_scheduler.policy.backlog import Backlog, Bounds, Expected, Tenant, Visit
from forkjoin_scheduler.publish.events import Load
from forkjoin_scheduler.request.given import OPEN, Given, Part, Stretch
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.request.visits import BACKLOG, VISIT, refuse
from forkjoin_scheduler.settings import COMPILED
from forkjoin_server.access import preparing
from forkjoin_server.access.preparing import AT_A_TIME
from forkjoin_server.http.middleware import ForkJoinMiddleware
from forkjoin_server.request.handover import install
from forkjoin_server.routes import (
    BATCH,
    CHAT,
    COMPLETIONS,
    DECISIONS,
    GENERATE,
    GENERATING,
    MESSAGES,
    RESPONSES,
    SCORING,
)

STREAM = [(b"content-type", b"text/event-stream; charset=utf-8")]


@pytest.fixture(autouse=True)
def _as_it_was():
    """The accounts are the process's."""
    before = dict(vars(BACKLOG))
    vars(BACKLOG).update(vars(Backlog(Bounds(families=1), Expected(100, 4))))
    yield
    vars(BACKLOG).update(before)


def _fill():
    visit = Visit(Tenant())
    BACKLOG.arrive(visit)
    BACKLOG.enter("other", visit, 10, None)


class Client:
    """Asks the middleware, and notes what it is sent and when the body was read."""

    def __init__(self, app, path=CHAT, body=None):
        self.sent, self.num_read = [], 0
        self._middleware = app if isinstance(app, ForkJoinMiddleware) else ForkJoinMiddleware(app)
        self._path, self._body = path, body or {}
        #: Of vLLM's application, if there is one.
        self.state = None
        self.asked_headers = []

    async def ask(self):
        scope = {"type": "http", "method": "POST", "path": self._path, "headers": self.asked_headers}
        if self.state is not None:
            scope["app"] = SimpleNamespace(state=self.state, routes=[])
        await self._middleware(scope, self._receive, self._send)

    async def _receive(self):
        self.num_read += 1
        return {"type": "http.request", "body": json.dumps(self._body).encode(), "more_body": False}

    async def _send(self, message):
        self.sent.append(message)

    @property
    def status(self):
        return self.sent[0]["status"]

    @property
    def headers(self):
        return dict(self.sent[0]["headers"])

    @property
    def body(self):
        return json.loads(b"".join(m["body"] for m in self.sent[1:]))


async def _never(scope, receive, send):
    raise AssertionError("the application was asked")


@pytest.mark.parametrize("path", GENERATING)
def test_where_the_queue_is_full_the_answer_comes_before_the_body_is_read(path):
    _fill()
    client = Client(_never, path)
    asyncio.run(client.ask())
    assert (client.status, client.num_read) == (503, 0)
    assert 1 <= int(client.headers[b"retry-after"]) <= 60
    error = client.body["error"]
    if path == MESSAGES:
        assert error["type"] == "overloaded_error"
    else:
        assert set(error) == {"message", "type", "param", "code"}
    assert "queue is full" in error["message"]


def test_other_routes_answer_all_the_same():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    _fill()
    client = Client(app, "/tokenize")
    asyncio.run(client.ask())
    assert client.status == 200


def _streaming(enter, *, fails=False):
    """As vLLM streams: it begins its answer, then goes to the engine, then tells an error as an event."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        try:
            enter()
        except Overloaded:
            if fails:
                raise
            await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        else:
            await asyncio.sleep(0)  # the first token takes its time
            heads.append(len(client.sent))
            await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    heads = []
    client = Client(app)
    return client, heads


def _enter():
    BACKLOG.enter("mine", VISIT.get(), 10, None)


@pytest.mark.parametrize("fails", [False, True])
def test_a_stream_that_is_refused_at_the_engine_has_the_status_of_a_refusal(fails):
    def enter():
        BACKLOG.enter("other", Visit(Tenant()), 10, None)  # it was faster
        _enter()

    BACKLOG.bounds = Bounds(threads=4)

    client, _ = _streaming(enter, fails=fails)
    asyncio.run(client.ask())
    assert client.status == 503
    assert b"retry-after" in client.headers
    assert client.body["error"]["code"] == 503


def test_events_before_the_engine_is_asked_do_not_begin_a_stream_that_is_refused():
    """As those of a response: "created", "in progress"."""

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        await send({"type": "http.response.body", "body": b"event: created", "more_body": True})
        refuse(BadRequestOptions("the grammar: expected another", field="text"))
        raise ConnectionError

    client = Client(app)
    asyncio.run(client.ask())
    assert client.status == 400
    assert client.body["error"] == {
        "message": "the grammar: expected another", "type": "BadRequestError", "param": "text", "code": 400
    }  # fmt: skip


def test_what_is_found_wrong_after_a_stream_has_begun_is_a_400():
    """As on ``/v1/responses``, where vLLM asks the engine inside its stream."""
    engine = SimpleNamespace(model_config=SimpleNamespace(max_model_len=100), generate=None)
    engine.renderer = SimpleNamespace(process_for_engine_async=None)
    install(engine)
    params = SamplingParams()
    params.top_k = 2**63

    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        await send({"type": "http.response.body", "body": b"event: created", "more_body": True})
        try:
            engine.generate({"type": "token"}, params, "r")
        except BadRequestOptions as error:  # as Starlette has it
            raise RuntimeError("Caught handled exception, but response already started.") from error

    client = Client(app, RESPONSES, {"input": "x", "stream": True})
    asyncio.run(client.ask())
    assert client.status == 400
    assert client.body["error"]["message"].startswith("top_k: expected an integer of at most 63 bits")


def test_events_before_the_engine_is_asked_come_in_their_order():
    async def app(scope, receive, send):
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": STREAM})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await send({"type": "http.response.body", "body": b"2", "more_body": True})
        _enter()
        await send({"type": "http.response.body", "body": b"3", "more_body": True})
        await send({"type": "http.response.body", "body": b"4"})

    client = Client(app)
    asyncio.run(client.ask())
    assert client.status == 200
    assert [message["body"] for message in client.sent[1:]] == [b"1", b"2", b"3", b"4"]


def test_the_head_of_a_stream_is_sent_when_the_request_is_let_in_and_not_only_with_its_first_token():
    client, heads = _streaming(_enter)
    asyncio.run(client.ask())
    assert heads == [1]
    assert [m["type"] for m in client.sent] == ["http.response.start"] + ["http.response.body"] * 2
    assert client.sent[1]["body"] == b"data: 1\n\n"


def test_a_stream_that_never_goes_to_the_engine_is_sent_whole():
    client, _ = _streaming(lambda: None)
    asyncio.run(client.ask())
    assert (client.status, client.sent[1]["body"]) == (200, b"data: 1\n\n")


def test_whatever_becomes_of_a_request_it_waits_no_more():
    async def app(scope, receive, send):
        assert BACKLOG.waiting.families == 1
        raise ConnectionError

    client = Client(app)
    with pytest.raises(ConnectionError):
        asyncio.run(client.ask())
    assert BACKLOG.waiting.families == 0


def test_of_a_burst_a_few_bodies_are_parsed_at_a_time(monkeypatch):
    from forkjoin_server.http import generating

    parsed, may_end, make = [], asyncio.Event(), generating.prepare

    def prepare(given, *args, **more):
        parsed.append(given)
        return make(given, *args, **more)

    async def app(scope, receive, send):
        await may_end.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def run():
        shared = ForkJoinMiddleware(app)
        clients = [Client(shared) for _ in range(AT_A_TIME + 3)]
        tasks = [asyncio.create_task(client.ask()) for client in clients]
        while not all(client.num_read for client in clients):
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(parsed) == AT_A_TIME
        may_end.set()
        await asyncio.gather(*tasks)
        assert [client.status for client in clients] == [200] * len(clients)

    monkeypatch.setattr(generating, "prepare", prepare)
    monkeypatch.setattr(preparing, "LONGEST_S", 600.0)  # however long this takes
    BACKLOG.bounds = Bounds()
    asyncio.run(run())


@pytest.mark.parametrize(("headers", "expected"), [([], b"10"), ([(b"retry-after", b"3")], b"3")])
def test_what_vllm_itself_refuses_says_when_to_come_back_too(headers, expected):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    client = Client(app)
    asyncio.run(client.ask())
    assert client.headers[b"retry-after"] == expected


@pytest.mark.parametrize(
    ("body", "families", "width"),
    [
        ({}, 1, None),
        ({"n": 3}, 3, None),
        ({"n": 2, "forkjoin": {"best_of": 5}}, 2, 5),
        ({"forkjoin": {"branches": [{"text": "a"}, {"text": "b"}]}}, 1, 2),
        ({"prompt": ["a", "b"], "n": 2}, 4, None),
    ],
)
def test_a_request_is_counted_by_the_answers_and_threads_that_it_asks_for(body, families, width):
    seen = []

    async def app(scope, receive, send):
        visit = VISIT.get()
        seen.append((visit.num_families, visit.width))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    BACKLOG.bounds = Bounds()
    asyncio.run(Client(app, body=body).ask())
    assert seen in ([(families, width)], [])


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt": ["a"] * 100_000}),
        (COMPLETIONS, {"prompt": "a", "prompt_embeds": ["a"] * 100_000}),
        (BATCH, {"prompt": None, "messages": [[{"role": "user", "content": "a"}]] * 9}),
        (CHAT, {"messages": [], "n": "16384.0"}),
        (GENERATE, {"token_ids": [1], "sampling_params": {"n": 16384}}),
        (SCORING, {"query": [1] * 4000, "items": [[]] * 100_000, "label_token_ids": [1]}),
        (DECISIONS, {"state": "x", "questions": {f"{number}": {} for number in range(9)}}),
    ],
)
def test_too_many_answers_are_refused_before_vllm_makes_prompts_of_them(path, body):
    BACKLOG.bounds = Bounds(families=8)
    client = Client(_never, path, body)
    asyncio.run(client.ask())
    assert client.status == 400
    assert "at most 8 answers in one request" in client.body["error"]["message"]
    assert BACKLOG.waiting.families == 0


def _scored(body):
    """The status for ``body``, on a server with a context of 100 tokens of up to 8 characters."""
    BACKLOG.bounds = Bounds()
    seen = []

    async def app(scope, receive, send):
        seen.append((VISIT.get().num_families, json.loads((await receive())["body"])))
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    tokenizer = SimpleNamespace(max_chars_per_token=8)
    engine_client = SimpleNamespace(
        model_config=SimpleNamespace(max_model_len=100),
        renderer=SimpleNamespace(tokenizer=tokenizer),
    )
    client = Client(app, SCORING, body)
    client.state = SimpleNamespace(engine_client=engine_client)
    asyncio.run(client.ask())
    return client.status, seen


def test_items_to_score_are_counted_and_go_to_vllm_as_they_are():
    body = {"query": "x", "items": ["a", "b", "c"], "label_token_ids": [1]}
    assert _scored(body) == (200, [(3, body)])


@pytest.mark.parametrize(
    "body", [{"query": "x" * 801, "items": ["a"]}, {"query": [1] * 100, "items": [[]] * 257}]
)
def test_items_to_score_that_are_too_much_for_the_event_loop_never_come_to_vllm(body):
    assert _scored(body) == (400, [])


@pytest.mark.parametrize("path", [SCORING, DECISIONS])
@pytest.mark.parametrize("place", ["header", "body"])
def test_an_id_that_each_prompt_would_have_is_refused_if_it_is_long(path, place):
    """vLLM puts it into the id of each of the prompts that it makes of one body."""
    client = Client(_never, path, {"request_id": "x" * 300} if place == "body" else {})
    client.asked_headers = [(b"x-request-id", b"x" * 300)] if place == "header" else []
    BACKLOG.bounds = Bounds()
    asyncio.run(client.ask())
    assert client.status == 400
    assert "at most 256 characters" in client.body["error"]["message"]


def test_more_answers_than_a_key_may_have_are_refused_before_vllm_makes_prompts_of_them(monkeypatch):
    alice = Tenant("alice", max_families=1)
    monkeypatch.setattr("forkjoin_server.access.access.Access.tenant", lambda *_: alice)
    client = Client(_never, COMPLETIONS, {"prompt": ["a", "b"]})
    BACKLOG.bounds = Bounds()
    asyncio.run(client.ask())
    assert client.status == 400
    assert "at most 1 answers at once for this API key" in client.body["error"]["message"]


# ---- the way to the engine -----------------------------------------------------------------


@pytest.fixture
def processor():
    from vllm.v1.engine.output_processor import OutputProcessor

    from forkjoin_scheduler.vllm_seam.front_end.output import ForkJoinOutputProcessor

    made = ForkJoinOutputProcessor(None, log_stats=False)
    assert isinstance(made, OutputProcessor)
    return made


def _request(name, **more):
    from vllm import SamplingParams
    from vllm.v1.engine import EngineCoreRequest

    return EngineCoreRequest(
        request_id=name,
        external_req_id=name,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(detokenize=False, **more),
        pooling_params=None,
        arrival_time=0.0,
        lora_request=None,
        cache_salt=more.pop("cache_salt", None),
        data_parallel_rank=None,
    )


def test_a_request_is_counted_from_its_way_to_the_engine_to_its_end(processor):
    from vllm.v1.engine import EngineCoreOutput, FinishReason

    processor.add_request(_request("a"), None)
    assert BACKLOG.waiting.families == 1
    processor.process_outputs([EngineCoreOutput(request_id="a", new_token_ids=[5])])
    assert (BACKLOG.waiting.families, BACKLOG.num_families) == (0, 1)
    processor.process_outputs(
        [EngineCoreOutput(request_id="a", new_token_ids=[5], finish_reason=FinishReason.STOP)]
    )
    assert BACKLOG.num_families == 0
    processor.add_request(_request("b"), None)
    processor.abort_requests(["b"], internal=True)
    assert (BACKLOG.waiting.families, BACKLOG.num_families) == (0, 0)


def test_one_too_many_is_refused_before_vllm_knows_it(processor):
    from vllm.exceptions import GracefulHTTPError

    processor.add_request(_request("a"), None)
    with pytest.raises(GracefulHTTPError) as caught:
        processor.add_request(_request("b"), None)
    assert caught.value.http_status == 503
    assert set(processor.request_states) == {"a"}
    assert BACKLOG.num_families == 1


def test_the_engine_is_told_whose_a_request_is_and_no_client_can_say_so_itself(processor):
    forged = {"forkjoin_tenant": {"id": "bob", "weight": 9}, "x": 1}
    VISIT.set(Visit(Tenant("alice", weight=2)))
    request = _request("a", extra_args=dict(forged))
    processor.add_request(request, None)
    assert request.sampling_params.extra_args == {"x": 1, "forkjoin_tenant": {"id": "alice", "weight": 2}}
    assert request.cache_salt is None
    BACKLOG.has_begun("a")
    VISIT.set(None)
    request = _request("b", extra_args=dict(forged))
    processor.add_request(request, None)
    assert request.sampling_params.extra_args == {"x": 1}


def test_with_a_cache_of_its_own_a_key_names_no_other_whatever_salt_it_gives(processor):
    salts = set()
    for name in ("alice", "bob"):
        for given in (None, "mine"):
            VISIT.set(Visit(Tenant(name, cache=name)))
            request = _request(f"{name}{given}")
            request.cache_salt = given
            processor.add_request(request, None)
            BACKLOG.has_begun(request.request_id)
            salts.add(request.cache_salt)
    VISIT.set(None)
    assert len(salts) == 4
    assert not salts & {None, "mine"}


def test_a_key_aborts_its_own_requests_and_no_others(processor):
    async def ask(tenant, ids, *, sees_all=False):
        VISIT.set(Visit(Tenant(tenant, sees_all=sees_all)))
        return await asyncio.create_task(abort(ids))  # as vLLM's route does

    async def abort(ids):
        return processor.abort_requests(ids, internal=False)

    BACKLOG.bounds = Bounds()
    names = {name: f"{name}-fj{'0' * 32}" for name in ("chatcmpl-job-1", "chatcmpl-job-2", "chatcmpl-job-3")}
    VISIT.set(Visit(Tenant("alice")))
    for number, name in enumerate(names.values()):
        request = _request(f"internal-{number}")
        request.external_req_id = name
        processor.add_request(request, None)
    VISIT.set(None)
    assert asyncio.run(ask("bob", ["chatcmpl-job-1", names["chatcmpl-job-1"]])) == []
    # an id that stands there twice, in any form, is one
    assert asyncio.run(ask("alice", ["chatcmpl-job-1", names["chatcmpl-job-1"]] * 2)) == ["internal-0"]
    assert asyncio.run(ask("operator", ["chatcmpl-job-3"], sees_all=True)) == ["internal-2"]
    # as where a client has hung up
    assert processor.abort_requests(["internal-1"], internal=True) == ["internal-1"]
    assert not processor.request_states
    assert not processor.external_req_ids
    assert BACKLOG.num_families == 0


def test_trees_of_a_group_are_each_counted_while_they_wait(processor):
    given = Given([1, 2, 3], {"": [Stretch([Part([7] * 5)], OPEN)]})
    extra_args = {COMPILED: msgspec.to_builtins(CompiledOptions(given=given))}
    BACKLOG.bounds = Bounds()
    VISIT.set(Visit(Tenant(), num_families=2, group="g"))
    for name in ("a", "b"):
        processor.add_request(_request(name, extra_args=dict(extra_args), max_tokens=10), None)
    VISIT.set(None)
    assert BACKLOG.waiting.tokens == 2 * (3 + 5 + 10)


def test_what_the_engine_expects_is_what_it_has_told(processor):
    from forkjoin_scheduler.vllm_seam.front_end import wire

    load = Load(threads=0, requests=0, expected_tokens=7, expected_threads=2.5)
    processor.process_outputs([wire.pack("", [load], 0)])
    assert BACKLOG.expected == Expected(7, 2.5)


def test_keys_have_their_part_of_the_limits_where_several_front_ends_serve(tmp_path, monkeypatch):
    from forkjoin_server.access.access import Access
    from forkjoin_server.access.keys import line_of
    from forkjoin_server.start.configuration import resolve

    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    path = tmp_path / "keys.yaml"
    path.write_text(line_of("alice", "one").replace("}", ", max_families: 5, weight: 3}"))
    flags = ["--api-key-file", str(path), "--api-server-count", "2", "--cache-salt", "per-key"]
    args = resolve([*flags, "--max-queued-families", "9"], {}).args
    scope = {"type": "http", "path": CHAT, "headers": [(b"x-api-key", b"one")]}
    scope["app"] = SimpleNamespace(state=SimpleNamespace(args=args))
    tenant = Access([]).tenant(scope)
    assert (tenant.max_families, tenant.max_queued_tokens, tenant.weight) == (3, None, 3)
    assert BACKLOG.bounds == Bounds(5, 4096, 2_097_152)
    assert tenant.cache is not None
    assert "alice" not in tenant.id
