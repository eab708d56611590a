"""Every route of the real application needs a key, but those that a flag names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
from itertools import product

import pytest

from forkjoin_server.access.access import Access
from forkjoin_server.access.guard import Guard, NotAllowed, refuse, route_path
from forkjoin_server.access.keys import KeyRing, digest_of, line_of, unnamed
from forkjoin_server.access.settings import OPEN_ROUTES, AccessSettings
from forkjoin_server.http.middleware import ForkJoinMiddleware
from forkjoin_server.playground.serving import Playground
from forkjoin_server.start.configuration import resolve

#: Where the playground's page is open, so are its files, and the way there from the root.
OPEN = AccessSettings().open_paths | Playground(leads_home=True).paths
BEARER = (b"authorization", b"Bearer key")


def _scope(path="/v1/models", *headers, **more):
    return {"type": "http", "method": "GET", "path": path, "headers": list(headers), **more}


def _passes(scope, keys=("key",), open_paths=OPEN):
    try:
        Guard(KeyRing(unnamed(map(digest_of, keys))), open_paths).key_of(scope)
    except NotAllowed:
        return False
    return True


# ---- the real application ------------------------------------------------------------------


@pytest.fixture(scope="module")
def app():
    """vLLM's application as ``forkjoin serve --api-key key`` builds it, with all that it can have."""
    from vllm.entrypoints.launchers.app import build_app
    from vllm.tasks import FALLBACK_SUPPORTED_TASKS

    patch = pytest.MonkeyPatch()
    patch.setenv("VLLM_SERVER_DEV_MODE", "1")
    patch.setattr("sys.argv", ["forkjoin", "serve"])
    args = resolve(
        ["--api-key", "key", "--enable-fault-tolerance", "--allowed-origins", '["https://a"]'], {}
    ).args
    built = build_app(args, ("generate", "transcription", "realtime", *FALLBACK_SUPPORTED_TASKS))
    built.state.args = args
    yield built
    patch.undo()


def _routes(app):
    """Each path with each method that the application knows; below what is mounted, the path of the mount."""
    for route in app.routes:
        path = getattr(route, "path", "")
        for method in sorted(getattr(route, "methods", None) or ["GET", "POST"]):
            yield path.replace("{", "").replace("}", ""), method
    ours = ["/ready", "/v1/forkjoin", "/v1/forkjoin/families", *sorted(Playground(leads_home=True).paths)]
    yield from product([*ours, "/no/such/route"], ["GET", "POST"])


def _status(asked, path, method="GET", headers=(), **more):
    """The status that a client is told."""
    sent = _sent(asked, path, method, headers, **more)
    return sent[0]["status"] if sent else 500


def _headers(asked, path, headers):
    return dict(_sent(asked, path, "GET", headers)[0]["headers"])


def _sent(asked, path, method, headers, body=b"{", **more):
    """What a client is sent. Nothing may be read of a request that is not allowed."""
    sent = []

    async def receive():
        assert sent == [] or sent[0].get("status") != 401
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": list(headers),
        **more,
    }
    with contextlib.suppress(Exception):  # there is no engine: whatever is raised, the request was let in
        asyncio.run(asked(scope, receive, send))
    return sent


def test_every_route_of_the_application_needs_a_key_but_those_of_the_flag(app):
    seen = {(path, method): _status(app, path, method) for path, method in _routes(app)}
    assert len(seen) > 60
    assert (
        {path for (path, _), status in seen.items() if status != 401} == OPEN >= set(OPEN_ROUTES.split(","))
    )
    assert all((status != 401) == (path in OPEN) for (path, _), status in seen.items())


def test_with_a_key_every_route_answers(app):
    assert 401 not in {_status(app, path, method, [BEARER]) for path, method in _routes(app)}


@pytest.mark.parametrize("body", [b"[]", b"1", b'"a"', b"null"])
def test_every_route_says_that_its_body_is_no_object(app, body):
    """`POST /scale_elastic_ep` was a 500 with a traceback."""
    posted = {
        path: _status(app, path, method, [BEARER], body=body)
        for path, method in _routes(app)
        if method == "POST"
    }
    posted = {path: status for path, status in posted.items() if path not in OPEN}
    assert len(posted) > 40
    assert {path: status for path, status in posted.items() if status != 400} == {}


