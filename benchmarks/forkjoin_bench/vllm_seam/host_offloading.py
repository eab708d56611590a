"""Workers of vLLM's ``OffloadingConnector`` that copy KV within the host's memory.

vLLM's own workers copy between a GPU and the host, and refuse a CPU. Its scheduler side is the same with
either: what is stored and loaded, and when. So that is measured and tested on a CPU with these workers, which
vLLM takes as it takes anybody's: ``EXTRA_CONFIG`` names them.

Each transfer takes ``"transfer_steps"`` steps (default: 1) and copies in the last of them, later than any GPU
would. What reads a block before its load has ended, or writes one before its store has, so differs.

``HostTieringSpec`` is the same of vLLM's ``TieringOffloadingSpec``, which keeps what it has stored in further
tiers too, such as a folder that several servers share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from vllm.v1.kv_offload.base import (
    BlockIDsLoadStoreSpec,
    CanonicalKVCaches,
    GPULoadStoreSpec,
    LoadStoreSpec,
    OffloadingWorker,
    TransferResult,
)
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.cpu.spec import CPUOffloadingSpec
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec

#: What a server is given to offload so, less the bytes that it may take.
EXTRA_CONFIG = {"spec_name": "HostOffloadingSpec", "spec_module_path": __name__, "offload_prompt_only": False}


@dataclass
class _Transfer:
    """A copy that is due in so many steps. ``blocks``: of the engine's cache; ``rows``: of the host's."""

    job_id: int
    is_load: bool
    blocks: GPULoadStoreSpec
    rows: BlockIDsLoadStoreSpec
    steps: int


class HostOffloadingWorker(OffloadingWorker):
    """Copies blocks to rows of the host's memory and back, in the order in which they were asked for."""

    def __init__(
        self,
        kv_caches: CanonicalKVCaches,
        host: list[torch.Tensor],
        transfer_steps: int,
        region: SharedOffloadRegion | None = None,
    ) -> None:
        """``host``: rows of int8 for each tensor of ``kv_caches``, in ``region`` if there is one."""
        self._caches = [cache.tensor for cache in kv_caches.tensors]
        self._groups = [[ref.tensor_idx for ref in refs] for refs in kv_caches.group_data_refs]
        self._host = host
        self._region = region
        self._steps = transfer_steps
        self._due: list[_Transfer] = []
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: GPULoadStoreSpec, dst_spec: LoadStoreSpec) -> bool:
        """Copy blocks to rows, some steps later."""
        return self._submit(job_id, is_load=False, blocks=src_spec, rows=dst_spec)

    def submit_load(self, job_id: int, src_spec: LoadStoreSpec, dst_spec: GPULoadStoreSpec) -> bool:
        """Copy rows to blocks, some steps later."""
        return self._submit(job_id, is_load=True, blocks=dst_spec, rows=src_spec)

    def _submit(self, job_id: int, *, is_load: bool, blocks: GPULoadStoreSpec, rows: LoadStoreSpec) -> bool:
        assert isinstance(rows, BlockIDsLoadStoreSpec)
        self._due.append(_Transfer(job_id, is_load, blocks, rows, self._steps))
        return True

    def get_finished(self) -> list[TransferResult]:
        """A step has ended: what is due is copied."""
        for transfer in self._due:
            transfer.steps -= 1
        self._copy({t.job_id for t in self._due if t.steps <= 0})
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Copy these now: their blocks are about to be others'."""
        self._copy(job_ids)

    def shutdown(self) -> None:
        """Give the memory back that is shared with the scheduler."""
        self._host = []
        if self._region is not None:
            self._region.cleanup()

    def _copy(self, job_ids: set[int]) -> None:
        for transfer in [t for t in self._due if t.job_id in job_ids]:
            self._due.remove(transfer)
            size = self._copy_one(transfer)
            self._done.append(TransferResult(transfer.job_id, True, size, 0.0))

    def _copy_one(self, transfer: _Transfer) -> int:
        num_bytes, at = 0, 0
        blocks, rows = (torch.from_numpy(of.block_ids).long() for of in (transfer.blocks, transfer.rows))
        for tensors, num in zip(self._groups, transfer.blocks.group_sizes, strict=True):
            ours, theirs = blocks[at : at + num], rows[at : at + num]
            at += num
            for i in tensors:
                if transfer.is_load:
                    self._caches[i][ours] = self._host[i][theirs]
                else:
                    self._host[i][theirs] = self._caches[i][ours]
                num_bytes += num * self._host[i].shape[1]
        return num_bytes


class HostOffloadingSpec(CPUOffloadingSpec):
    """VLLM's spec for offloading to the host's memory, with the workers above."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """The worker. Raises ValueError for chunks of several blocks, which it can't copy."""
        _check_chunks(self.blocks_per_chunk)
        host = [torch.empty(self.num_chunks, c.tensor.shape[1], dtype=torch.int8) for c in kv_caches.tensors]
        return HostOffloadingWorker(kv_caches, host, _transfer_steps(self.extra_config))


class HostTieringSpec(TieringOffloadingSpec):
    """VLLM's spec for offloading to the host's memory and to tiers behind it, with the workers above."""

    def get_worker(self, kv_caches: CanonicalKVCaches) -> OffloadingWorker:
        """The worker, which copies to where tiers read. Raises ValueError for chunks of several blocks."""
        _check_chunks(self.blocks_per_chunk)
        region = SharedOffloadRegion(
            engine_id=self.config.engine_id,
            num_chunks=self.num_chunks,
            rank=0,
            kv_bytes_per_chunk=self.kv_bytes_per_chunk,
            cpu_page_size=self.cpu_page_size_per_worker,
        )
        host = [region.create_next_worker_view(c.tensor.shape[1]) for c in kv_caches.tensors]
        return HostOffloadingWorker(kv_caches, host, _transfer_steps(self.extra_config), region)


def _check_chunks(blocks_per_chunk: int) -> None:
    if blocks_per_chunk != 1:
        raise ValueError(f"expected chunks of one block, got blocks_per_chunk={blocks_per_chunk}")


def _transfer_steps(extra_config: Mapping[str, Any]) -> int:
    return int(extra_config.get("transfer_steps", 1))
