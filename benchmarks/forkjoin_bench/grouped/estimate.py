"""KV that a decoding step reads, grouped and ungrouped, and how long that is expected to take.

Attention in decoding waits for memory. So the time is estimated by bytes over bandwidth, attention alone:

    ungrouped    tokens * token_bytes * layers / bandwidth
    L2           ungrouped, if siblings found each other's KV in the L2 cache, which is read twice as fast:
                 the larger of grouped bytes / bandwidth and ungrouped bytes / (2 * bandwidth)
    grouped      the same with fewer tokens, and 15 us a layer and 150 us a step for what a second pass and
                 graphs in pieces cost

No GPU has confirmed it.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What is expected of memory: 85 % of the 3.35 TB/s of an H100.
BANDWIDTH = 0.85 * 3.35e12
LAYER_S, STEP_S = 15e-6, 150e-6
#: Tokens of each thread after the prefix.
SUFFIX = 500


@dataclass(frozen=True)
class Geometry:
    """What of a model decides how much KV there is. The default is Qwen3-8B's in 16 bits."""

    num_layers: int = 36
    num_heads: int = 32
    num_kv_heads: int = 8
    head_size: int = 128
    block_size: int = 16

    @property
    def token_bytes(self) -> int:
        """KV of a token in one layer."""
        return 2 * 2 * self.num_kv_heads * self.head_size


@dataclass(frozen=True)
class Load:
    """Families that decode, each with ``width`` threads on a prefix of ``prefix`` tokens."""

    families: int
    width: int
    prefix: int
    suffix: int = SUFFIX

    @property
    def ungrouped(self) -> int:
        """Tokens of KV that a step reads in each layer."""
        return self.families * self.width * (self.prefix + self.suffix)

    def grouped(self, block_size: int) -> int:
        """The same if each family's whole blocks of its prefix are read once."""
        shared = self.prefix - self.prefix % block_size
        return self.ungrouped - self.families * (self.width - 1) * shared


@dataclass(frozen=True)
class Estimate:
    """Milliseconds of a step's attention."""

    ungrouped: float
    cached: float
    grouped: float


def estimate(load: Load, geometry: Geometry) -> Estimate:
    """What attention of a step is expected to take."""
    a_token = geometry.token_bytes * geometry.num_layers / BANDWIDTH
    every, once = load.ungrouped * a_token, load.grouped(geometry.block_size) * a_token
    second_pass = geometry.num_layers * LAYER_S + STEP_S
    return Estimate(1e3 * every, 1e3 * max(once, every / 2), 1e3 * (once + second_pass))
