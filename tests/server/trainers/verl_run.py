"""The example's agent loop, made as verl's workers make it. Prints the fields that its trainer reads, as JSON."""

import asyncio
import json
import sys

import hydra
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap

from forkjoin_server.start.configuration import EMBEDDED_MODEL

config = OmegaConf.create(
    {"actor_rollout_ref": {"rollout": {"prompt_length": 64, "response_length": 900}}, "data": {}}
)
tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


async def run(in_one_row: bool) -> list[dict]:
    loop = hydra.utils.instantiate(
        config={
            "_target_": "examples.trainers.verl_agent_loop.ForkJoinAgentLoop",
            "address": sys.argv[1],
            "in_one_row": in_one_row,
        },
        trainer_config=DictConfigWrap(config=config),
        server_manager=None,
        tokenizer=tokenizer,
        processor=None,
        dataset_cls=None,
        data_config=DictConfigWrap(config.data),
    )
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "repetition_penalty": 1.0, "logprobs": True}
    output = await loop.run(sampling, raw_prompt=[{"role": "user", "content": "a=482*731, b=9047*36"}])
    outputs = output if isinstance(output, list) else [output]
    assert all(isinstance(output, AgentLoopOutput) for output in outputs)
    return [
        {name: value.tolist() if hasattr(value, "tolist") else value for name, value in o.as_dict().items()}
        for o in outputs
    ]


async def main() -> None:
    print("SEEN", json.dumps({"rows": await run(False), "one": await run(True)}))


asyncio.run(main())
