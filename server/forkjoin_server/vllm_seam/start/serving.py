"""Runs ``vllm serve``."""

from __future__ import annotations

import argparse

from forkjoin_scheduler import redact
from forkjoin_server.operate.interrupts import exit_at_a_signal
from forkjoin_server.vllm_seam.start.accepting import accept_in_bursts
from forkjoin_server.vllm_seam.start.configs import check_configs
from forkjoin_server.vllm_seam.start.dead_processes import bound_failures
from forkjoin_server.vllm_seam.start.signals import keep_sigterm
from forkjoin_server.vllm_seam.start.stalled_clients import disconnect_stalled
from forkjoin_server.vllm_seam.start.tracing import check_tracing


def run_serve(args: argparse.Namespace) -> None:
    """Run ``vllm serve`` with ``args``. SIGTERM and SIGINT end it with 0, also while the engine starts.

    Goes to vLLM's own subcommand: its ``main`` asks for a distribution named ``vllm``, which the
    CPU build is not. Raises UnsupportedEngine, UsageError or DialectError before an engine starts.
    """
    from vllm.entrypoints.cli.serve import ServeSubcommand

    from forkjoin_scheduler.vllm_seam import compat

    exit_at_a_signal()
    redact.hide_in_logs()
    compat.check_front_end()
    check_tracing(args)
    check_configs()
    keep_sigterm()
    disconnect_stalled(args.forkjoin_client_stall_s)
    accept_in_bursts()
    bound_failures()
    command = ServeSubcommand()
    command.validate(args)
    command.cmd(args)
    if args.headless:  # which a signal ends by SystemExit, and nothing else without a fault
        raise SystemExit(1)
