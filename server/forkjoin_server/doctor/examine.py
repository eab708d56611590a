"""All checks of one configuration, each when what it needs is known."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.settings import KEY, Settings
from forkjoin_server.doctor import beside, environment, kv_budget, ports
from forkjoin_server.doctor import model as models
from forkjoin_server.doctor.check import Check, Status, fail, warn
from forkjoin_server.doctor.dialect import dialect
from forkjoin_server.doctor.engine import engine, options, stitching
from forkjoin_server.doctor.verdicts import together
from forkjoin_server.doctor.verdicts.checks import variables
from forkjoin_server.start.effective import Given, Value
from forkjoin_server.start.flags import own_flags
from forkjoin_server.vllm_seam.start.configs import engine_config


def installed() -> list[Check]:
    """Python and vLLM, without which nothing else can be looked at."""
    return [environment.python(), environment.vllm()]


def examine(given: Given) -> Iterator[Check]:
    """Look at what a server with ``given`` needs. Raises nothing: what is wrong is a check that fails."""
    from forkjoin_scheduler.vllm_seam.cache.machine import machine

    args = given.args
    name = args.model_tag or args.model
    try:
        here = machine()
    except Exception as error:  # of whatever kind drivers raise
        yield fail(
            "processor",
            f"vLLM's platform can't be asked: {error}",
            "mend its driver, or install vLLM for CPUs",
        )
        return
    num_engines = args.data_parallel_size_local or args.data_parallel_size
    num_workers = args.tensor_parallel_size * args.pipeline_parallel_size * num_engines
    yield environment.system(here)
    yield environment.processor(here, num_workers)
    yield environment.hub(name, os.environ)
    yield ports.unix_socket(args.uds) if args.uds else ports.port(args.host, args.port)
    try:
        vllm_config = engine_config(args)
    except UsageError as error:
        yield fail("model", f"vLLM takes no such model, or not with these flags: {error}")
        return
    if here.kind == "cpu":
        yield environment.preload(os.environ)
    if args.otlp_traces_endpoint is not None:
        yield environment.traces(args)
    yield from _served(vllm_config, models.weight_bytes(name), here, given)


def _served(vllm_config: Any, weight_bytes: int, here: Any, given: Given | None = None) -> Iterator[Check]:
    from forkjoin_scheduler.vllm_seam.cache import estimate
    from forkjoin_scheduler.vllm_seam.compat import is_recurrent

    settings = Settings.model_validate(vllm_config.additional_config.get(KEY, {}))
    wanted = settings.dialect
    yield models.model(vllm_config, weight_bytes)
    yield dialect(vllm_config, wanted, None if given is None else given.choice)
    yield (is_taken := engine(vllm_config, settings))
    if wanted is not None and given is not None:
        yield from options(_vllms_own(given) | variables(os.environ), vllm_config)
    if wanted is not None and is_taken.status is Status.OK:
        yield together.check(vllm_config, wanted)
        yield beside.drafts(vllm_config)
        yield beside.attention(vllm_config)
        yield beside.answers(vllm_config, wanted)
    cache = None
    if is_recurrent(vllm_config):
        yield warn("kv_budget", "can't be worked out for a model with recurrent layers", "start it to see")
    else:
        try:
            needed = estimate.bytes_needed(vllm_config, weight_bytes, here)
            cache = estimate.cache_of(vllm_config, weight_bytes, here)
        except Exception as error:  # of whatever kind a model's config raises that lacks what others have
            yield warn("kv_budget", f"can't be worked out for this model ({error})", "start it to see")
        else:
            yield environment.memory(here, needed)
            yield kv_budget.kv_budget(vllm_config, cache)
    if wanted is not None and wanted.join.moves_kv:
        yield stitching(vllm_config, cache, here)


def _vllms_own(given: Given) -> dict[str, Any]:
    """The options of vLLM's among those that were given, and their values."""
    ours = {action.dest for action in own_flags().values()}
    names = [dest for dest in given.origins if dest not in ours]
    return {dest.replace("_", "-"): getattr(given.args, dest, None) for dest in names}


def is_well(checks: list[Check]) -> bool:
    """Whether a server would start."""
    return all(check.status is not Status.FAIL for check in checks)


def as_json(checks: list[Check], values: list[Value]) -> str:
    """For a program: the checks, and the configuration that they looked at."""
    return json.dumps(
        {
            "ok": is_well(checks),
            "checks": [
                {"name": c.name, "status": c.status.value, "seen": c.seen, "to_do": c.to_do} for c in checks
            ],
            "configuration": [{"name": v.name, "value": v.value, "from": v.origin} for v in values],
        },
        indent=2,
    )
