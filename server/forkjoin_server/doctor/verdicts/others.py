"""The options of vLLM of which there is less to say: they do not touch forks, or nobody tested them."""

from __future__ import annotations

from typing import NamedTuple

from forkjoin_server.doctor.verdicts.verdict import Topic, Verdict


class Others(NamedTuple):
    """Options of one verdict."""

    verdict: Verdict
    topic: Topic
    #: Their names, with white space between them.
    text: str

    @property
    def names(self) -> list[str]:
        """One by one."""
        return self.text.split()


#: Those that vLLM has had since 0.33.
NEWER = ("monokernel", "reasoning-effort-map", "sleep-mode-backend", "watchdog-config")

OTHERS: tuple[Others, ...] = (
    Others(
        Verdict.BESIDE,
        Topic.ENGINE,
        """
        aggregate-engine-logging allow-credentials allowed-headers allowed-local-media-path
        allowed-media-domains allowed-methods allowed-origins chat-template chat-template-content-format
        code-revision collect-detailed-traces config config-format cudagraph-metrics
        custom-histogram-buckets default-chat-template-kwargs disable-access-log-for-endpoints
        disable-fastapi-docs disable-log-stats disable-uvicorn-access-log download-dir
        enable-flash-late-interaction enable-force-include-usage enable-layerwise-nvtx-tracing
        enable-log-deltas enable-log-outputs enable-log-requests enable-logging-iteration-details
        enable-mfu-metrics enable-offline-docs enable-prompt-tokens-details
        enable-request-id-headers enable-server-load-tracking enable-ssl-refresh
        enable-tokenizer-info-endpoint exclude-tools-when-tool-choice-none fail-on-environ-validation
        fingerprint-mode fingerprint-value generation-config h11-max-header-count
        h11-max-incomplete-event-size hf-config-path hf-token host ignore-patterns jit-monitor-mode
        jit-monitor-verbose kv-cache-metrics kv-cache-metrics-sample load-format log-config-file
        log-error-stack log-level logging-config max-log-len max-logprobs max-lora-cls-labels
        max-num-queued-reqs max-num-queued-tokens media-io-kwargs model-loader-extra-config
        override-generation-config port prefix-caching-hash-algo
        profiler-config pt-load-map-location reasoning-effort-map reasoning-parser-plugin
        renderer-num-workers response-role
        return-tokens-as-token-ids revision root-path safetensors-load-strategy
        safetensors-prefetch-block-size safetensors-prefetch-num-threads show-hidden-metrics-for-version
        sse-keep-alive-interval ssl-ca-certs ssl-cert-reqs ssl-certfile ssl-ciphers ssl-keyfile
        tool-parser-plugin tool-strict-level trust-request-chat-template trust-request-mm-kwargs uds
        use-tqdm-on-load uvicorn-log-level watchdog-config
        """,
    ),
    Others(
        Verdict.BESIDE,
        Topic.PARALLEL,
        """
        cpu-distributed-timeout-seconds data-parallel-address data-parallel-rpc-port
        data-parallel-supervisor-port device-ids distributed-timeout-seconds
        dp-supervisor-probe-failure-threshold dp-supervisor-probe-interval-s dp-supervisor-probe-timeout-s
        headless master-addr master-port max-parallel-loading-workers numa-bind numa-bind-cpus
        numa-bind-nodes ray-workers-use-nsight
        """,
    ),
    Others(
        Verdict.UNTESTED,
        Topic.ENGINE,
        """
        allow-deprecated-quantization anthropic-disabled-thinking-effort attention-config
        cohere-format cohere-is-reasoning-model compilation-config cpu-offload-gb
        cpu-offload-params cudagraph-capture-sizes default-mm-loras disable-cascade-attn
        disable-chunked-mm-input disable-hybrid-kv-cache-manager disable-sliding-window ec-manager-config
        ec-transfer-config enable-cumem-allocator enable-flashinfer-autotune
        enable-mamba-cache-stochastic-rounding enable-mamba-shared-prefix-checkpoint
        enable-mixed-moe-lora-format enable-mm-embeds enable-moe-shared-loras
        enable-sleep-mode enable-tower-connector-lora enable-trace-replay engram-config
        gdn-prefill-backend hf-overrides interleave-mm-strings io-processor-plugin ir-op-priority
        kda-decode-backend kda-prefill-backend kernel-config kv-cache-dtype-skip-layers kv-events-config
        kv-sharing-fast-prefill language-model-only linear-backend
        long-prefill-token-threshold long-prefill-token-threshold-adaptive lora-dtype
        lora-target-modules mamba-backend mamba-block-size mamba-cache-dtype
        mamba-cache-philox-rounds mamba-ssm-cache-dtype mamba-ssu-algorithm max-cpu-loras
        max-cudagraph-capture-size max-num-scheduled-tokens mm-device-do-normalize mm-encoder-attn-backend
        mm-encoder-attn-dtype mm-encoder-fp8-scale-path mm-encoder-fp8-scale-save-margin
        mm-encoder-fp8-scale-save-path mm-encoder-only mm-hasher-algorithm mm-ipc-gpu-memory-gb
        mm-processor-device mm-processor-kwargs mm-shm-cache-max-object-size-mb mm-tensor-ipc
        model-class-overrides model-impl moe-backend monokernel offload-backend offload-group-size
        offload-num-in-group offload-params offload-prefetch-step optimization-level performance-mode
        prefix-cache-retention-interval prefix-match-unit quantization-config
        replayssm-buffer-len scheduler-reserve-full-isl sleep-mode-backend
        sleep-mode-offload-cudagraph
        skip-tokenizer-init sleep-preserve-parameter-names sparse-indexer-topk-backend
        specialize-active-lora stream-interval swa-bounded-replay tokens-only tool-server use-fp64-gumbel
        video-pruning-method
        watermark watermark-config weight-transfer-config
        """,
    ),
    Others(
        Verdict.UNTESTED,
        Topic.PARALLEL,
        """
        all2all-backend data-parallel-backend data-parallel-external-lb data-parallel-hybrid-lb
        data-parallel-multi-port-external-lb data-parallel-rank data-parallel-start-rank
        dbo-decode-token-threshold dbo-prefill-token-threshold disable-custom-all-reduce
        disable-nccl-for-dp-synchronization dp-sync-interval elastic-ep-max-dp-size
        enable-batch-sharded-sampling enable-elastic-ep enable-ep-weight-filter enable-eplb
        enable-expert-parallel enable-fault-tolerance enable-hc-sp enable-nccl-comm-suspend
        enable-shm-tensor-arena eplb-config expert-placement-strategy fault-tolerance-config
        fully-sharded-loras mm-encoder-tp-mode nnodes node-rank ubatch-size worker-extension-cls
        """,
    ),
)
