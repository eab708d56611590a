"""The reference of stitched joins against slower ways that are plainly right."""

from __future__ import annotations

import copy

import pytest
import torch
from tokenizers import Tokenizer
from transformers import DynamicCache

from forkjoin_server.start.configuration import EMBEDDED_MODEL
from tests.engine.stitched_reference import Fork, Run, flatten, greedy, load_model, logprobs, next_logprobs

TOKENIZER = Tokenizer.from_file(str(EMBEDDED_MODEL / "tokenizer.json"))
#: Rounding in fp32: over the whole vocabulary a plain pass and plain decoding of the same tokens are 1.4e-4 apart.
ROUNDING_NATS = 5e-4
GAPS = pytest.mark.parametrize(("fork_gap", "join_gap"), [(1, 1), (2, 2), (1, 3)])


def run(text):
    return Run(TOKENIZER.encode(text).ids)


PROMPT = run("<|user|>a=48*36, b=907*36<|assistant|><think><Parallel><Outlines>1: a 2: b</Outlines>")
SHORT = run("<Thread>\n1:p4q8*x3y6</Thread>")
NESTING = run("<Thread>\n2:p9q0r7*x3y6\ny6A:r7*6=42<Outlines>")
INNER = [[run("<Thread>2.1:42</Thread>")], [run("<Thread>2.2:q0*6=0+4=4</Thread>")]]
CLOSING = run("</Parallel>D2C7\nb:32652</Thread>")
JOINED = run("</Parallel>\na:1728\nb:")
NESTED = [PROMPT, Fork([[SHORT], [NESTING, Fork(INNER), CLOSING]]), JOINED]
FLAT = [PROMPT, Fork([[SHORT], [CLOSING], [NESTING]]), JOINED]
TWICE = [*NESTED, run("<Outlines>"), Fork([[SHORT, run("0")], [CLOSING]]), run("</Parallel></think>")]


@pytest.fixture(scope="module")
def model():
    return load_model()


@torch.inference_mode()
def causal(model, token_ids):
    """A plain forward pass, transformers choosing positions and mask."""
    return model(torch.tensor([token_ids])).logits[0].log_softmax(-1)


@torch.inference_mode()
def decoded(model, context, fork_gap, join_gap, cache=None, position=0):
    """Rows and the largest position, token by token as an engine would: no mask, threads' KV moved by hand."""
    cache = DynamicCache() if cache is None else cache
    rows, largest = [], position
    for part in context:
        if isinstance(part, Run):
            for token in part.token_ids:
                where = torch.tensor([[position]])
                output = model(torch.tensor([[token]]), position_ids=where, past_key_values=cache)
                rows.append(output.logits[0, 0].log_softmax(-1))
                largest, position = max(largest, position), position + 1
        else:
            shared, begin = cache.get_seq_length(), position - 1 + fork_gap
            inherited = copy.deepcopy(cache)
            for thread in part.threads:
                own = copy.deepcopy(inherited)
                thread_rows, end = decoded(model, thread, fork_gap, join_gap, own, begin)
                rows, largest = rows + thread_rows, max(largest, end)
                for behind, moved in zip(cache.layers, own.layers, strict=True):
                    behind.keys = torch.cat([behind.keys, moved.keys[:, :, shared:]], dim=2)
                    behind.values = torch.cat([behind.values, moved.values[:, :, shared:]], dim=2)
            position = largest + join_gap
    return rows, largest


def close(a, b):
    return a.shape == b.shape and (a - b).abs().max() <= ROUNDING_NATS


def of(flat, rows, *paths):
    return torch.cat([rows[flat.slots[p].start : flat.slots[p].stop] for p in paths])


EXAMPLE = [
    Run([10, 11]),
    Fork([[Run([20, 21])], [Run([30]), Fork([[Run([40, 41])], [Run([50])]]), Run([60])]]),
    Run([70]),
]


@pytest.mark.parametrize(
    ("gaps", "positions"),
    [((1, 1), [0, 1, 2, 3, 2, 3, 4, 3, 5, 6]), ((2, 2), [0, 1, 3, 4, 3, 5, 6, 5, 8, 10])],
    ids=["gaps_of_1", "gaps_of_2"],
)
def test_a_nested_fork_is_laid_out_depth_first_at_positions_worked_out_by_hand(gaps, positions):
    flat = flatten(EXAMPLE, fork_gap=gaps[0], join_gap=gaps[1])
    assert flat.token_ids == [10, 11, 20, 21, 30, 40, 41, 50, 60, 70]
    assert flat.position_ids == positions


def test_the_mask_of_a_nested_fork_hides_siblings_until_they_are_joined():
    assert ["".join(".x"[seen] for seen in row) for row in flatten(EXAMPLE).mask.int().tolist()] == [
        "x.........",  # 10
        "xx........",  # 11
        "xxx.......",  # 20, thread 0
        "xxxx......",  # 21
        "xx..x.....",  # 30, thread 1, up to its trigger
        "xx..xx....",  # 40, its thread 0
        "xx..xxx...",  # 41
        "xx..x..x..",  # 50, its thread 1
        "xx..xxxxx.",  # 60, behind the inner join
        "xxxxxxxxxx",  # 70, behind the outer one
    ]


def test_a_position_behind_a_join_comes_from_the_longest_thread_nested_and_unfinished_ones_included():
    threads = [[Run([1, 2]), Fork([[Run([3, 4, 5])], [Run([6])]])], [Run([7, 8, 9])]]
    assert flatten([Run([0]), Fork(threads), Run([10])]).position_ids[-1] == 6


