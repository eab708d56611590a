"""Two steps of TRL's own GRPOTrainer with the example's rollouts. Prints what it saw as JSON."""

import json
import os
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}
import pyarrow
import torch
from datasets import Dataset
from datasets.table import InMemoryTable
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from examples.trainers.trl_rollout import TreeRollouts
from forkjoin import LLM
from forkjoin_server.start.configuration import EMBEDDED_MODEL

ENGINE = {
    "max_model_len": 4096,
    "enforce_eager": True,
    "dtype": "float32",
    "logprobs_mode": "processed_logprobs",
}
PROMPT = [{"role": "user", "content": "a=48*36, b=75*92"}]
seen = {"calls": []}


class Watched(TreeRollouts):
    def __call__(self, prompts, trainer):
        rows = super().__call__(prompts, trainer)
        served = self.llm.apply_model(lambda model: model.state_dict()["model.norm.weight"].clone())[0]
        own = trainer.model.state_dict()["model.norm.weight"]
        seen["calls"].append(
            {
                "step": trainer.state.global_step,
                "prompts": len(prompts),
                "rows": rows,
                "has_weights": torch.allclose(served.float(), own.float()),
                "norm": own.float().norm().item(),
            }
        )
        return rows


def reward(completions, **_):
    """Other for each: where all are worth the same, there is no step to take."""
    return [float(number) for number in range(len(completions))]


rows = pyarrow.Table.from_pylist([{"prompt": PROMPT}] * 4)
trainer = GRPOTrainer(
    model=AutoModelForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32),
    processing_class=AutoTokenizer.from_pretrained(EMBEDDED_MODEL),
    reward_funcs=reward,
    rollout_func=Watched(LLM(**ENGINE)),
    # With a fingerprint, for it hashes its rows else: dill fails at that here.
    train_dataset=Dataset(InMemoryTable(rows), fingerprint="four"),
    args=GRPOConfig(
        output_dir=sys.argv[1],
        use_cpu=True,
        bf16=False,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=600,
        temperature=1.7,
        learning_rate=1e-3,
        beta=0.0,
        max_steps=2,
        save_strategy="no",
        report_to=[],
        logging_steps=1,
        gradient_checkpointing=False,
    ),
)
trainer.train()
seen["log"] = trainer.state.log_history
print("SEEN", json.dumps(seen))
