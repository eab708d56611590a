from __future__ import annotations

import random
from dataclasses import replace
from itertools import islice

import pytest
import torch

from training import tokenizer as tok
from training.data import Sampler
from training.decode import Decoder
from training.export import export
from training.model import Llama, ModelConfig
from training.train import Recipe, Trainer, batch_loss, learning_rate, save, start_from

RECIPE = Recipe(steps=3, tokens_per_batch=600, warmup_steps=1)
TINY = ModelConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8, intermediate_size=24
)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Llama(TINY).eval()


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path):
    straight, first, resumed = (Trainer(RECIPE, TINY) for _ in range(3))
    losses = [straight.train_step() for _ in range(3)]
    again = [first.train_step()]
    save(first, tmp_path)
    resumed.load(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    again += [resumed.train_step() for _ in range(2)]
    assert again == losses
    for name, weight in straight.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_training_moves_every_weight():
    trainer = Trainer(RECIPE, TINY)
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    trainer.train_step()
    assert [n for n, p in trainer.model.named_parameters() if torch.equal(p, before[n])] == []


def test_a_checkpoint_of_another_recipe_is_refused_saying_what_differs():
    state = Trainer(RECIPE, TINY).state()
    with pytest.raises(ValueError, match=r"recipe.*'seed': 7"):
        Trainer(replace(RECIPE, seed=7), TINY).load(state)


def test_the_rate_warms_up_holds_and_falls_to_nearly_zero():
    recipe = Recipe(steps=100, lr=1.0, warmup_steps=10, decay_from=0.5)
    rates = [learning_rate(recipe, s) for s in range(100)]
    assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert set(rates[10:50]) == {1.0}
    assert rates[50:] == pytest.approx([1 - i / 50 for i in range(50)])


def test_the_data_is_the_same_for_the_same_seed_and_fits_the_budget():
    first, second = (list(islice(Sampler(random.Random(3), 2000, 32).batches(), 3)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.inputs, other.inputs)
        assert len(one.inputs) == 1 or one.inputs.numel() <= 2000


def test_a_thread_can_not_take_its_letter_from_its_number():
    sampler = Sampler(random.Random(3), tokens_per_batch=300)
    sheets = [s for s in (sampler.worksheet() for _ in range(500)) if s.num_forks]
    first = [s.levels[0][0].letter for s in sheets]
    assert set(first) == set("abcdefghi")
    assert 0.3 < first.count("a") / len(first) < 0.6


def test_the_prompt_and_the_padding_are_no_targets():
    sampler = Sampler(random.Random(4), 2000, 16)
    batch = next(sampler.batches())
    assistant = tok.token_id(sampler.tokenizer, tok.ASSISTANT)
    for inputs, weights in zip(batch.inputs.tolist(), batch.weights, strict=True):
        assert not weights[: inputs.index(assistant)].any()
        assert weights[inputs.index(assistant)] > 0
    assert not batch.weights[(batch.targets == 0) & (batch.inputs == 0)].any()


def test_the_loss_of_a_position_without_weight_does_not_count(model):
    batch = next(Sampler(random.Random(5), 600, 8).batches())
    targets = torch.where(batch.weights > 0, batch.targets, 1)
    assert batch_loss(model, replace(batch, targets=targets)) == batch_loss(model, batch)


def test_transformers_loads_the_export_and_computes_the_same_logits(model, tmp_path):
    from transformers import LlamaForCausalLM

    export(model, tmp_path, torch.float32)
    theirs, info = LlamaForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values())
    ids = torch.randint(0, TINY.vocab_size, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-3, rtol=0)


def test_batched_decoding_takes_the_likeliest_token_of_the_plain_forward_pass(model):
    prompts = [[1, 2, 3], [4, 5, 6, 7, 8, 9]]
    outputs = Decoder(model).generate(prompts, frozenset(), max_tokens=5)
    assert [len(o) for o in outputs] == [5, 5]
    for prompt, output in zip(prompts, outputs, strict=True):
        with torch.no_grad():
            best = model(torch.tensor([prompt + output])).argmax(-1)[0]
        assert best[len(prompt) - 1 : -1].tolist() == output


def test_decoding_ends_behind_a_stop_token(model):
    [free] = Decoder(model).generate([[1, 2, 3]], frozenset(), max_tokens=6)
    [stopped] = Decoder(model).generate([[1, 2, 3]], frozenset({free[2]}), max_tokens=6)
    assert stopped == free[: free.index(free[2]) + 1]


def test_a_run_begins_with_the_weights_that_it_starts_from_and_refuses_those_of_another_size(model, tmp_path):
    export(model, tmp_path, torch.float32)
    trainer = Trainer(RECIPE, TINY)
    start_from(trainer, tmp_path)
    assert all(torch.equal(w, model.state_dict()[n]) for n, w in trainer.model.state_dict().items())
    with pytest.raises(RuntimeError, match=r"layers\.1"):
        start_from(Trainer(RECIPE, replace(TINY, num_hidden_layers=1)), tmp_path)
