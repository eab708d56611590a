"""The options that matter to forks."""

from __future__ import annotations

from forkjoin_server.doctor.verdicts.verdict import Rule, Topic, Verdict

_WORKS, _LIMITED, _REFUSED = Verdict.WORKS, Verdict.LIMITED, Verdict.REFUSED
_PARALLEL = Topic.PARALLEL

_PARALLELISM: tuple[Rule, ...] = (
    Rule(("tensor-parallel-size",), _WORKS, "Re-prefill and stitched joins are exact on two ranks.",
         "tests/engine/test_matrix.py", _PARALLEL),
    Rule(("pipeline-parallel-size",), _LIMITED,
         "Re-prefill joins are exact in two stages on CPUs, in an engine (`test_matrix`) and over HTTP. With async "
         "scheduling, the default on GPUs, only the scheduler is tested (`test_pipeline`). Refused with stitched joins, "
         "speculative decoding or recurrent layers, and on a CPU with `--enforce-eager`.",
         "tests/server/test_parallel.py", _PARALLEL, refusal="pipeline parallelism"),
    Rule(("data-parallel-size", "data-parallel-size-local", "api-server-count"), _LIMITED,
         "20 families at once on two engines behind two API servers answer as each does alone. MoE models, whose engines "
         "run in step, are not tested.",
         "tests/server/test_parallel.py", _PARALLEL),
    Rule(("distributed-executor-backend",), _LIMITED,
         "`mp` and `uni` are tested. `ray` and `external_launcher` never ran with forks; with `ray` vLLM itself refuses "
         "CPUs. Under Ray Serve each replica is a whole server (`tests/deploy/test_ray.py`) and needs no such backend.",
         "tests/engine/test_matrix.py", _PARALLEL, values=("mp", "uni")),
    Rule(("decode-context-parallel-size", "prefill-context-parallel-size"), _REFUSED,
         "Refused above 1: a sequence's KV is spread over ranks.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", _PARALLEL, refusal="context parallelism"),
    Rule(("dcp-comm-backend", "dcp-q-replicate", "dcp-kv-cache-interleave-size", "cp-kv-cache-interleave-size"),
         _LIMITED, "No effect: context parallelism is refused.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", _PARALLEL),
    Rule(("enable-dbo",), _LIMITED, "Refused with dialects that have path embeddings; else it never ran with forks.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", _PARALLEL, values=("False",)),
    Rule(("VLLM_USE_RUST_FRONTEND",), _REFUSED, "Refused at 1: the Rust front end has neither our checks nor threads.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", _PARALLEL),
    Rule(("grpc", "grpc-port"), _LIMITED, "Its answers have no threads; refused together with API keys.",
         "tests/unit/server/access/test_keys.py", _PARALLEL),
)  # fmt: skip

