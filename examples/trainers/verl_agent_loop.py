"""verl: an agent loop whose answers fork, on a server of ``forkjoin serve``.

The file that ``actor_rollout_ref.rollout.agent.agent_loop_config_path`` names:

    - name: forkjoin
      _target_: verl_agent_loop.ForkJoinAgentLoop
      address: http://localhost:8000
      injected_tokens: 256

Start the server with ``--logprobs-mode processed_logprobs``: verl divides logits by the temperature.

A row that is too long is an error. If it were cut, verl would reward a row without the answer, which stands
at its end. ``rollout.prompt_length`` must hold the prompt, the text before a fork, and a thread's header.
``rollout.response_length`` must hold what an answer samples, and ``injected_tokens``: headers and joins.

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
    """Asks the server at ``address``. ``forkjoin``: what requests ask of fork/join, as in the HTTP API.

    An answer may sample ``response_length - injected_tokens`` tokens.
    """

    def __init__(
        self,
        *args: Any,
        address: str,
        in_one_row: bool = False,
        injected_tokens: int = 256,
        forkjoin: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.address, self.in_one_row = address, in_one_row
        self.max_tokens = self.rollout_config.response_length - injected_tokens
        self.forkjoin = dict(forkjoin or {}) | {"return_tree": True}

    async def run(
        self, sampling_params: dict[str, Any], **kwargs: Any
    ) -> AgentLoopOutput | list[AgentLoopOutput]:
        """The rows of one answer to ``raw_prompt``, the final one last: verl rewards that.

        Raises ValueError if a row is longer than verl takes.
        """
        started = monotonic()
        async with AsyncClient(self.address) as client:
            answer = await client.ask(
                list(kwargs["raw_prompt"]),
                forkjoin=self.forkjoin,
                max_tokens=self.max_tokens,
                **{name: sampling_params[name] for name in SAMPLING if name in sampling_params},
            )
        seconds = monotonic() - started
        if self.in_one_row:
            return self._output(answer.tree.transcript(), seconds)
        final = answer.tree.final_row()
        rows = [*(row for row in answer.tree.rows() if row != final), final]
        return [self._output(row, seconds) for row in rows]

    def _output(self, row: Row, seconds: float) -> AgentLoopOutput:
        for name, ids in (("prompt_length", row.prompt_ids), ("response_length", row.completion_ids)):
            most = getattr(self.rollout_config, name)
            if len(ids) > most:
                raise ValueError(
                    f"row of thread {row.thread}: expected at most rollout.{name}={most} tokens, "
                    f"found {len(ids)}: raise rollout.{name}"
                )
        return AgentLoopOutput(
            prompt_ids=row.prompt_ids,
            response_ids=row.completion_ids,
            response_mask=row.mask,
            response_logprobs=row.logprobs,
            num_turns=2,
            metrics=AgentLoopMetrics(generate_sequences=seconds),
            extra_fields={"thread": row.thread, "turn_scores": [], "tool_rewards": []},
        )
