"""The parts of ``examples/rl_on_trees`` that need no engine: what an answer is worth, and the steps on it."""

from __future__ import annotations

import random
from copy import deepcopy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.rl_on_trees.learner import (
    Example,
    batches,
    counted_logprobs,
    imitate,
    policy_gradient,
    take_step,
)
from examples.rl_on_trees.worksheets import critical_path, draw_worksheet, reward, without_fork
from forkjoin import Row, Segment, Tree
from forkjoin.tree.segment import ROOT
from training.task import check


def segment(thread, num_injected, num_sampled, forked_by=None):
    ids = [7] * (num_injected + num_sampled)
    return Segment(thread, ids, num_injected, position=0, forked_by=forked_by)


TREES = {
    "no fork": ([segment(ROOT, 5, 40)], 40),
    "one fork": (
        [segment(ROOT, 5, 10), segment(0, 2, 30, 0), segment(1, 2, 20, 0), segment(ROOT, 55, 7)],
        10 + 30 + 7,
    ),
    "two forks": (
        [
            segment(ROOT, 5, 10),
            segment(0, 2, 30, 0),
            segment(ROOT, 32, 7),
            segment(1, 2, 4, 2),
            segment(2, 2, 9, 2),
            segment(ROOT, 20, 3),
        ],
        10 + 30 + 7 + 9 + 3,
    ),
    "a thread that forks": (
        [
            segment(ROOT, 5, 10),
            segment(0, 2, 6, 0),
            segment(1, 2, 20, 0),
            segment(2, 2, 8, 1),
            segment(3, 2, 11, 1),
            segment(0, 20, 5),
            segment(ROOT, 60, 1),
        ],
        10 + (6 + 11 + 5) + 1,
    ),
    "cut in its threads": ([segment(ROOT, 5, 10), segment(0, 2, 30, 0), segment(1, 2, 33, 0)], 10 + 33),
}


@pytest.mark.parametrize("name", TREES)
def test_the_critical_path_is_the_longest_of_sampled_tokens(name):
    segments, num_steps = TREES[name]
    assert critical_path(Tree(segments, answer_ids=[])) == num_steps


def test_of_two_right_answers_the_shorter_path_earns_more_and_a_wrong_one_earns_nothing():
    def earned(*, is_right, num_steps):
        return reward(is_right=is_right, num_steps=num_steps, without_fork_steps=200, price=0.5)

    assert earned(is_right=True, num_steps=200) == 0.5
    assert earned(is_right=True, num_steps=100) == 0.75
    assert earned(is_right=False, num_steps=1) == 0


@pytest.mark.parametrize("seed", range(5))
def test_a_written_answer_without_forks_is_right_and_its_worksheet_on_the_asked_side(seed):
    sheet = draw_worksheet(random.Random(seed), held_out=bool(seed % 2))
    assert sheet.held_out == bool(seed % 2)
    verdict = check(sheet, without_fork(sheet))
    assert (verdict.right, verdict.num_forks, verdict.well_formed) == (True, 0, True)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, **sizes)).eval()


def example(prompt, completion, mask, weight=1.0):
    return Example(Row(ROOT, prompt, completion, mask, [-2.0 * m for m in mask], is_exact=True), weight)


EXAMPLES = [
    example([1, 2, 3], [4, 5, 6, 7], [1, 0, 0, 1], 0.5),
    example([8], [9, 10], [1, 1], -1.0),
    example([11, 12], [13, 14, 15, 16, 17, 18, 19], [0, 1, 1, 1, 1, 1, 1]),
]


def test_padded_rows_have_the_logprobs_of_each_alone_and_only_of_tokens_that_count(model):
    together, sampled, weights = counted_logprobs(model, EXAMPLES)
    alone = []
    for e in EXAMPLES:
        ids = torch.tensor([e.row.prompt_ids + e.row.completion_ids])
        logprobs = model(input_ids=ids).logits[0].log_softmax(-1)
        start = len(e.row.prompt_ids)
        alone += [
            logprobs[start + i - 1, ids[0, start + i]].item() for i, counts in enumerate(e.row.mask) if counts
        ]
    assert together.tolist() == pytest.approx(alone, abs=1e-5)
    assert sampled.tolist() == [-2.0] * 10
    assert weights.tolist() == [0.5] * 2 + [-1.0] * 2 + [1.0] * 6


def test_batches_have_every_example_once(monkeypatch):
    monkeypatch.setattr("examples.rl_on_trees.learner.TOKENS_PER_PASS", 14)
    found = list(batches(EXAMPLES))
    assert [len(batch) for batch in found] == [1, 2]
    assert sorted(id(e) for batch in found for e in batch) == sorted(map(id, EXAMPLES))


@pytest.mark.parametrize(
    ("loss", "weight", "sign"), [(imitate, 1, 1), (policy_gradient, 1, 1), (policy_gradient, -1, -1)]
)
def test_a_step_moves_a_row_as_its_weight_says(model, loss, weight, sign):
    own = deepcopy(model)
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3, weight_decay=0)
    row = EXAMPLES[0].row
    before = counted_logprobs(own, [Example(row)])[0].detach()
    on_policy = Row(
        row.thread,
        row.prompt_ids,
        row.completion_ids,
        row.mask,
        [before[0].item(), 0.0, 0.0, before[1].item()],
        True,
    )
    difference = take_step(own, optimizer, [Example(on_policy, weight)], loss)
    after = counted_logprobs(own, [Example(row)])[0]
    assert sign * (after - before).sum() > 0
    assert difference < 1e-5


def test_a_token_that_has_moved_far_gives_no_more_gradient(model):
    own = deepcopy(model)
    optimizer = torch.optim.AdamW(own.parameters(), lr=1e-3, weight_decay=0)
    row = EXAMPLES[1].row
    moved = Row(row.thread, row.prompt_ids, row.completion_ids, row.mask, [-9.0, -9.0], is_exact=True)
    take_step(own, optimizer, [Example(moved, weight=1.0)], policy_gradient)
    for name, weights in own.state_dict().items():
        assert torch.equal(weights, model.state_dict()[name]), name
