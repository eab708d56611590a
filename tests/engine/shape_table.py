"""Which model families are run how, and the table of docs/compatibility.md that says so.

``python -m tests.engine.shape_table`` prints the table: a row for each case of ``test_shapes``, and for each test of
``OTHERS``. So no row is without a test that runs.
"""

from __future__ import annotations

from itertools import groupby
from typing import NamedTuple

RUNNERS = ("v1-sync", "v1-async", "v2-sync", "v2-async")


class Case(NamedTuple):
    """A small model (of ``shapes.SHAPES``) on a runner with a kind of join; ``refused``: what its refusal says."""

    shape: str
    join: str
    runner: str = "v1-sync"
    refused: str | None = None

    @property
    def name(self) -> str:
        """As tests and processes call it."""
        return f"{self.shape}-{self.join}"

    @property
    def has_run(self) -> bool:
        """Whether a CPU has run it. The others are skipped where vLLM lacks what they need (``test_shapes.lacks``)."""
        return self.runner not in UNRUN.get(self.shape, ())


#: Of the shapes, as the table calls them.
TITLES = {
    "llama": "dense (Llama, Qwen)",
    "moe": "experts (Qwen3-MoE)",
    "mistral": "sliding window in all layers (Mistral)",
    "window": "the same, with contexts no longer than the window",
    "gemma": "sliding window + full (Gemma 3)",
    "gemma_window": "the same, with contexts no longer than the window and one KV cache group",
    "gpt_oss": "sliding window + full, sinks, experts (gpt-oss)",
    "gdn": "gated DeltaNet + full, experts (Qwen3-Next)",
    "lfm2": "short convolutions + full (LFM2), without vLLM's kernel for rotations",
    "mla": "MLA, experts (DeepSeek V3)",
    "mla_native": "the same, without vLLM's kernel for rotations",
    "w8a8": "weights in int8 (compressed-tensors W8A8)",
    "w8a8_fp32": "the same, computing in fp32",
    "awq": "weights in int4 (AWQ)",
    "gptq": "weights in int4 (GPTQ)",
    "fp8_kv": "KV cache in fp8",
}
V1 = RUNNERS[:2]
#: On which runners a shape runs with a join. The V2 runner is refused with recurrent layers (gdn, lfm2).
RUN = {
    ("llama", "reprefill"): RUNNERS, ("moe", "reprefill"): RUNNERS, ("moe", "stitch"): RUNNERS, ("mistral", "reprefill"): RUNNERS,
    ("gemma", "reprefill"): RUNNERS, ("gpt_oss", "reprefill"): RUNNERS, ("gdn", "reprefill"): V1,
    ("lfm2", "reprefill"): V1, ("mla", "reprefill"): RUNNERS, ("mla_native", "stitch"): RUNNERS,
    ("window", "stitch"): RUNNERS, ("gemma_window", "stitch"): RUNNERS,
    ("w8a8", "reprefill"): RUNNERS, ("w8a8_fp32", "stitch"): RUNNERS,
    ("awq", "reprefill"): RUNNERS, ("gptq", "reprefill"): RUNNERS,
    ("fp8_kv", "reprefill"): RUNNERS, ("fp8_kv", "stitch"): RUNNERS,
}  # fmt: skip
#: Shapes that vLLM has on some CPUs only, and the runners on which none of these CPUs has run them.
UNRUN = dict.fromkeys(("mla", "mla_native", "awq", "gptq", "fp8_kv"), RUNNERS[1:])
CASES = [Case(shape, join, runner) for (shape, join), runners in RUN.items() for runner in runners]
CASES += [Case(s, "stitch", refused="a sliding window") for s in ("mistral", "gemma", "gpt_oss")]
CASES += [Case("gdn", "stitch", refused="Mamba layers")]

JOINS = {"reprefill": "re-prefill", "stitch": "stitch"}
#: What the log-probabilities of a family are compared with.
COMPARED = {
    "reprefill": "plain requests with the same contexts",
    "stitch": "transformers, explicit positions and masks",
}


