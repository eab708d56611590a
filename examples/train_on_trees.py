"""Train on trees: sample answers that fork, keep the right ones, and take steps on their sampled tokens.

    make install
    .venv/bin/python examples/train_on_trees.py

Plain PyTorch, without a trainer. The answers are drawn at a temperature at which the model errs. Each tree is
one forward pass, with its positions and its mask. The loss counts the tokens that the model sampled, and none
that were injected. At last, new answers are drawn with the new weights.
"""

import os

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; vLLM takes nearly all memory otherwise
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # the engine in this process
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import re

import torch
from transformers import LlamaForCausalLM
from vllm import SamplingParams

from forkjoin import LLM, Tree
from forkjoin_server.start.configuration import EMBEDDED_MODEL

PROMPT, RIGHT = "a=48*36, b=75*92", {"a": "1728", "b": "6900"}
TEMPERATURE, NUM_ANSWERS, NUM_STEPS = 1.9, 32, 4


def sample(llm: LLM, seed: int) -> tuple[list[Tree], list[Tree]]:
    """The trees of new answers, and those of them whose answer is right."""
    params = SamplingParams(temperature=TEMPERATURE, seed=seed, n=NUM_ANSWERS, max_tokens=600)
    (output,) = llm.chat([[{"role": "user", "content": PROMPT}]], params, use_tqdm=False)
    answers = output.outputs
    return [a.tree for a in answers], [a.tree for a in answers if is_right(a.text)]


def is_right(text: str) -> bool:
    """Whether an answer states each product after its reasoning, and nothing else."""
    return dict(re.findall(r"\b([a-z])=(\d+)\b", text.rpartition("</think>")[2])) == RIGHT


def nats_per_token(model: LlamaForCausalLM, tree: Tree) -> torch.Tensor:
    """How unlikely the sampled tokens of a tree are, at the temperature: one forward pass."""
    layout = tree.layout
    unseen = ~torch.tensor(tree.attention_mask())
    mask = torch.zeros(unseen.shape).masked_fill(unseen, torch.finfo(torch.float32).min)
    logits = model(
        input_ids=torch.tensor([layout.token_ids]),
        position_ids=torch.tensor([layout.positions]),
        attention_mask=mask[None, None],  # transformers takes a mask of four dimensions as it is
        use_cache=False,
    ).logits[0]
    places = [place for place, is_sampled in enumerate(layout.sampled) if is_sampled]
    predicted = logits[[layout.predictors[place] for place in places]] / TEMPERATURE
    return torch.nn.functional.cross_entropy(
        predicted, torch.tensor([layout.token_ids[place] for place in places])
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    llm = LLM(max_model_len=4096, enforce_eager=True, dtype="float32")
    model = LlamaForCausalLM.from_pretrained(EMBEDDED_MODEL, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0)

    trees, right = sample(llm, seed=1)
    num_threads = sum(segment.forked_by is not None for tree in right for segment in tree.segments)
    print(f"before: {len(right)} of {len(trees)} right, with {num_threads} threads")
    for step in range(NUM_STEPS + 1):
        loss = 0.0
        for tree in right:  # a tree at a time: the mask of each is its own
            of_tree = nats_per_token(model, tree) / len(right)
            of_tree.backward()
            loss += of_tree.item()
        print(f"step {step}: loss {loss:.4f}")
        if step < NUM_STEPS:
            optimizer.step()
        optimizer.zero_grad()

    llm.collective_rpc("reload_weights", kwargs={"weights_iterator": model.state_dict().items()})
    llm.reset_prefix_cache()  # the KV in it is of the old weights
    trees, right = sample(llm, seed=1000)
    print(f"after: {len(right)} of {len(trees)} right")
