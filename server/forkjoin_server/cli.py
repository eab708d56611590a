"""``forkjoin``: the command line, where everything is put together."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from forkjoin_scheduler.dialect import Limits, builtin_names, load
from forkjoin_scheduler.errors import ForkJoinError
from forkjoin_scheduler.settings import KEY, Settings

EMBEDDED_MODEL = Path(__file__).parent / "embedded"
EMBEDDED_NAME = "abacus"
#: Seconds that a SIGTERM leaves requests in flight to finish, unless --shutdown-timeout says else.
DRAIN_S = 30

USAGE = """usage: forkjoin serve [MODEL] [--dialect NAME|FILE|none] [limits] [any flag of vllm serve]
       forkjoin dialects

Without MODEL, serves the embedded model. Every flag of `vllm serve` works as it does there."""


def main(argv: list[str] | None = None) -> None:
    """Run ``argv`` (default: the process's own). Exits with 2 and one sentence on bad input."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv[:1] == ["serve"]:
            run_vllm(serve_arguments(argv[1:]))
        elif argv == ["dialects"]:
            for name in builtin_names():
                print(f"{name}\t{load(name).source}")
        else:
            print(USAGE, file=sys.stderr)
            raise SystemExit(0 if argv in (["--help"], ["-h"]) else 2)
    except ForkJoinError as error:
        print(f"forkjoin: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def serve_arguments(argv: list[str]) -> list[str]:
    """The arguments of ``vllm serve`` that do what ``forkjoin serve ARGV`` asks.

    Raises DialectError for an unknown dialect.
    """
    parser = argparse.ArgumentParser(prog="forkjoin serve", usage=USAGE, add_help=False, allow_abbrev=False)
    parser.add_argument("--dialect", default="threadweaver")
    parser.add_argument("--additional-config", type=json.loads, default={})
    for name, field in Limits.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help=field.description)
    ours, rest = parser.parse_known_args(argv)
    if not rest or rest[0].startswith("-"):
        rest = [str(EMBEDDED_MODEL), "--served-model-name", EMBEDDED_NAME, *rest]
    if not any(a.split("=")[0] == "--shutdown-timeout" for a in rest):
        rest += ["--shutdown-timeout", str(DRAIN_S)]
    middleware = ["--middleware", "forkjoin_server.middleware.ForkJoinMiddleware"]
    if ours.dialect == "none":
        return [*rest, *middleware, "--additional-config", json.dumps(ours.additional_config)]
    dialect = load(ours.dialect)
    given = {n: getattr(ours, n) for n in Limits.model_fields if getattr(ours, n) is not None}
    settings = Settings.of(dialect, given)
    return [
        *rest,
        *middleware,
        "--scheduler-cls",
        "forkjoin_scheduler.vllm_seam.scheduler.ForkJoinScheduler",
        "--additional-config",
        json.dumps(ours.additional_config | {KEY: settings.model_dump(mode="json")}),
    ]


def run_vllm(arguments: list[str]) -> None:
    """Hand over to ``vllm serve``. Raises UnsupportedEngine if vLLM is missing or another version."""
    from forkjoin_server.vllm_seam import vllm_serve

    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # vLLM's argument parser looks at the process's own arguments too.
    sys.argv = ["forkjoin", "serve", *arguments]
    vllm_serve(arguments)


if __name__ == "__main__":
    main()