def test_a_route_that_is_added_is_closed(app):
    @app.get("/new")
    def new():
        return {}

    app.mount("/mounted", lambda scope, receive, send: None)
    assert [_status(app, path) for path in ("/new", "/mounted", "/mounted/x")] == [401] * 3


def test_a_websocket_is_opened_at_no_route_that_serves_http_only(app):
    """At `/metrics`, which is mounted, it was a 500 with a traceback."""
    paths = {path for path, _ in _routes(app)} - {"/v1/realtime"}
    sent = {path: _sent(app, path, "GET", [BEARER], type="websocket") for path in paths}
    assert "/metrics" in sent
    assert {path for path, messages in sent.items() if messages[0]["type"] != "websocket.close"} == set()


def test_the_guard_is_the_outermost_middleware_and_vllms_own_is_gone(app):
    app.middleware_stack = None
    _status(app, "/health")
    names, layer = [], app.middleware_stack
    while layer is not None:
        names.append(type(layer).__name__)
        layer = getattr(layer, "app", None)
    assert names[:2] == ["ServerErrorMiddleware", "ForkJoinMiddleware"]
    assert "AuthenticationMiddleware" not in names


@pytest.mark.parametrize(
    "path",
    ["//health", "/health//", "/health/", "/health/x", "/HEALTH", "/health%2f..%2fv1", "health", "/metrics/x",
     "/v1/../health", "/pingx", "/ready/../invocations", "", "//", "/v1/models/", "//v1/models",
     "/playground/../v1/models", "/playground/x", "/playground/manifest.json", "/playground/assets", "/playgroundx"],
)  # fmt: skip
def test_what_looks_like_an_open_path_is_closed(app, path):
    assert _status(app, path) == 401


def test_a_preflight_passes_to_cors_and_to_no_route(app):
    preflight = [(b"origin", b"https://a"), (b"access-control-request-method", b"POST")]
    assert _status(app, "/v1/chat/completions", "OPTIONS", preflight) == 200
    assert _status(app, "/v1/chat/completions", "OPTIONS", preflight[:1]) == 401
    assert _status(app, "/v1/chat/completions", "POST", preflight) == 401


@pytest.mark.parametrize("path", ["/v1/forkjoin", "/v1/forkjoin/families", "/no/such/route"])
def test_cors_covers_the_routes_of_ours_as_it_does_all_others(app, path):
    def headers(origin):
        return _headers(app, path, [BEARER, (b"origin", origin)])

    assert headers(b"https://a")[b"access-control-allow-origin"] == b"https://a"
    assert b"access-control-allow-origin" not in headers(b"https://b")


def test_below_a_root_path_the_router_decides():
    assert _passes(_scope("/api/health", root_path="/api"))
    assert not _passes(_scope("/apihealth", root_path="/api"))
    assert not _passes(_scope("/api/v1/models", root_path="/api"))
    assert route_path(_scope("/apiready", root_path="/api")) == "/apiready"


# ---- keys ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "header",
    [BEARER, (b"authorization", b"bearer  key"), (b"x-api-key", b"key")],
    ids=["openai", "spaced", "anthropic"],
)
def test_a_key_is_taken_as_openais_and_as_anthropics_clients_send_it(header):
    assert _passes(_scope("/v1/models", header))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [(b"authorization", b"key")],
        [(b"authorization", b"Basic key")],
        [(b"authorization", b"Bearer")],
        [(b"authorization", b"Bearer key2")],
        [(b"x-api-key", b"")],
        [(b"api-key", b"key")],
        [(b"cookie", b"authorization=Bearer key")],
        [(b"x-api-key", b"\xff\xfe")],
    ],
)
def test_anything_else_is_no_key(headers):
    assert not _passes(_scope("/v1/models", *headers))
    assert _passes(_scope("/health", *headers))


def test_a_key_that_is_not_ascii_is_taken_as_utf_8():
    assert _passes(_scope("/v1/models", (b"x-api-key", "schlüssel".encode())), ["schlüssel"])


def test_without_keys_every_route_is_open():
    assert _passes(_scope("/v1/models"), [])


def test_the_open_routes_are_those_of_the_flag():
    paths = AccessSettings(open_routes=" /health, /v1/models ,").open_paths
    assert _passes(_scope("/v1/models"), open_paths=paths)
    assert not _passes(_scope("/ready"), open_paths=paths)
    assert not _passes(_scope("/health"), open_paths=AccessSettings(open_routes="").open_paths)
    with pytest.raises(ValueError, match="begin with a slash"):
        AccessSettings(open_routes="health")