_MEMORY: tuple[Rule, ...] = (
    Rule(("enable-prefix-caching",), _REFUSED,
         "On by default. Refused when switched off: threads share their parent's blocks through it.",
         "tests/server/test_start.py", refusal="prefix caching"),
    Rule(("block-size", "num-gpu-blocks-override"), _WORKS,
         "Any size; stitched joins need room for two of the longest contexts.", "tests/engine/test_random.py"),
    Rule(("kv-cache-memory-bytes", "gpu-memory-utilization"), _LIMITED,
         "Tested as arithmetic: they only decide how many blocks there are.", "tests/unit/server/doctor"),
    Rule(("kv-cache-dtype",), _LIMITED,
         "fp8 runs with both joins. Stitched joins refuse caches with scales of each token; re-prefill joins are not tested "
         "with these.",
         "tests/engine/test_shapes.py", values=("auto", "fp8", "fp8_e4m3")),
    Rule(("quantization",), _LIMITED,
         "W8A8 of compressed-tensors runs with both joins. AWQ and GPTQ run with re-prefill joins, on CPUs with AVX-512; with "
         "stitched joins they never ran. Others are not tested.",
         "tests/engine/test_shapes.py", values=("compressed-tensors", "awq", "gptq")),
    Rule(("attention-backend",), _LIMITED,
         "Stitched joins refuse backends whose KV layout is unknown. Layouts of GPUs are tested on tensors only.",
         "tests/engine/test_layouts.py"),
    Rule(("kv-transfer-config", "kv-offloading-backend", "kv-offloading-size"), _LIMITED,
         "vLLM's `OffloadingConnector` is exact with re-prefill joins, in memory and with files (`TieringOffloadingSpec`, "
         "`fs`), on both runners; its copies between a GPU and the host never ran. Other connectors are refused, and all of them with "
         "stitched joins and with what else is not tested.",
         "tests/engine/test_offloaded_engine.py", refusal="a KV connector"),
    Rule(("use-replayssm",), _REFUSED,
         "Refused with recurrent layers: what it keeps beside the blocks is not copied at a fork.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", refusal="--use-replayssm"),
    Rule(("mamba-cache-mode",), _LIMITED, "Only `align`, which vLLM chooses by itself with prefix caching.",
         "tests/unit/scheduler/vllm_seam/test_compat.py"),
)  # fmt: skip

_SCHEDULING: tuple[Rule, ...] = (
    Rule(("max-num-seqs", "max-num-batched-tokens", "enable-chunked-prefill", "scheduling-policy"), _WORKS,
         "Answers are the same whatever the limits, the chunks and the order are.", "tests/engine/test_random.py"),
    Rule(("async-scheduling",), _WORKS, "Forks and joins are the same with a step in flight. vLLM has it off on CPUs.",
         "tests/engine/test_async.py"),
    Rule(("prefill-schedule-interval",), _LIMITED,
         "Prompts are held back, on vLLM 0.33 without data parallelism, too; threads and joins of families that have begun "
         "are not, but for chunks after their first.",
         "tests/engine/test_admitting.py"),
    Rule(("max-num-active-seqs",), _LIMITED,
         "Parked parents are not counted, so that their threads can run."),
    Rule(("scheduler-cls",), _REFUSED, "Fork/join is a scheduler itself.", "tests/unit/server/test_cli.py"),
    Rule(("worker-cls",), _LIMITED, "Refused with stitched joins, which need a worker of their own. With yours, "
         "attention is not grouped.",
         "tests/unit/server/test_cli.py"),
    Rule(("middleware", "additional-config"), _WORKS, "Yours run beside ours.", "tests/unit/server/test_cli.py"),
    Rule(("speculative-config", "spec-method", "spec-model", "spec-tokens"), _LIMITED,
         "ngram, draft models, EAGLE and MTP are exact, suffix with a stand-in for its package; other methods are refused, and "
         "so are drafts that are kept by a lossy `rejection_sample_method` (`synthetic`, and `fly` of vLLM 0.33). "
         "Stitched joins refuse drafters with a KV cache of their own. Refused with recurrent layers and with pipeline "
         "parallelism.",
         "tests/engine/test_speculation.py", refusal="speculative decoding"),
)  # fmt: skip

