"""The application that a server runs, without a server."""

from __future__ import annotations

from fastapi import FastAPI
from vllm.entrypoints.launchers.app import build_app

from forkjoin_server.cli import serve_args
from forkjoin_server.http.openapi import publish


def application() -> FastAPI:
    """The one that serves the embedded model, made without an engine."""
    app: FastAPI = build_app(serve_args([]), ("generate",))
    publish(app)
    return app