class Other(NamedTuple):
    """A row that another test stands for: its family, join and runners, and the test's file and name."""

    family: str
    join: str
    runners: str
    compared: str
    file: str
    test: str
    #: In ``tests``, where the file is.
    folder: str = "engine"

    @property
    def place(self) -> str:
        """The test's file, as the table names it."""
        return self.file if self.folder == "engine" else f"tests/{self.folder}/{self.file}.py"


_ALONE = "plain requests"
_ALL_RUNNERS = "V1 and V2, sync and async"
_ADAPTERS = "LoRA, two of three adapters and none in a step"
OTHERS = [
    Other("dense (the embedded model)", "re-prefill", _ALL_RUNNERS, "plain requests with the same contexts", "test_matrix",
          "test_fork_and_join_are_exact_on_each_runner_scheduling_and_with_tensor_parallelism"),
    Other("dense (the embedded model)", "stitch", _ALL_RUNNERS, "transformers, explicit positions and masks", "test_matrix",
          "test_a_stitched_join_is_what_transformers_computes_and_is_restored_when_lost"),
    Other("dense (the embedded model)", "finish, in place, on demand, rewrite, rounds, splice, vote", "V1 sync",
          "each published client over stock vLLM", "test_stock",
          "test_the_published_client_over_stock_vllm_writes_what_our_engine_does", "reference_clients"),
    Other("vision (Qwen2.5-VL)", "re-prefill", "V1 sync", _ALONE, "test_images",
          "test_branches_after_an_image_are_what_plain_requests_write"),
    Other("vision (Qwen2.5-VL)", "re-prefill, stitch", "V2 async", f"{_ALONE}; transformers", "test_images",
          "test_forks_after_images_are_exact_on_the_v2_runner_with_steps_in_flight"),
    Other("vision with M-RoPE (Qwen2.5-VL)", "stitch", "V1 sync", "transformers", "test_images_stitched",
          "test_what_follows_a_stitched_join_after_an_image_is_what_the_reference_says"),
    Other("path embeddings (ParaThinker)", "stitch", "V1 and V2 async", "transformers", "test_matrix",
          "test_path_embeddings_are_what_transformers_computes_and_are_restored_when_lost"),
    Other(_ADAPTERS, "re-prefill", f"{_ALL_RUNNERS}; V1 sync on two ranks", "plain requests with the same contexts and adapter", "test_adapters",
          "test_families_with_several_adapters_and_without_one_in_one_batch_are_each_as_it_is_alone"),
    Other(_ADAPTERS, "stitch", "V1, sync and async; V2 async; V1 sync on two ranks", "transformers with the adapter merged, explicit positions and masks",
          "test_adapters", "test_families_with_several_adapters_and_without_one_in_one_batch_are_each_as_it_is_alone"),
]  # fmt: skip


def _runs_on(runners: list[str]) -> str:
    if runners == list(RUNNERS):
        return _ALL_RUNNERS
    return ", ".join(f"{runner[:2].upper()} {runner[3:]}" for runner in runners)


def rows() -> list[tuple[str, str, str, str]]:
    """Family, join, runners and what it is compared with in which test."""
    found = []
    order = list(TITLES)
    cases = sorted(CASES, key=lambda c: (order.index(c.shape), c.join, RUNNERS.index(c.runner)))
    for (shape, join), group in groupby(cases, key=lambda c: (c.shape, c.join)):
        of_it = list(group)
        runs, seen = _runs_on([c.runner for c in of_it if c.has_run]), COMPARED[join]
        if unrun := [c.runner for c in of_it if not c.has_run]:
            runs += f"; written, but not run: {_runs_on(unrun)}"
        if of_it[0].refused:
            runs, seen = "refused at start", of_it[0].refused
        found.append((TITLES[shape], JOINS[join], runs, f"{seen} (`test_shapes`)"))
    found += [(o.family, o.join, o.runners, f"{o.compared} (`{o.place}`)") for o in OTHERS]
    return found


def table() -> str:
    """The rows, in Markdown."""
    lines = [("model family", "join", "runner", "compared with (tests/engine)"), ("---",) * 4, *rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
