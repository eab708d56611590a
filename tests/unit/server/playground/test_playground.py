"""The playground's files: that they are those of the source, and how they are served."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from forkjoin_scheduler.errors import UsageError
from forkjoin_server.playground.serving import FOLDER, Playground, playground_of
from forkjoin_server.start.configuration import resolve

ROOT = Path(__file__).parents[4]
MANIFEST = FOLDER / "manifest.json"
#: What the build reads beside the folders below.
FILES = [
    "index.html",
    "operator.html",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
    "vite.config.mjs",
    "manifest.mjs",
]
PAGE = "/playground/"
MAX_BYTES = 105_000


def _hashes(*folders: Path) -> dict[str, str]:
    files = [ROOT / "playground" / name for name in FILES]
    files += [f for folder in folders for f in folder.rglob("*") if f.is_file()]
    return {
        f.relative_to(ROOT).as_posix(): hashlib.sha256(f.read_bytes()).hexdigest()
        for f in files
        if f != MANIFEST
    }


def test_the_built_files_are_those_of_the_source():
    seen = _hashes(ROOT / "playground/src", ROOT / "client-ts/src", FOLDER)
    assert seen == json.loads(MANIFEST.read_text()), "run `npm ci && npm run build` in playground/"


def test_they_are_small():
    files = [f for f in FOLDER.rglob("*") if f.is_file() and f != MANIFEST]
    assert sum(f.stat().st_size for f in files) < MAX_BYTES


@pytest.mark.parametrize("name", ["index.html", "operator.html"])
def test_a_page_loads_its_own_files_only_and_runs_nothing_inline(name):
    text = (FOLDER / name).read_text()
    loaded = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert len(loaded) >= 3
    assert all((FOLDER / path).is_file() for path in loaded)
    assert re.findall(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", text) == []


# ---- serving -------------------------------------------------------------------------------


def _ask(path, method="GET", page=None, **headers):
    """(status, headers, body) of a request; None if the page does not answer it."""
    page = page or Playground(leads_home=True)
    given = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    scope, sent = {"type": "http", "method": method, "headers": given}, []

    async def send(message):
        sent.append(message)

    if not page.answers(scope, path):
        return None
    asyncio.run(page.respond(scope, path, send))
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


@pytest.mark.parametrize(("path", "name"), [(PAGE, "index.html"), ("/playground/operator", "operator.html")])
def test_a_page_has_a_strict_policy(path, name):
    status, headers, body = _ask(path)
    policy = headers[b"content-security-policy"].decode()
    assert (status, body) == (200, (FOLDER / name).read_bytes())
    assert headers[b"content-type"] == b"text/html; charset=utf-8"
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert headers[b"x-content-type-options"] == b"nosniff"


@pytest.mark.parametrize(
    ("suffix", "kind"), [(".js", b"text/javascript"), (".css", b"text/css"), (".svg", b"image/svg+xml")]
)
def test_each_file_has_its_type_and_is_kept_for_its_name_has_a_hash(suffix, kind):
    path = next(path for path in Playground(leads_home=True).paths if path.endswith(suffix))
    _, headers, body = _ask(path)
    assert headers[b"content-type"].startswith(kind)
    assert b"immutable" in headers[b"cache-control"]
    assert int(headers[b"content-length"]) == len(body)


def test_the_page_is_asked_for_again_and_not_sent_again_where_it_is_known():
    _, headers, _ = _ask(PAGE)
    assert headers[b"cache-control"] == b"no-cache"
    status, _, body = _ask(PAGE, if_none_match=headers[b"etag"])
    assert (status, body) == (304, b"")
    assert _ask(PAGE, if_none_match=b'"another"')[0] == 200


def test_head_sends_no_body():
    status, headers, body = _ask(PAGE, method="HEAD")
    assert (status, body) == (200, b"")
    assert int(headers[b"content-length"]) == (FOLDER / "index.html").stat().st_size


@pytest.mark.parametrize("path", ["/", "/playground"])
def test_the_root_and_the_name_lead_to_the_page_below_any_root_path(path):
    status, headers, _ = _ask(path)
    assert (status, headers[b"location"]) == (307, b"playground/")


@pytest.mark.parametrize(
    ("path", "method"),
    [
        ("/playground/manifest.json", "GET"),
        ("/playground/../serving.py", "GET"),
        (PAGE, "POST"),
        ("/v1", "GET"),
    ],
)
def test_it_answers_nothing_else(path, method):
    assert _ask(path, method) is None


def _app(*routes, **args):
    return SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(**args)), routes=routes)


@pytest.mark.parametrize("path", ["/", ""])
def test_a_root_that_another_answers_stays_its_own(path):
    page = playground_of(_app(SimpleNamespace(path=path)))
    assert _ask("/", page=page) is None
    assert _ask("/playground", page=page)[0] == 307


VARIABLE = "FORKJOIN_NO_PLAYGROUND"


@pytest.mark.parametrize(
    ("flags", "environ", "is_there"),
    [
        ([], {}, True),
        (["--no-playground"], {}, False),
        (["--no-playground", "--port", "9"], {VARIABLE: "false"}, False),
        ([], {VARIABLE: "true"}, False),
        ([], {VARIABLE: "false"}, True),
    ],
    ids=["default", "flag", "flag_over_variable", "variable", "variable_says_no"],
)
def test_a_flag_or_a_variable_switches_it_off(flags, environ, is_there, monkeypatch):
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    args = resolve(flags, environ).args
    assert (playground_of(_app(**vars(args))) is not None) is is_there


def test_a_file_switches_it_off(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["forkjoin", "serve"])
    (tmp_path / "serve.yaml").write_text("no-playground: true\n")
    assert resolve(["--config", str(tmp_path / "serve.yaml")], {}).args.forkjoin_no_playground is True


def test_a_variable_that_says_neither_is_refused():
    with pytest.raises(UsageError, match=f"{VARIABLE}: expected true_or_false, got 'maybe'"):
        resolve([], {VARIABLE: "maybe"})