# ---- what is told --------------------------------------------------------------------------


def _refused(scope):
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(refuse(NotAllowed("expected an API key"), scope, send))
    return sent


def test_a_401_has_the_shape_of_its_route():
    start, body = _refused(_scope("/v1/chat/completions"))
    assert (start["status"], dict(start["headers"])[b"www-authenticate"]) == (401, b"Bearer")
    openai = json.loads(body["body"])["error"]
    assert set(openai) == {"message", "type", "param", "code"}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        anthropic = json.loads(_refused(_scope(path))[1]["body"])
        assert (anthropic["type"], anthropic["error"]["type"]) == ("error", "authentication_error")


def test_a_websocket_without_a_key_is_never_accepted():
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": []}
    assert not _passes(scope)
    assert not _passes(scope | {"path": "/health"})
    assert _passes(scope | {"headers": [BEARER]})
    assert _refused(scope) == [{"type": "websocket.close", "code": 1008}]
    start, _ = _refused(scope | {"extensions": {"websocket.http.response": {}}})
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)


# ---- the file, again -----------------------------------------------------------------------


def _middleware(path, *flags):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    class Application:
        class state:  # noqa: N801 - as Starlette calls it
            args = resolve(["--api-key-file", str(path), *flags], {}).args

    middleware = ForkJoinMiddleware(app)

    def status(key):
        scope = {"app": Application, "headers": [(b"x-api-key", key.encode())]}
        return _status(middleware, "/v1/models", **scope)

    return middleware, Application, status


WEIGHTY = f"new: {{sha256: {digest_of('two').hex()}, weight: 2}}"


@pytest.mark.parametrize(
    ("flags", "refused"), [([], "broken: ["), (["--dialect", "none"], WEIGHTY)], ids=["broken", "weights"]
)
def test_a_file_is_read_again_at_sighup_and_a_wrong_one_changes_nothing(
    tmp_path, monkeypatch, caplog, flags, refused
):
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    monkeypatch.setattr("forkjoin_server.access.access.LOG.propagate", True)
    path = tmp_path / "keys.yaml"
    path.write_text(line_of("old", "one") + "\n")
    middleware, application, status = _middleware(path, *flags)
    assert (status("one"), status("two")) == (200, 401)

    async def at_sighup(text):
        path.write_text(text)
        middleware.access.start({"app": application})
        loop = asyncio.get_running_loop()
        os.kill(os.getpid(), signal.SIGHUP)
        await loop.run_in_executor(None, lambda: None)  # the loop has seen the signal by then
        await asyncio.sleep(0)
        loop.remove_signal_handler(signal.SIGHUP)

    assert threading.current_thread() is threading.main_thread()
    asyncio.run(at_sighup(line_of("new", "two")))
    assert (status("one"), status("two")) == (401, 200)
    asyncio.run(at_sighup(refused))
    assert (status("one"), status("two")) == (401, 200)
    assert "the API keys stay as they were" in caplog.text
    assert "two" not in caplog.text


def test_while_the_file_cannot_be_read_at_a_start_nobody_passes(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    path = tmp_path / "keys.yaml"
    path.write_text(line_of("a", "one"))
    _, _, status = _middleware(path)
    path.write_text("")
    assert status("one") == 500
    assert status("") == 500


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], 200), (["--open-routes", "/health"], 401), (["--no-playground"], 401)],
    ids=["open", "not_among_the_open_routes", "switched_off"],
)
def test_the_playgrounds_files_are_open_where_its_route_is(tmp_path, monkeypatch, flags, expected):
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    path = tmp_path / "keys.yaml"
    path.write_text(line_of("a", "one") + "\n")
    middleware, application, _ = _middleware(path, *flags)
    assert _status(middleware, "/playground/", app=application) == expected


@pytest.mark.parametrize(("text", "sees_all"), [("one", False), ("", True)], ids=["keys", "no_keys"])
def test_without_a_key_a_client_of_an_open_route_sees_no_ids_of_those_with_keys(text, sees_all):
    access = Access([digest_of(text)] if text else [])
    access.settings = AccessSettings(open_routes="/v1/forkjoin/families")
    assert access.tenant(_scope("/v1/forkjoin/families")).sees_all is sees_all


def test_access_without_an_application_is_open():
    assert Access([]).guard(_scope()).key_of(_scope()) is None
