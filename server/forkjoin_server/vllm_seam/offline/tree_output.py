"""vLLM's OutputProcessor, which also hears of segments."""

from __future__ import annotations

from typing import Any

from vllm.v1.engine import EngineCoreOutput
from vllm.v1.engine.output_processor import OutputProcessor, OutputProcessorOutput

from forkjoin_scheduler.vllm_seam.front_end import wire
from forkjoin_server.trees import TreeBuilder

#: A request's id as its caller knows it, and the number of one of its answers.
Answer = tuple[str, int]


class TreeOutputProcessor(OutputProcessor):
    """Gathers the trees of requests; everything else is vLLM's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        #: Until they are taken.
        self.builders: dict[Answer, TreeBuilder] = {}

    @classmethod
    def in_place_of(cls, other: OutputProcessor) -> TreeOutputProcessor:
        """One that does the same as vLLM's, which has no request yet."""
        return cls(
            other.tokenizer,
            log_stats=other.log_stats,
            stream_interval=other.stream_interval,
            tracing_enabled=other.tracing_enabled,
        )

    def process_outputs(
        self, engine_core_outputs: list[EngineCoreOutput], *args: Any, **kwargs: Any
    ) -> OutputProcessorOutput:
        for output in engine_core_outputs:
            batch = wire.unpack(output)
            if batch is not None and (state := self.request_states.get(batch.request_id)) is not None:
                whole = state.parent_req
                name = state.external_req_id if whole is None else whole.external_req_id
                self.builders.setdefault((name, state.request_index), TreeBuilder()).hear(batch.events)
        return super().process_outputs(engine_core_outputs, *args, **kwargs)
