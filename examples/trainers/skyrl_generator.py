"""SkyRL: a generator whose answers fork, on a server of ``forkjoin serve``.

    generator = ForkJoinGenerator("http://localhost:8000", reward)

Start the server with ``--logprobs-mode processed_logprobs``: SkyRL divides logits by the temperature.

With ``generator.step_wise_trajectories=true`` a trajectory has several rows, each with a prompt of its own.
SkyRL means the turns of an agent; here they are the contexts of a tree. The last one has the reward.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from skyrl.train.generators.base import GeneratorInput, GeneratorInterface, GeneratorOutput

from forkjoin import Answer, AsyncClient

#: What an answer is worth, by what the dataset has beside its prompt (``env_extras``).
Reward = Callable[[Answer, dict[str, Any]], float]


class ForkJoinGenerator(GeneratorInterface):
    """Asks the server at ``address``. ``forkjoin``: what requests ask of fork/join, as in the HTTP API."""

    def __init__(self, address: str, reward: Reward, forkjoin: dict[str, Any] | None = None) -> None:
        self.address, self.reward = address, reward
        self.forkjoin = dict(forkjoin or {}) | {"return_tree": True}

    async def generate(self, input_batch: GeneratorInput) -> GeneratorOutput:
        """The rows of one answer to each prompt, in the order of the prompts; of each, the final row last."""
        prompts = input_batch["prompts"]
        sampling = dict(input_batch["sampling_params"] or {})
        sampling.pop("logprobs", None)  # they are in the tree
        async with AsyncClient(self.address) as client:
            asked = (client.ask(prompt, forkjoin=self.forkjoin, **sampling) for prompt in prompts)
            answers = await asyncio.gather(*asked)

        output = GeneratorOutput(
            prompt_token_ids=[], response_ids=[], loss_masks=[], rollout_logprobs=[], rewards=[],
            is_last_step=[], stop_reasons=[], trajectory_ids=[],
            rollout_metrics=None, trajectory_generation_times=None, rollout_expert_indices=None,
            env_metrics=None,
        )  # fmt: skip
        extras = input_batch["env_extras"] or [{}] * len(prompts)
        trajectories = input_batch["trajectory_ids"] or [None] * len(prompts)
        for answer, extra, trajectory in zip(answers, extras, trajectories, strict=True):
            final = answer.tree.final_row()
            for row in [*(row for row in answer.tree.rows() if row != final), final]:
                is_last = row is final
                output["prompt_token_ids"].append(row.prompt_ids)
                output["response_ids"].append(row.completion_ids)
                output["loss_masks"].append(row.mask)
                output["rollout_logprobs"].append(row.logprobs)
                output["rewards"].append(self.reward(answer, extra) if is_last else 0.0)
                output["is_last_step"].append(is_last)
                output["stop_reasons"].append(answer.finish_reason)
                output["trajectory_ids"].append(trajectory)
        return output
