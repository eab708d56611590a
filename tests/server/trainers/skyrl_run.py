"""The example's generator, judged by SkyRL's own check of what a generator returns. Prints that as JSON."""

import asyncio
import json
import sys
import typing
from dataclasses import asdict

import typing_extensions

typing.TypedDict = typing_extensions.TypedDict  # SkyRL is for Python 3.12, where pydantic takes either
from skyrl.train.generators.base import GeneratorInput, TrajectoryID  # noqa: E402
from skyrl.train.utils.trainer_utils import validate_generator_output  # noqa: E402

from examples.trainers.skyrl_generator import ForkJoinGenerator  # noqa: E402

PRODUCTS = ({"a": 482 * 731, "b": 9047 * 36}, {"a": 56})
PROMPTS = ("a=482*731, b=9047*36", "a=7*8")


def reward(answer, extra):
    return float(all(f"{letter}={product}" in answer.content for letter, product in extra.items()))


generator = ForkJoinGenerator(sys.argv[1], reward)
asked = GeneratorInput(
    prompts=[[{"role": "user", "content": prompt}] for prompt in PROMPTS],
    env_classes=["multiply"] * 2,
    env_extras=list(PRODUCTS),
    sampling_params={"temperature": 0.0, "max_tokens": 900, "logprobs": 1},
    trajectory_ids=[TrajectoryID("of two", 0), TrajectoryID("of one", 0)],
    batch_metadata=None,
)
output = asyncio.run(generator.generate(asked))
validate_generator_output(2, output, step_wise=True)
print("SEEN", json.dumps(output, default=asdict))
