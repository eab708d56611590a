"""``python -m forkjoin_bench.vllm_seam.serving forkjoin|stock ARGS``: a server whose steps are recorded.

``forkjoin`` takes the arguments of ``forkjoin serve``, ``stock`` those of ``vllm serve``; nothing of
this project runs in the latter but what records and what forces tokens.
"""

from __future__ import annotations

import sys

FORKJOIN_SCHEDULER = "forkjoin_bench.vllm_seam.recording.RecordedForkJoin"
STOCK_SCHEDULER = "forkjoin_bench.vllm_seam.recording.RecordedStock"
REPLAY = "forkjoin_bench.vllm_seam.replay:Replay"
#: Environment variables: the script that `replay.py` reads, the file that `recording.py` writes.
SCRIPT_VARIABLE = "FORKJOIN_BENCH_SCRIPT"
RECORD_VARIABLE = "FORKJOIN_BENCH_RECORD"


def main() -> None:
    """Serve until SIGTERM."""
    kind, *argv = sys.argv[1:]
    argv += ["--logits-processors", REPLAY]
    # vLLM's argument parser looks at the process's own arguments too.
    sys.argv = [kind, "serve", *argv]
    (_serve_forkjoin if kind == "forkjoin" else _serve_stock)(argv)


def _serve_forkjoin(argv: list[str]) -> None:
    from forkjoin_server.cli import serve_args
    from forkjoin_server.operate.in_flight import shared_with_children
    from forkjoin_server.vllm_seam.start.serving import run_serve

    args = serve_args(argv)
    args.scheduler_cls = FORKJOIN_SCHEDULER
    with shared_with_children():
        run_serve(args)


def _serve_stock(argv: list[str]) -> None:
    from forkjoin_bench.vllm_seam.stock import serve

    serve([*argv, "--scheduler-cls", STOCK_SCHEDULER])


if __name__ == "__main__":
    main()
