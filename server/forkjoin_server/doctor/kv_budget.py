"""How much fits in the KV cache: contexts of full length, and small families."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from forkjoin_scheduler.policy.admission import Admission, Need, Room
from forkjoin_server.doctor.check import Check, fail, ok, warn

if TYPE_CHECKING:
    from forkjoin_scheduler.vllm_seam.cache.estimate import Cache

#: What a request is taken to bring.
PROMPT_TOKENS = 512
#: A family that has ended: the others are taken to need as much.
_ENDED = Need(
    generated=Admission.PRIOR_TOKENS, width=Admission.PRIOR_WIDTH, critical=Admission.PRIOR_TOKENS // 2
)


def num_families(cache: Cache, num_slots: int) -> int:
    """So many requests of ``PROMPT_TOKENS`` the server starts beside each other if families are small."""
    admission, need = Admission(), Need(blocks=-(-PROMPT_TOKENS // cache.block_size))
    admission.learn(_ENDED)
    running: list[Need] = []
    while need.blocks * (len(running) + 1) <= cache.num_blocks:
        room = Room(cache.num_blocks - need.blocks * len(running), cache.block_size, num_slots)
        if not admission.admits(need, running, room):
            break
        running.append(need)
    return len(running)


def kv_budget(vllm_config: Any, cache: Cache) -> Check:
    """Whether a context of full length fits, and several families do."""
    longest = vllm_config.model_config.max_model_len
    seen = f"{cache.num_blocks} blocks of {cache.block_size} tokens"
    more = "give the cache more memory (--kv-cache-memory-bytes, --gpu-memory-utilization)"
    if cache.num_tokens < longest:
        to_do = f"{more}, or lower --max-model-len to {cache.num_tokens}"
        return fail("kv_budget", f"{seen}, too few for one context of {longest}", to_do)
    num_slots = vllm_config.scheduler_config.max_num_seqs
    families = num_families(cache, num_slots)
    seen += (
        f": {cache.num_tokens / longest:.1f} contexts of {longest} tokens, or {families} small "
        f"families ({PROMPT_TOKENS} tokens of prompt, {Admission.PRIOR_TOKENS} generated, "
        f"{Admission.PRIOR_WIDTH} threads; --max-num-seqs {num_slots})"
    )
    if families < 2:
        return warn("kv_budget", seen, f"requests will run one by one; {more} or raise --max-num-seqs")
    return ok("kv_budget", seen)
