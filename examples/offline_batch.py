"""Offline batch: vLLM's own `LLM`, without a server, forks and joins.

    make install
    .venv/bin/python examples/offline_batch.py

The scheduler is vLLM's option `scheduler_cls`. `additional_config` says how the model was trained to fork.
All prompts run together, each with its own threads. An output is the linear transcript, with the threads in
outline order.
"""

import os

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM takes nearly all memory otherwise
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

from vllm import LLM, SamplingParams

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.settings import Settings
from forkjoin_server.start.configuration import EMBEDDED_MODEL

PROMPTS = ["a=482*731, b=9047*36", "a=7*8, b=264*905", "a=613*52, b=4821*37, c=905*264"]

if __name__ == "__main__":
    settings = Settings.of(load("threadweaver"), {})
    llm = LLM(
        model=str(EMBEDDED_MODEL),
        max_model_len=4096,
        enforce_eager=True,
        scheduler_cls="forkjoin_scheduler.vllm_seam.scheduler.ForkJoinScheduler",
        additional_config={"forkjoin": settings.model_dump(mode="json")},
    )
    conversations = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    for output in llm.chat(conversations, SamplingParams(temperature=0, max_tokens=3000), use_tqdm=False):
        text = output.outputs[0].text
        print("---", f"{text.count('<Thread>')} threads, {len(output.outputs[0].token_ids)} tokens")
        print(text.rpartition("</think>\n")[2])
