"""A trainer sends weights by vLLM's own routes, in the middle of an answer that forks."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save_file

from forkjoin import Tree
from forkjoin.tree.segment import ROOT
from tests.engine.stitched_reference import load_model
from tests.engine.tree_reference import deltas
from tests.server import file_transfer_in_engine, unhurried
from tests.server.conftest import start_server

pytestmark = pytest.mark.server

#: What the server computes in its own way moves a log-probability by less, and other weights by far more.
NATS, OTHER_WEIGHTS_NATS = 1e-4, 0.01
LIMIT_S = 300
NORM = "model.layers.0.input_layernorm.weight"
#: What a trainer multiplies the weights there by, and has them be again before the next test.
TRAINED, AS_THEY_WERE = 2.0, 1.0
BODY = {
    "model": "abacus",
    "messages": [{"role": "user", "content": "a=482*731, b=9047*36"}],
    "temperature": 1.0,
    "seed": 4,
    "max_tokens": 600,
    "stream": True,
    "stream_options": {"include_threads": True},
    "forkjoin": {"return_tree": True},
}
SHORT = {"max_tokens": 60}


class Server:
    """A server, and the weights that it was sent, by their version."""

    def __init__(self, address: str, folder: Path) -> None:
        self._address, self._folder = address, folder
        self._models = {AS_THEY_WERE: (model := load_model()), TRAINED: deepcopy(model)}
        with torch.no_grad():
            self._models[TRAINED].get_parameter(NORM).mul_(TRAINED)
        self._factors = {"default": AS_THEY_WERE}
        self.post("/init_weight_transfer_engine", init_info={})

    def post(self, path: str, /, params: dict[str, str] | None = None, **body: Any) -> None:
        response = httpx.post(self._address + path, params=params, json=body, timeout=LIMIT_S)
        assert response.status_code == 200, response.text

    def version(self) -> str:
        """Of the weights that it has now."""
        said: str = httpx.get(f"{self._address}/weight_info", timeout=LIMIT_S).json()["weight_version"]
        return said

    def update(self, factor: float = TRAINED, **pause: str) -> None:
        """What a trainer does: pause, send, give them a name, resume."""
        version = f"step-{len(self._factors)}"
        self._factors[version] = factor
        path = self._folder / f"{version}.safetensors"
        save_file({NORM: self._models[factor].get_parameter(NORM).detach()}, path)
        self.post("/pause", pause)
        try:
            self.post("/start_weight_update")
            self.post("/update_weights", update_info={"path": str(path)})
            self.post("/finish_weight_update", weight_version=version)
        finally:
            self.post("/resume")

    def answer(self, once_forked: Callable[[], None] | None = None) -> Tree:
        """The tree of an answer; ``once_forked`` is called when both threads have written some."""
        written = {0: "", 1: ""}
        body = BODY | (SHORT if once_forked is None else unhurried.taking(0.02))
        url = f"{self._address}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=LIMIT_S) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                for choice in json.loads(line.removeprefix("data: "))["choices"]:
                    if "tree" in choice:
                        return Tree.from_dict(choice["tree"])
                    for entry in choice["delta"].get("threads", ()):
                        written[entry["index"]] += entry.get("content") or ""
                if once_forked is not None and min(len(text) for text in written.values()) > 20:
                    once_forked()
                    once_forked = None
        raise AssertionError("the answer ended without a tree")

    def check(self, tree: Tree, *versions: str) -> None:
        """Each token is what the weights of its segment make of the tree, and not what others make of it."""
        sampled = [s for s in tree.segments if s.weight_version is not None]
        assert {s.weight_version for s in sampled} == set(versions)
        layout = tree.layout
        of = [layout.segment_of[n] for n, is_sampled in enumerate(layout.sampled) if is_sampled]
        for version in versions:
            own = torch.tensor([tree.segments[n].weight_version == version for n in of])
            for factor, model in self._models.items():
                most = deltas(model, tree)[own].max()
                assert most <= NATS if factor == self._factors[version] else most > OTHER_WEIGHTS_NATS


@pytest.fixture(scope="module")
def only_server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    flags = ("--dtype", "float32", "--max-tree-tokens", "20000", "--on-new-weights", "recompute")
    flags += (*file_transfer_in_engine.FLAGS, *unhurried.FLAGS)
    env = {"VLLM_SERVER_DEV_MODE": "1"} | unhurried.ENV
    with start_server(folder / "log", *flags, env=env) as (address, _):
        yield Server(address, folder)


@pytest.fixture
def server(only_server):
    """With the weights that the model came with."""
    only_server.update(AS_THEY_WERE, mode="abort")
    return only_server


@pytest.mark.parametrize("clear_cache", ["true", "false"])
def test_threads_go_on_with_weights_that_come_while_they_write(server, clear_cache):
    before = server.version()
    tree = server.answer(lambda: server.update(mode="keep", clear_cache=clear_cache))
    after = server.version()
    assert after != before
    server.check(tree, before, after)
    assert not any(segment.has_old_kv for segment in tree.segments), "recomputed, by pause or by policy"
    assert {s.weight_version for s in tree.segments if s.thread != ROOT} == {before, after}
    server.check(server.answer(), after)


def test_an_answer_that_a_trainer_waits_for_has_one_kind_of_weights(server):
    before = server.version()
    tree = server.answer(lambda: server.update(mode="wait"))
    server.check(tree, before)
    server.check(server.answer(), server.version())


def test_an_answer_that_a_trainer_aborts_has_its_tree_so_far(server):
    before = server.version()
    tree = server.answer(lambda: server.update(mode="abort"))
    server.check(tree, before)
    assert tree.segments[0].finish_reason == "abort"
    server.check(server.answer(), server.version())
