"""TRL: a ``rollout_func`` for ``GRPOTrainer`` whose answers fork.

    llm = LLM(max_model_len=4096, logprobs_mode="processed_logprobs")
    trainer = GRPOTrainer(model=..., rollout_func=TreeRollouts(llm), ...)

TRL takes one row for each prompt, so an answer is its transcript: the threads one after the other. Tokens
that were not sampled (headers, joins) have 0 in ``env_mask``; TRL leaves them out of the loss.

Without ``use_vllm``, TRL does not correct for the difference between sampling and the transcript: it takes
its own pass over the transcript as the policy that sampled. It reads ``logprobs`` only for
``off_policy_mask_threshold``, and divides logits by the temperature: so ``logprobs`` are processed ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trl import GRPOTrainer
from vllm import SamplingParams

from forkjoin import LLM


class TreeRollouts:
    """Answers prompts with an engine in the trainer's process, which has the trainer's weights.

    ``forkjoin``: what the requests ask of fork/join, as in the HTTP API.
    """

    def __init__(self, llm: LLM, forkjoin: Mapping[str, Any] | None = None) -> None:
        self.llm, self.forkjoin = llm, forkjoin
        self._step = 0  # the engine has started with the weights of this one

    def __call__(self, prompts: list[Any], trainer: GRPOTrainer) -> dict[str, list[Any]]:
        """One completion for each of ``prompts``: the trainer gives each as often as it wants answers."""
        self._take_weights(trainer)
        params = SamplingParams(
            temperature=trainer.temperature,
            top_p=trainer.top_p,
            top_k=trainer.top_k,
            repetition_penalty=trainer.repetition_penalty,
            max_tokens=trainer.max_completion_length,
        )
        run = self.llm.generate if isinstance(prompts[0], str) else self.llm.chat
        outputs = run(prompts, params, forkjoin=self.forkjoin, use_tqdm=False)
        rows = [output.outputs[0].tree.transcript() for output in outputs]
        return {
            "prompt_ids": [row.prompt_ids for row in rows],
            "completion_ids": [row.completion_ids for row in rows],
            "logprobs": [row.logprobs for row in rows],
            "env_mask": [row.mask for row in rows],
        }

    def _take_weights(self, trainer: GRPOTrainer) -> None:
        if trainer.state.global_step == self._step:
            return
        weights = trainer.accelerator.unwrap_model(trainer.model).state_dict()
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights.items()})
        self.llm.reset_prefix_cache()  # the KV in it is of the old weights
        self._step = trainer.state.global_step
