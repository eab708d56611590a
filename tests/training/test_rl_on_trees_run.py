"""The order of ``examples/rl_on_trees``: what is measured, and from which weights each learning begins."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

FOLDER = Path(__file__).parents[2] / "examples/rl_on_trees"


@dataclass(frozen=True)
class Seen:
    """In the place of a measurement, and of a round: the one weight of the model."""

    weight: float


class OneWeight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def add(self, amount: float) -> None:
        with torch.no_grad():
            self.weight += amount


class Actor:
    """Samples with the weight that it was given last."""

    weight = 0.0

    def take_weights(self, model: OneWeight, version: str) -> None:
        self.weight = model.weight.item()


@pytest.fixture
def program(monkeypatch) -> ModuleType:
    """The program without an engine. Each start policy adds 1 to the weight, each learning 10 and its price."""
    engine = SimpleNamespace(Actor=Actor, Answer=None, Measured=None, summary=None)
    monkeypatch.setitem(sys.modules, "actor", engine)
    for name in ("learner", "worksheets"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location("rl_on_trees_without_engine", FOLDER / "rl_on_trees.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)

    def make_start_policy(actor, model, recipe):
        model.add(1.0)
        actor.take_weights(model, "start")

    def reinforce(actor, model, recipe):
        yield Seen(actor.weight)
        model.add(10 + recipe.price)
        actor.take_weights(model, "round-1")

    monkeypatch.setattr(module, "load_model", OneWeight)
    monkeypatch.setattr(module, "make_start_policy", make_start_policy)
    monkeypatch.setattr(module, "reinforce", reinforce)
    monkeypatch.setattr(module, "measure", lambda actor, recipe: Seen(actor.weight))
    yield module
    for name in ("learner", "worksheets"):
        sys.modules.pop(name, None)


def test_the_control_learns_without_a_price_from_the_same_start_policy(program):
    said = []
    result = program.run(program.Recipe(price=0.5), with_control=True, say=said.append)
    weights = {name: seen["weight"] for name, seen in result["measured"].items()}
    assert weights == {"embedded model": 0, "start policy": 1, "after learning": 11.5, "control": 11}
    assert [seen["weight"] for of_name in result["rounds"].values() for seen in of_name] == [1, 1]
    assert any(line.startswith("control: ") for line in said)


def test_a_run_has_no_control_unless_it_is_asked_for(program):
    assert list(program.run(program.Recipe(), say=str)["measured"]) == [
        "embedded model",
        "start policy",
        "after learning",
    ]
