"""Grouped attention against vLLM's own, on the V2 runner, in a process of its own.

``python -m tests.engine.grouped_case async stitch`` prints a JSON line (sync or async scheduling; the kind of
join). With ``full`` after these, decoding steps run emulated CUDA graphs (``emulated_graphs.py``). vLLM's
FlashAttention runs on a stand-in of its kernels (``flash_attention.py``). The same requests run three times in
one engine: ungrouped, grouped, and, as a control, grouped with shared blocks left unread. The model is so sure
of its texts that one block less changes none of them; of each prefix the control reads a token.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def main(mode: str, join: str, more: str = "") -> dict[str, Any]:
    """Run worksheets, branches, a vote and an abort; say whether all was the same and all came back."""
    from tests.engine.platform import force_async, run_engines_alone, use_v2_runner

    run_engines_alone()
    use_v2_runner()
    if mode == "async":
        force_async()
    from tests.engine import emulated_graphs, flash_attention

    flash_attention.use_flash_attention()
    if more == "full":
        emulated_graphs.emulate()
    from forkjoin_scheduler.dialects.files import load
    from forkjoin_scheduler.vllm_seam.compat import GROUPING_WORKER, WORKER
    from tests.engine.harness import THREADWEAVER, Engine

    is_stitched = join == "stitch"
    engine = Engine(
        load("multiverse") if is_stitched else THREADWEAVER,
        policies={"grouped_attention": "0", "grouped_graphs": "full" if more == "full" else "piecewise"},
        worker_cls=WORKER if is_stitched else GROUPING_WORKER,
        block_size=16,
        max_num_seqs=16,
        max_num_batched_tokens=512,
        max_model_len=1024,
        logits_processors=None,
        **(_renamed() if is_stitched else {}),
    )
    reads = _count_reads()
    replayed = _capture(engine) if more == "full" else {}
    grouping = engine.scheduler._grouping
    runs: dict[str, Any] = {}
    for name in ("read_ungrouped", "read", "unread"):
        engine.scheduler._grouping = None if name == "read_ungrouped" else grouping
        reads.update(num=0, saved=0, most=1 if name == "unread" else 1024)
        runs[name] = _answers(engine), dict(reads)
        engine.scheduler.reset_prefix_cache()
    plain, grouped, unread = (runs[name][0] for name in ("read_ungrouped", "read", "unread"))
    request_id = engine.add(engine.prompt("a=48*36, b=57*18"), engine.params())
    engine.step_until(lambda: any("#" in i for i in engine.scheduler.requests))
    engine.core.abort_request([request_id])
    engine.drain()
    return {
        "differ_at": _differences(plain[0], grouped[0]),
        "max_delta": max(abs(a - b) for a, b in zip(plain[1], grouped[1], strict=True)),
        "returned": engine.snapshot() == engine.baseline,
        "read_ungrouped": runs["read_ungrouped"][1]["num"],
        "read": runs["read"][1]["num"],
        "saved": runs["read"][1]["saved"],
        "replayed": replayed,
        "differs_if_unread": plain[0] != unread[0] or _are_apart(plain[1], unread[1]),
    }


def _capture(engine: Any) -> dict[str, int]:
    """Capture graphs; how often those of each kind are replayed from now on."""
    from vllm.v1.attention.backends import flash_attn

    from tests.engine import emulated_graphs
    from tests.engine.recorded_graph import RecordedGraph

    flash_attn.flash_attn_varlen_func = RecordedGraph.kernel(flash_attn.flash_attn_varlen_func)
    manager, replayed = emulated_graphs.capture(engine), dict[str, int]()
    run = manager.run_fullgraph

    def counted(desc: Any) -> Any:
        kind = type(desc).__name__
        replayed[kind] = replayed.get(kind, 0) + 1
        return run(desc)

    manager.run_fullgraph = counted
    return replayed


def _renamed() -> dict[str, Any]:
    from pathlib import Path
    from tempfile import mkdtemp

    from tests.engine.renamed import MULTIVERSE, with_tokens

    return {"model": with_tokens(Path(mkdtemp()), MULTIVERSE)}


def _answers(engine: Any) -> tuple[list[list[int]], list[float]]:
    """Tokens and log-probabilities of a few requests that run together."""
    prompts = [engine.prompt(text) for text in ("a=48*36, b=57*18", "a=12*34, b=7*8, c=56*78")]
    answers = engine.run(prompts, engine.params(max_tokens=160, logprobs=0))
    logprobs = [e[t].logprob for a in answers for e, t in zip(a.logprobs, a.token_ids, strict=True) if e]
    return [a.token_ids for a in answers], logprobs


def _differences(a: list[list[int]], b: list[list[int]]) -> list[tuple[int, int, int, int]]:
    """Answer, place and both tokens where two runs differ."""
    return [
        (i, at, s, t)
        for i, (x, y) in enumerate(zip(a, b, strict=True))
        for at, (s, t) in enumerate(zip(x, y, strict=False))
        if s != t
    ]


def _are_apart(a: list[float], b: list[float]) -> bool:
    return len(a) != len(b) or max(abs(x - y) for x, y in zip(a, b, strict=True)) > 1e-3


def _count_reads() -> dict[str, int]:
    """Counts of keys read, and of those that groups saved, of every call from now on."""
    from vllm.v1.attention.backends import flash_attn

    from forkjoin_scheduler.vllm_seam.grouped.flash_attention import GroupedMetadataBuilder

    attend = flash_attn.flash_attn_varlen_func
    counts = {"num": 0, "saved": 0, "most": 1024}
    num_layers = _Layers()

    def counting(**more: Any) -> Any:
        if not more["causal"]:
            more["seqused_k"] = more["seqused_k"].clamp(max=counts["most"])
        counts["num"] += int(more["seqused_k"].sum())
        num_layers.see(more["k"])
        return attend(**more)

    flash_attn.flash_attn_varlen_func = counting
    build = GroupedMetadataBuilder.build

    def counted(self: Any, *args: Any, groups: Any = None, **more: Any) -> Any:
        if groups is not None:
            counts["saved"] += groups.saved_tokens * num_layers.num
        return build(self, *args, groups=groups, **more)

    GroupedMetadataBuilder.build = counted  # type: ignore[method-assign]
    return counts


class _Layers:
    """How many layers there are: their caches are told apart by where they lie."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def see(self, keys: Any) -> None:
        self._seen.add(keys.data_ptr())

    @property
    def num(self) -> int:
        """Those seen so far: all, once one step has run."""
        return len(self._seen)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    print("CASE " + json.dumps(main(*sys.argv[1:])))
