"""A deployment: the engines that a run compares, all of one model and one configuration."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forkjoin_bench.inputs.dialects import write_dialect
from forkjoin_bench.inputs.models import Model
from forkjoin_bench.inputs.script import THREAD_END, TRIGGER
from forkjoin_bench.systems.base import Engine, System
from forkjoin_bench.systems.client_loop import ClientLoop
from forkjoin_bench.systems.http import HttpCompleter, Samples, Whole
from forkjoin_bench.systems.names import GATE, SYSTEMS
from forkjoin_bench.systems.server import Server
from forkjoin_bench.vllm_seam.async_engine import IdsCompleter, InProcess
from forkjoin_bench.vllm_seam.serving import SCRIPT_VARIABLE
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.errors import UsageError


@dataclass(frozen=True)
class Config:
    """What all engines of a deployment have in common; ``num_blocks``: of KV cache."""

    max_model_len: int
    num_blocks: int
    block_size: int = 32
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 2048
    #: Not compiled: compiling takes minutes on CPUs, and again for sizes that come up in a run.
    enforce_eager: bool = True

    @property
    def options(self) -> dict[str, Any]:
        """As vLLM's engine takes them."""
        options = asdict(self)
        return {"num_gpu_blocks_override": options.pop("num_blocks"), **options}

    @property
    def flags(self) -> list[str]:
        """As its server does."""
        flags = []
        for name, value in self.options.items():
            flag = f"--{name.replace('_', '-')}"
            flags += [flag] if value is True else [] if value is False else [flag, str(value)]
        return flags


class Deployment:
    """Makes systems by name; those that can share an engine do."""

    def __init__(
        self,
        model: Model,
        config: Config,
        tokenizer: Tokenizer,
        script: Path,
        folder: Path,
        slo_itl_ms: float = 30.0,
    ) -> None:
        self.config = config
        self._slo_itl_ms = slo_itl_ms
        self._model = model
        self._tokenizer = tokenizer
        self._folder = folder
        self._env = {
            SCRIPT_VARIABLE: str(script),
            "HF_HUB_OFFLINE": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",  # num_blocks is what counts
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._stock_env = self._env | {"VLLM_PLUGINS": ""}  # nothing of ours in it
        self._engines: dict[str, Server | InProcess] = {}

    def system(self, name: str) -> System:
        """Raises UsageError for a name that is none."""
        ids = {tag: self._id(tag) for tag in (TRIGGER, THREAD_END)}
        match name.removeprefix(GATE) if name.startswith(GATE) else name:
            case "forkjoin":
                return Whole(name, self._forkjoin(name, "reprefill"))
            case "forkjoin-n":
                return Samples(name, self._forkjoin("forkjoin", "reprefill"))
            case "forkjoin-at-once":
                return Whole(name, self._forkjoin(name, "reprefill", "--join-ahead-tokens", "0"))
            case "forkjoin-capped2":
                return Whole(name, self._forkjoin(name, "reprefill", "--max-threads-running", "2"))
            case "forkjoin-slack":
                return Whole(name, self._forkjoin(name, "reprefill", "--slo-itl-ms", f"{self._slo_itl_ms:g}"))
            case "forkjoin-stitch":
                return Whole(name, self._forkjoin(name, "stitch"))
            case "sequential":
                return Whole(name, self._stock())
            case "sequential-n":
                return Samples(name, self._stock())
            case "sequential-again":
                return Whole(name, self._stock("stock-again"))
            case "client-http":
                return ClientLoop(name, HttpCompleter(self._stock(), ids))
            case "client-inproc":
                return ClientLoop(name, IdsCompleter(self._in_process(), self._tokenizer, ids))
            case gate if gate.isdecimal():
                completer = IdsCompleter(self._in_process(), self._tokenizer, ids)
                return ClientLoop(name, completer, int(gate))
        raise UsageError(f"expected a system among {', '.join(SYSTEMS)} or {GATE}N, got {name!r}")

    def _id(self, tag: str) -> int:
        token_id = self._tokenizer.token_id(tag)
        assert token_id is not None, f"the tokenizer of {self._model.name} has no {tag}"
        return token_id

    def _forkjoin(self, name: str, join: str, *flags: str) -> Server:
        if name not in self._engines:
            argv = [*self._serve_argv(), "--dialect", str(write_dialect(self._folder, join)), *flags]
            self._engines[name] = Server(name, "forkjoin", argv, self._env, self._folder)
        engine = self._engines[name]
        assert isinstance(engine, Server)
        return engine

    def _stock(self, name: str = "stock") -> Server:
        if name not in self._engines:
            argv = self._serve_argv()
            self._engines[name] = Server(name, "stock", argv, self._stock_env, self._folder)
        engine = self._engines[name]
        assert isinstance(engine, Server)
        return engine

    def _serve_argv(self) -> list[str]:
        return [str(self._model.folder), *self._model.flags, *self.config.flags]

    def _in_process(self) -> InProcess:
        if "in-process" not in self._engines:
            flags = [f.removeprefix("--").replace("-", "_") for f in self._model.flags]
            given = dict(zip(flags[::2], self._model.flags[1::2], strict=True))
            options = {"model": str(self._model.folder), **given, **self.config.options}
            self._engines["in-process"] = InProcess("in-process", options, self._stock_env, self._folder)
        engine = self._engines["in-process"]
        assert isinstance(engine, InProcess)
        return engine

    @asynccontextmanager
    async def running(self, first: int = 0) -> AsyncIterator[list[Engine]]:
        """The engines of all systems made so far, started from the ``first`` on in turn.

        They are stopped whatever happens.
        """
        made: list[Engine] = list(self._engines.values())
        engines = [made[(first + i) % len(made)] for i in range(len(made))]
        try:
            # Two at a time: a start keeps a core busy for half a minute.
            for pair in _pairs(engines):
                await asyncio.gather(*(engine.start() for engine in pair))
            yield engines
        finally:
            await asyncio.gather(*(engine.stop() for engine in engines), return_exceptions=True)


def _pairs(engines: list[Engine]) -> Iterable[list[Engine]]:
    return (engines[i : i + 2] for i in range(0, len(engines), 2))
