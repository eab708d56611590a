"""The workers of vLLM's ``OffloadingConnector``, for a scheduler without a model (``fed.py``).

All of it is vLLM's but the copies (``host_offloading.py``). In the place of KV any numbers stand, as many for
each slot of the cache as the caller has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.config import build_offloading_config
from vllm.distributed.kv_transfer.kv_connector.v1.offloading.worker import OffloadingConnectorWorker
from vllm.engine.arg_utils import EngineArgs
from vllm.v1.kv_offload.base import CanonicalKVCacheRef, CanonicalKVCaches, CanonicalKVCacheTensor
from vllm.v1.kv_offload.factory import OffloadingSpecFactory
from vllm.v1.outputs import KVConnectorOutput

from forkjoin_bench.inputs.script import Compiled
from forkjoin_bench.vllm_seam.fed import Fed, without_model
from forkjoin_bench.vllm_seam.host_offloading import EXTRA_CONFIG
from forkjoin_scheduler.vllm_seam.scheduler import ForkJoinScheduler

#: Bytes of the host that are enough for all that runs without a model.
MANY = 1 << 24


def offloading(transfer_steps: int, num_bytes: int = MANY, folder: str | None = None) -> KVTransferConfig:
    """VLLM's configuration of the connector. ``transfer_steps``: that each copy takes.

    ``folder``: where to keep what is stored in files, too; its own threads read and write them.
    """
    extra = EXTRA_CONFIG | {"cpu_bytes_to_use": num_bytes, "transfer_steps": transfer_steps}
    if folder is not None:
        tiers = [{"type": "fs", "root_dir": folder, "n_read_threads": 1, "n_write_threads": 1}]
        extra |= {"spec_name": "HostTieringSpec", "secondary_tiers": tiers}
    return KVTransferConfig(
        kv_connector="OffloadingConnector", kv_role="kv_both", kv_connector_extra_config=extra
    )


class OffloadingWorkers:
    """What a worker with the connector does around the forward pass of each step, on the slots ``kv``."""

    def __init__(self, scheduler: Any, kv: np.ndarray) -> None:
        config, blocks = scheduler.vllm_config, len(scheduler.kv_cache_manager.block_pool.blocks)
        spec = OffloadingSpecFactory.create_spec(build_offloading_config(config, scheduler.kv_cache_config))
        self._worker = OffloadingConnectorWorker(spec, config, scheduler.kv_cache_config)
        cache = torch.from_numpy(kv.view(np.int8)).view(blocks, -1)
        size = cache.shape[1]
        self._worker._init_worker(
            CanonicalKVCaches([CanonicalKVCacheTensor(cache, size)], [[CanonicalKVCacheRef(0, size)]])
        )
        self._block_size = scheduler.block_size
        #: How often KV was loaded, and of how many tokens.
        self.num_loads = self.num_loaded_tokens = 0

    def before(self, output: Any) -> None:
        """Before the forward pass of ``output``: blocks that are about to be overwritten are stored."""
        self._worker.handle_preemptions(output.kv_connector_metadata)

    def after(self, output: Any) -> KVConnectorOutput:
        """After it: transfers begin, and those that have ended are told."""
        meta = output.kv_connector_metadata
        self.num_loads += len(meta.load_jobs)
        num_blocks = sum(len(job.dst_spec.block_ids) for job in meta.load_jobs.values())
        self.num_loaded_tokens += num_blocks * self._block_size
        self._worker.start_kv_transfers(meta)
        self._worker.prepare_store_kv(meta)
        sent, received = self._worker.get_finished(output.finished_req_ids)
        return KVConnectorOutput(
            finished_sending=sent,
            finished_recving=received,
            kv_connector_worker_meta=self._worker.build_connector_worker_meta(),
        )


class OffloadedFed(Fed):
    """A scheduler without a model, with the connector's workers or without a connector. It counts tokens."""

    def __init__(self, scheduler: Any, hasher: Any) -> None:
        super().__init__(scheduler, hasher)
        slots = np.zeros(len(scheduler.kv_cache_manager.block_pool.blocks), dtype=np.uint64)
        self._workers = None if scheduler.connector is None else OffloadingWorkers(scheduler, slots)
        self._eos: int = scheduler._core.tokenizer.token_id("<|end|>")

    def ask(self, compiled: Compiled, request_id: str | None = None) -> None:
        """Send a request for ``compiled``, which ends where its text does."""
        super().ask(compiled, request_id)
        request = self._scheduler.requests[request_id or compiled.family.name]
        request.sampling_params.update_from_generation_config({}, eos_token_id=self._eos)

    def _next(self, request: Any) -> list[int]:
        if "#fill" in request.request_id:  # it computes KV ahead of a join; its sample is dropped
            return [] if request.is_prefill_chunk else [0]
        try:
            return super()._next(request)
        except IndexError:
            return [self._eos]

    @property
    def num_loaded_tokens(self) -> int:
        """Tokens whose KV the connector gave."""
        return 0 if self._workers is None else self._workers.num_loaded_tokens

    def run(self) -> tuple[int, int]:
        """Run all requests to their ends; returns how many steps computed something, and how many tokens."""
        steps = computed = 0
        while self._scheduler.has_unfinished_requests():
            output = self._scheduler.schedule()
            if self._workers is not None:
                self._workers.before(output)
            sampled = self._sample(output)
            if self._workers is not None:
                sampled.kv_connector_output = self._workers.after(output)
            self._scheduler.update_from_output(output, sampled)
            steps += bool(output.num_scheduled_tokens)
            computed += output.total_num_scheduled_tokens
        return steps, computed


def offloaded_fed(num_blocks: int, transfer_steps: int, **options: Any) -> OffloadedFed:
    """Our scheduler on so many KV blocks. ``transfer_steps``: that each copy takes; 0: no connector."""
    connects = offloading(transfer_steps) if transfer_steps else None
    config = EngineArgs(**options, kv_transfer_config=connects).create_engine_config()
    return OffloadedFed(*without_model(ForkJoinScheduler, config, num_blocks))
