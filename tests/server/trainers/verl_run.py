"""The example's agent loop, made as verl's workers make it. Prints the fields that its trainer reads, as JSON."""

import asyncio
import json
import sys

import hydra
from omegaconf import OmegaConf
from transformers import AutoTokenizer
from verl.experimental.agent_loop.agent_loop import AgentLoopOutput, DictConfigWrap

from forkjoin_server.start.configuration import EMBEDDED_MODEL

tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


async def run(in_one_row: bool, prompt_length: int = 128) -> list[dict]:
    rollout = {"prompt_length": prompt_length, "response_length": 1200}
    config = OmegaConf.create({"actor_rollout_ref": {"rollout": rollout}, "data": {}})
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
    seen = {"rows": await run(False), "one": await run(True)}
    try:
        await run(False, prompt_length=30)  # too short for what a thread reads
    except ValueError as error:
        seen["too_long"] = str(error)
    print("SEEN", json.dumps(seen))


asyncio.run(main())
