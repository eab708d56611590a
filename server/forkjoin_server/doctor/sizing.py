"""How many families fit a GPU's KV cache at once. Arithmetic only: no model, no GPU, no vLLM."""

from __future__ import annotations

from dataclasses import dataclass

from forkjoin_server.doctor.kv_layout import KVLayout

GIB = 1 << 30


@dataclass(frozen=True)
class Hardware:
    """``num_gpus`` GPUs with tensor parallelism. vLLM uses ``utilization`` of the memory of each."""

    gpu_bytes: int
    utilization: float = 0.9
    num_gpus: int = 1


@dataclass(frozen=True)
class Shape:
    """A family: a prompt, and threads that each write so many tokens."""

    prompt_tokens: int
    num_threads: int
    thread_tokens: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the family holds when its threads end: the prompt is there once."""
        return self.prompt_tokens + self.num_threads * self.thread_tokens


@dataclass(frozen=True)
class Sizing:
    """What fits. ``num_*`` without "gpu" in its name is of all GPUs of one server."""

    weight_bytes_per_gpu: int
    kv_bytes_per_gpu: int
    kv_bytes_per_token: int
    num_blocks: int
    block_size: int
    blocks_per_family: int
    #: Of as many requests as the family has threads, each with the prompt for itself.
    blocks_unshared: int
    num_threads: int
    num_gpus: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        return self.num_blocks * self.block_size

    @property
    def num_families(self) -> int:
        """Families that fit at once, each with all its tokens."""
        return self.num_blocks // self.blocks_per_family

    @property
    def num_families_unshared(self) -> int:
        """As many, if each thread were a request that shares nothing."""
        return self.num_blocks // self.blocks_unshared

    @property
    def threads_per_gpu(self) -> float:
        """Threads of all families at once, for each GPU."""
        return self.num_families * self.num_threads / self.num_gpus


def size_up(
    layout: KVLayout,
    *,
    dtype_bytes: int,
    weight_bytes: int,
    hardware: Hardware,
    shape: Shape,
    block_size: int = 16,
) -> Sizing:
    """What fits beside weights of ``weight_bytes`` in all.

    vLLM also takes what a step needs beside weights and cache, which it measures when it starts: not
    subtracted here, so there are a little fewer blocks than this says.
    """
    weights = -(-weight_bytes // hardware.num_gpus)
    room = max(int(hardware.gpu_bytes * hardware.utilization) - weights, 0)
    of_token = layout.bytes_per_token(dtype_bytes, hardware.num_gpus)
    # one block is vLLM's: what has no KV points there
    num_blocks = max(room // (of_token * block_size) - 1, 0)
    return Sizing(
        weight_bytes_per_gpu=weights,
        kv_bytes_per_gpu=room,
        kv_bytes_per_token=of_token,
        num_blocks=num_blocks,
        block_size=block_size,
        blocks_per_family=blocks_of(shape, layout.window, block_size),
        blocks_unshared=shape.num_threads
        * blocks_of(Shape(shape.prompt_tokens, 1, shape.thread_tokens), layout.window, block_size),
        num_threads=shape.num_threads,
        num_gpus=hardware.num_gpus,
    )


def blocks_of(shape: Shape, window: int | None, block_size: int) -> int:
    """Blocks of a family when its threads end.

    The full blocks of the prompt are there once. Each thread has a copy of the block that the prompt fills
    in part. With a ``window``, neither the prompt nor a thread keeps more than that, and each may begin in
    the middle of a block: at most one block more.
    """
    prompt, thread, more = shape.prompt_tokens, shape.thread_tokens, 0
    if window is not None:
        prompt, thread = min(prompt, window), min(thread, window)
        more = 1
    shared, rest = divmod(prompt, block_size)
    return shared + more + shape.num_threads * (-(-(rest + thread) // block_size) + more)