_MODEL: tuple[Rule, ...] = (
    Rule(("model", "max-model-len", "dtype", "served-model-name", "seed"), _WORKS,
         "The dialect says which models.", "tests/engine/test_exact.py"),
    Rule(("VLLM_USE_V2_MODEL_RUNNER",), _LIMITED,
         "Both runners are exact; V2 ran by Triton's interpreter only. Refused with recurrent layers.",
         "tests/engine/test_matrix.py", refusal="the V2 model runner"),
    Rule(("VLLM_BATCH_INVARIANT",), _LIMITED, "Never ran with forks at 1: vLLM has it for GPUs.", values=("0",)),
    Rule(("enforce-eager",), _LIMITED, "Both ways on CPUs. CUDA graphs never ran.", "tests/engine/test_matrix.py"),
    Rule(("runner", "convert", "pooler-config"), _REFUSED, "Pooling models are refused: they do not decode.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", refusal="pooling models"),
    Rule(("enable-return-routed-experts", "aux-output-config"), _REFUSED,
         "Refused where experts are to be returned: those of threads would be missing.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", refusal="--enable-return-routed-experts"),
    Rule(("return-sampling-mask",), _REFUSED, "Refused: the masks of threads would be missing.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", refusal="--return-sampling-mask"),
    Rule(("diffusion-config",), _REFUSED, "Diffusion models are refused: they write tokens in no order.",
         "tests/unit/scheduler/vllm_seam/test_compat.py", refusal="diffusion"),
    Rule(("enable-prompt-embeds",), _LIMITED, "A request with prompt embeddings does not fork.",
         "tests/unit/server/request/test_bypass.py"),
    Rule(("tokenizer", "tokenizer-mode", "tokenizer-revision", "trust-remote-code"), _WORKS,
         "The dialect's tags are looked up in it at start.", "tests/unit/server/test_cli.py"),
    Rule(("enable-lora", "max-lora-rank", "max-loras"), _WORKS,
         "Threads use the adapter of their request, and KV of that alone. Families with several adapters and without one run "
         "in one batch, each as alone, with both joins, and on two ranks.", "tests/engine/test_adapters.py"),
    Rule(("lora-modules",), _WORKS, "An adapter is asked for by its name as a model.", "tests/server/test_adapters.py"),
    Rule(("logprobs-mode",), _LIMITED,
         "Log-probabilities of threads are tested with `raw_logprobs` and, at a temperature, with `processed_logprobs`.",
         "tests/engine/test_trees.py", values=("raw_logprobs", "processed_logprobs")),
    Rule(("logits-processors",), _WORKS, "Each thread has its own.", "tests/server/test_cancelling.py"),
    Rule(("limit-mm-per-prompt", "mm-processor-cache-gb", "skip-mm-profiling"), _LIMITED,
         "Threads share an image's KV; a small random model, no published one.", "tests/engine/test_images.py"),
    Rule(("mm-processor-cache-type", "video-pruning-rate"), _LIMITED,
         "Requests with media do not fork with `shm` or pruned videos.", "tests/unit/server/request/test_handover.py"),
)  # fmt: skip

_ANSWERS: tuple[Rule, ...] = (
    Rule(("reasoning-parser", "structured-outputs-config"), _WORKS,
         "The reasoning forks; grammars hold for the answer.", "tests/server/test_structured.py"),
    Rule(("enable-auto-tool-choice", "tool-call-parser"), _WORKS, "Tools are called in the answer.",
         "tests/server/test_structured.py"),
    Rule(("reasoning-config",), _LIMITED, "A request with a `thinking_token_budget` does not fork.",
         "tests/engine/test_budget.py"),
    Rule(("enable-scale-out",), _WORKS, "`/inference/v1/generate` forks too.", "tests/server/test_usage.py"),
    Rule(("api-key",), _WORKS, "Also asked for by our own routes.", "tests/server/test_keys.py"),
    Rule(("otlp-traces-endpoint",), _LIMITED,
         "Threads have spans. Refused with `--disable-log-stats`.", "tests/server/test_observability.py"),
    Rule(("enable-per-request-metrics",), _LIMITED,
         "Its rates are of an answer's whole text, so injected tokens count too; `usage` leaves them out. Read, not run."),
    Rule(("per-request-spec-decode-metrics",), _LIMITED,
         "It counts the drafts of what a request decodes itself, none of its threads'. Read, not run."),
    Rule(("shutdown-timeout",), _WORKS, "Families end before the server does.", "tests/server/test_lifecycle.py"),
)  # fmt: skip

RULES: tuple[Rule, ...] = (*_PARALLELISM, *_MEMORY, *_SCHEDULING, *_MODEL, *_ANSWERS)