def test_a_run_is_found_by_its_path_and_its_tokens_know_what_predicts_them():
    flat = flatten(EXAMPLE)
    assert flat.slots == {
        (0,): range(2), (1, 0, 0): range(2, 4), (1, 1, 0): range(4, 5), (1, 1, 1, 0, 0): range(5, 7),
        (1, 1, 1, 1, 0): range(7, 8), (1, 1, 2): range(8, 9), (2,): range(9, 10),
    }  # fmt: skip
    assert flat.predictor == [None, 0, 1, 2, 1, 4, 5, 4, None, None]
    given = torch.eye(10)
    first, second = next_logprobs(flat, given, (1, 0, 0))
    assert (int(first.argmax()), int(second.argmax())) == (1, 2)
    assert next_logprobs(flat, given, (2,)) == [None]


@pytest.mark.parametrize(
    ("context", "complaint"),
    [
        ([], "expected parts"),
        ([Run([])], "is empty"),
        ([Run([1]), Fork([])], "is empty"),
        ([Run([1]), Fork([[]])], r"context \(1, 0\): expected parts"),
        ([Fork([[Run([1])]])], "expected a run"),
        ([Run([1]), Fork([[Run([2])]]), Fork([[Run([3])]])], r"fork \(2,\): expected a run"),
    ],
)
def test_a_malformed_context_is_refused(context, complaint):
    with pytest.raises(ValueError, match=complaint):
        flatten(context)


@pytest.mark.parametrize(
    ("line", "paths"),
    [
        ([PROMPT, SHORT], [(0,), (1, 0, 0)]),
        ([PROMPT, NESTING, INNER[0][0]], [(0,), (1, 1, 0), (1, 1, 1, 0, 0)]),
        ([PROMPT, NESTING, INNER[1][0]], [(0,), (1, 1, 0), (1, 1, 1, 1, 0)]),
    ],
    ids=["thread", "first_nested_thread", "second_nested_thread"],
)
def test_a_thread_is_a_plain_request_on_its_linear_context(model, line, paths):
    rows = of(flatten(NESTED), logprobs(model, NESTED), *paths)
    assert close(rows, causal(model, [t for part in line for t in part.token_ids]))


def test_forks_into_one_thread_are_a_plain_request(model):
    context = [PROMPT, Fork([[NESTING, Fork([INNER[1]]), CLOSING]]), JOINED]
    assert close(logprobs(model, context), causal(model, flatten(context).token_ids))


@GAPS
@pytest.mark.parametrize("context", [FLAT, NESTED, TWICE], ids=["flat", "nested", "twice"])
def test_one_masked_pass_equals_decoding_token_by_token_and_moving_kv(model, context, fork_gap, join_gap):
    rows, _ = decoded(model, context, fork_gap, join_gap)
    assert close(logprobs(model, context, fork_gap=fork_gap, join_gap=join_gap), torch.stack(rows))


def test_the_order_of_siblings_changes_nothing_in_threads_nor_behind_the_join(model):
    swapped = [PROMPT, Fork([[NESTING, Fork(INNER[::-1]), CLOSING], [SHORT]]), JOINED]
    one, other = logprobs(model, NESTED), logprobs(model, swapped)
    places = {
        (1, 0, 0): (1, 1, 0), (1, 1, 0): (1, 0, 0), (1, 1, 1, 0, 0): (1, 0, 1, 1, 0),
        (1, 1, 1, 1, 0): (1, 0, 1, 0, 0), (1, 1, 2): (1, 0, 2), (2,): (2,),
    }  # fmt: skip
    for here, there in places.items():
        assert close(of(flatten(NESTED), one, here), of(flatten(swapped), other, there))


def test_the_text_of_a_thread_reaches_what_follows_the_join_and_no_sibling(model):
    changed = [PROMPT, Fork([[Run(SHORT.token_ids[::-1])], *NESTED[1].threads[1:]]), JOINED]
    flat, change = flatten(NESTED), (logprobs(model, NESTED) - logprobs(model, changed)).abs()
    assert (
        of(flat, change, (0,), (1, 1, 0), (1, 1, 1, 0, 0), (1, 1, 1, 1, 0), (1, 1, 2)).max() <= ROUNDING_NATS
    )
    assert of(flat, change, (2,)).max() > 0.5


@pytest.mark.parametrize(
    "wrong",
    [{"positions_wrong": True}, {"mask_wrong": True}, {"positions_wrong": True, "mask_wrong": True}],
    ids=["positions", "mask", "both"],
)
@pytest.mark.parametrize("context", [FLAT, NESTED], ids=["flat", "nested"])
def test_the_controls_differ_behind_the_join_by_more_than_half_a_nat(model, context, wrong):
    change = (logprobs(model, context) - logprobs(model, context, **wrong)).abs()
    assert of(flatten(context), change, (2,)).max() > 0.5


def test_both_wrong_is_a_plain_request_on_all_tokens(model):
    rows = logprobs(model, NESTED, positions_wrong=True, mask_wrong=True)
    assert close(rows, causal(model, flatten(NESTED).token_ids))


@GAPS
def test_greedy_takes_the_likeliest_token_behind_the_join_each_time(model, fork_gap, join_gap):
    written = greedy(model, NESTED, 8, fork_gap=fork_gap, join_gap=join_gap)
    rows, _ = decoded(model, [*NESTED, Run(written)], fork_gap, join_gap)
    assert [int(row.argmax()) for row in rows[-9:-1]] == written


def test_greedy_stops_behind_end_of_sequence_and_not_at_a_fork(model):
    written = greedy(model, NESTED, 4)
    assert greedy(model, NESTED, 4, eos_token_id=written[0]) == written[:1]
    with pytest.raises(ValueError, match="expected the root to end in a run"):
        greedy(model, NESTED[:-1], 4)
