"""verl: an agent loop whose answers fork, on a server of ``forkjoin serve``.

The file that ``actor_rollout_ref.rollout.agent.agent_loop_config_path`` names:

    - name: forkjoin
      _target_: verl_agent_loop.ForkJoinAgentLoop
      address: http://localhost:8000

verl's trainer of version 1 takes several outputs for an answer: one for each context, so that each sampled
token stands after what it was sampled from. Its other trainers take one: set ``in_one_row: true`` for the
transcript.
"""

from __future__ import annotations

from time import monotonic
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from forkjoin import AsyncClient, Row

#: What a request may have of verl's sampling parameters; log-probabilities are in the tree.
SAMPLING = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")


class ForkJoinAgentLoop(AgentLoopBase):
    """Asks the server at ``address``. ``forkjoin``: what requests ask of fork/join, as in the HTTP API."""

    def __init__(
        self,
        *args: Any,
        address: str,
        in_one_row: bool = False,
        forkjoin: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.address, self.in_one_row = address, in_one_row
        self.forkjoin = dict(forkjoin or {}) | {"return_tree": True}

    async def run(
        self, sampling_params: dict[str, Any], **kwargs: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        """The rows of one answer to ``raw_prompt``, the final one last: verl rewards that."""
        started = monotonic()
        async with AsyncClient(self.address) as client:
            answer = await client.ask(
                list(kwargs["raw_prompt"]),
                forkjoin=self.forkjoin,
                max_tokens=self.rollout_config.response_length,
                **{name: sampling_params[name] for name in SAMPLING if name in sampling_params},
            )
        seconds = monotonic() - started
        if self.in_one_row:
            return self._output(answer.tree.transcript(), seconds)
        final = answer.tree.final_row()
        rows = [*(row for row in answer.tree.rows() if row != final), final]
        return [self._output(row, seconds) for row in rows]

    def _output(self, row: Row, seconds: float) -> AgentLoopOutput:
        most = self.rollout_config.response_length
        return AgentLoopOutput(
            prompt_ids=row.prompt_ids,
            response_ids=row.completion_ids[:most],
            response_mask=row.mask[:most],
            response_logprobs=row.logprobs[:most],
            num_turns=2,
            metrics=AgentLoopMetrics(generate_sequences=seconds),
            extra_fields={"thread": row.thread, "turn_scores": [], "tool_rewards": []},
        )
