"""The benchmarks' simulator beside the real scheduler: each step computes as many tokens."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from forkjoin_bench.inputs.script import BLOCK_END, JOIN_TEXT, THREAD_END, header, joined_header
from forkjoin_bench.simulator.engine import Engine
from forkjoin_bench.simulator.gates import FamilyAware, Greedy
from forkjoin_bench.simulator.replica.replica import Replica
from forkjoin_bench.simulator.workload import Fork, Request, Spoken
from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.joins.kinds import make_join
from tests.engine.renamed import dialect_for

pytestmark = pytest.mark.engine


@pytest.fixture
def drive(model_of):
    """A scheduler driven by hand, and the tokens of each of its steps."""
    from tests.engine.by_hand import ByHand

    def make(dialect):
        hand, steps = ByHand(dialect, model_of(dialect.name)), []
        begin = hand.begin

        def recorded(output):
            if output.total_num_scheduled_tokens:
                steps.append(output.total_num_scheduled_tokens)
            return begin(output)

        hand.begin = recorded
        return hand, steps

    return make


def simulated(requests, engine):
    steps = []

    def cost(load):
        steps.append(load.num_tokens)
        return 1.0

    replica = Replica(replace(engine, cost=cost))
    for request in requests:
        replica.submit(request)
    replica.run()
    return steps


def alone(request, spoken):
    engine = Engine(num_blocks=199, block_size=16, max_num_seqs=8, spoken=spoken, gate=Greedy)
    return simulated([request], engine)


@pytest.mark.parametrize("kind", ["reprefill", "stitch"])
def test_stages(drive, kind):
    shown = load("medverse").model_dump()
    shown["thread"]["between"] = ""
    shown["join"] = make_join(**shown["join"] | {"kind": kind}).model_dump()
    dialect = Dialect.model_validate(shown)
    hand, steps = drive(dialect)
    num = lambda text: len(hand.tokenizer.encode(text))  # noqa: E731
    plan = "".join(
        f"Transient Step {n}: a; Dependency: [{depends}]\n"
        for n, depends in ((1, ""), (2, ""), (3, "1"), (4, "1"))
    )
    plan = f"<Plan>\n{plan}</Plan>"
    texts = ["bb</Step>", "bbbbb</Step>", "bbb</Step>", "b</Step>"]
    hand.add("r", "q" * 40)
    hand.say("r", plan)
    for n, text in enumerate(texts):
        hand.say(f"r#{n}", text)
    hand.steps_until(lambda: len(hand.events("joined")) == 2 and hand.decodes("r"))
    hand.say("r", "<|end|>")
    hand.finish()

    (first, second, third, fourth) = ((num(text),) for text in texts)
    body = (num(plan), Fork((first, second)), 0, Fork((third, fourth)), 2)
    header = dialect.thread.header.replace("{n}", "1").replace("{title}", "a")
    joined = dialect.thread.joined_header.replace("{n}", "1").replace("{title}", "a")
    spoken = Spoken(
        num(header),
        num(joined),
        num(dialect.join.text),
        1,
        kind == "stitch",
        num(dialect.join.between_stages),
    )
    assert alone(Request(num("q" * 40), body), spoken) == steps


def test_rounds(drive):
    dialect = dialect_for("pacore")
    asked = dialect.join.model_dump() | {"prompt": ":{prompt}{references}"}  # words first, as published
    hand, steps = drive(dialect.model_copy(update={"join": make_join(**asked)}))
    num = lambda text: len(hand.tokenizer.encode(text))  # noqa: E731
    prompt, texts = f"<|user|>{'q' * 40}<|assistant|>", ["b", "bbbb", "bb", "bbb", "b"]
    hand.add("r", prompt, max_tokens=10)
    for n, text in enumerate(texts):
        hand.say(f"r#{n}", f"{text}<|end|>")
    hand.finish()

    lengths = [(num(text) + 1,) for text in texts]
    body = (0, Fork(tuple(lengths[:3])), 0, Fork(tuple(lengths[3:])), 10)
    spoken = Spoken(header=0, joined_header=num(" 1="), join=num(":"), asks_again=True)
    assert alone(Request(num(prompt), body), spoken) == steps


@pytest.mark.parametrize("admission", ["greedy", "family"])
def test_families_that_lose_their_blocks_to_each_other(admission):
    from tests.engine.fed import BLOCK_SIZE, Scripted

    fed = Scripted(num_blocks=140, max_num_seqs=24, admission=admission, join_ahead_tokens=128)
    num_tokens = lambda text: len(fed.scheduler._core.tokenizer.encode(text))  # noqa: E731
    rng, requests = random.Random(2), []
    for i in range(24):
        before = rng.randint(4, 30)
        fork = fed.author.fork([rng.randint(16, 96) for _ in range(rng.randint(2, 6))])
        fed.add(f"f{i}", before, fork, 12, prompt=fed.author.text(120))
        threads = tuple((num_tokens(thread.body[0] + THREAD_END),) for thread in fork.threads)
        behind = num_tokens(BLOCK_END) + 12 + 1  # and the end of sequence
        requests.append(Request(120, (before + num_tokens(fork.outline), Fork(threads), behind)))
    steps = []
    while fed.scheduler.requests:
        if num_computed := fed.step().total_num_scheduled_tokens:
            steps.append(num_computed)

    spoken = Spoken(*map(num_tokens, (header("1"), joined_header("1", first=False), JOIN_TEXT)))
    engine = Engine(
        num_blocks=139,  # one is vLLM's null block
        block_size=BLOCK_SIZE,
        max_num_seqs=24,
        max_batched_tokens=2048,
        spoken=spoken,
        gate={"greedy": Greedy, "family": FamilyAware}[admission],
    )
    assert simulated(requests, engine) == steps
