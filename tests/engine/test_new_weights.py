"""Weights change in the middle of families: no family is lost, and trees say which weights sampled what."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch

pytestmark = pytest.mark.engine

NATS = 1e-4
#: What old KV moves a log-probability by at least, somewhere.
OLD_KV_NATS = 0.01
OLD, NEW = "default", "step-2"
NORM = "model.layers.0.input_layernorm.weight"


def scaled(factor):
    """What gives a worker other weights."""

    def load(worker):
        parameters = dict(worker.model_runner.model.named_parameters())
        with torch.no_grad():
            parameters[NORM].mul_(factor)

    return load


@pytest.fixture(scope="module")
def models():
    """The model with each of the weights."""
    from tests.engine.stitched_reference import load_model

    old = load_model()
    new = deepcopy(old)  # the loaded one is everybody's
    with torch.no_grad():
        new.get_parameter(NORM).mul_(2.0)
    return {OLD: old, NEW: new}


class Trainer:
    """Changes the weights of an engine as a trainer does: by vLLM's own calls."""

    def __init__(self, engine):
        self.engine, self.core = engine, engine.core.engine_core.engine_core
        self.has_scaled = False

    def update(self, *, mode="keep", clear_cache=False):
        self.core.pause_scheduler(mode, clear_cache)
        assert not self.engine.scheduler.has_unfinished_requests()
        self.core.collective_rpc(scaled(2.0))
        self.has_scaled = True
        self.core.set_weight_version(NEW)
        self.core.resume_scheduler()

    def reload(self):
        """The same weights once more, by a call that vLLM has for it and without a name."""
        self.core.pause_scheduler("keep", False)
        self.core.collective_rpc("reload_weights")
        self.core.resume_scheduler()


@pytest.fixture
def trainer(engine):
    before = engine.scheduler._core.settings
    yield (trainer := Trainer(engine))
    engine.scheduler._core.settings = before
    if trainer.has_scaled:
        trainer.core.collective_rpc(scaled(0.5))
    trainer.core.set_weight_version(OLD)
    engine.llm.reset_prefix_cache()


@pytest.fixture
def trees(engine):
    """The builder of each request's tree, by its id."""
    from forkjoin_server.vllm_seam.offline.tree_output import TreeOutputProcessor

    before, ours = engine.core.output_processor, TreeOutputProcessor.in_place_of(engine.core.output_processor)
    engine.core.output_processor = ours
    yield ours.builders
    engine.core.output_processor = before


def settings(engine, **more):
    engine.scheduler._core.settings = engine.scheduler._core.settings.model_copy(update=more)


def begin(engine, *, threads=20, **more):
    """The id of a request whose threads have each written so many tokens."""
    from forkjoin_scheduler.settings import TREE

    params = engine.params(temperature=1.0, seed=4, max_tokens=1500, logprobs=0, **more)
    params.extra_args |= {TREE: True}
    request_id = engine.add(engine.prompt("a=482*731, b=9047*36"), params)

    def have_written():
        lives = engine.scheduler._core.live.values()
        roots = [live.family.root for live in lives if live.family.request_id.startswith(f"{request_id}-")]
        return bool(roots) and all(thread.num_generated >= threads for thread in roots[0].threads)

    engine.step_until(have_written)
    return request_id


def check(models, tree, *, reads_old_kv=False):
    """Each token is what the weights of its segment make of the tree, unless they read old KV."""
    from tests.engine.tree_reference import deltas

    layout = tree.layout
    sampled = [n for n, is_sampled in zip(layout.segment_of, layout.sampled, strict=True) if is_sampled]
    for version, model in models.items():
        own = torch.tensor([tree.segments[n].weight_version == version for n in sampled])
        assert own.any()
        most = deltas(model, tree)[own].max()
        if reads_old_kv and version == NEW:
            assert most > OLD_KV_NATS
        else:
            assert most <= NATS


@pytest.mark.parametrize("clears", [False, True], ids=["by_policy", "by_pause"])
def test_what_is_recomputed_is_what_the_new_weights_make_of_the_tree(engine, trainer, trees, models, clears):
    settings(engine, on_new_weights="finish" if clears else "recompute")
    request_id = begin(engine)
    trainer.update(clear_cache=clears)
    answer = engine.drain()[request_id]
    tree = trees[request_id, 0].tree(answer.token_ids, answer.finish_reason)
    check(models, tree)
    assert not any(segment.has_old_kv for segment in tree.segments)
    assert [s.weight_version for s in tree.segments if s.thread == 0] == [OLD, NEW]
    assert len({s.seed for s in tree.segments if s.thread == 0}) == 1


def test_what_goes_on_with_old_kv_says_so(engine, trainer, trees, models):
    request_id = begin(engine)
    trainer.update()
    answer = engine.drain()[request_id]
    tree = trees[request_id, 0].tree(answer.token_ids, answer.finish_reason)
    check(models, tree, reads_old_kv=True)
    assert {(s.weight_version, s.has_old_kv) for s in tree.segments} == {(OLD, False), (NEW, True)}
    assert answer.finish_reason in ("stop", "length"), "these weights write nonsense, but it ends"


def test_an_aborted_family_ends_with_its_tree_so_far(engine, trainer, trees, models):
    from tests.engine.tree_reference import deltas

    settings(engine, on_new_weights="abort")
    request_id = begin(engine)
    trainer.update()
    answer = engine.drain()[request_id]
    assert answer.finish_reason == "abort"
    tree = trees[request_id, 0].tree(answer.token_ids, answer.finish_reason)
    assert deltas(models[OLD], tree).max() <= NATS
    assert [s.finish_reason for s in tree.segments] == ["abort", "cancelled", "cancelled"]
    assert all(len(s.token_ids) - s.num_injected >= 20 for s in tree.segments[1:])


def test_weights_that_are_reloaded_without_a_name_are_others(engine, trainer, trees, models):
    request_id = begin(engine)
    trainer.reload()
    answer = engine.drain()[request_id]
    tree = trees[request_id, 0].tree(answer.token_ids, answer.finish_reason)
    assert {(s.weight_version, s.has_old_kv) for s in tree.segments} == {(OLD, False), ("default+1", True)}
    check({OLD: models[OLD], "default+1": models[OLD]}, tree)


@pytest.mark.parametrize("policy", ["finish", "recompute"])
def test_no_later_request_finds_kv_of_the_old_weights(engine, trainer, trees, models, policy):
    """Neither what has ended, nor what goes on: its tree would not be what the new weights make of it."""
    settings(engine, on_new_weights=policy)
    begin(engine)
    trainer.update()
    later = begin(engine)
    answers = engine.drain()
    tree = trees[later, 0].tree(answers[later].token_ids, answers[later].finish_reason)
    check({NEW: models[NEW]}, tree)
    assert not any(segment.has_old_kv for segment in tree.segments)


def test_kept_answers_do_not_outlive_the_weights(engine, trainer):
    params = engine.params(max_tokens=200, forkjoin={"keep": 600})
    engine.run([engine.prompt("a=482*731, b=64*28")], params)
    assert len(engine.scheduler._core.leases) == 1
    trainer.update()
    assert len(engine.scheduler._core.leases) == 0
    prompt = engine.prompt("a=482*731, b=64*28")
    engine.steps.clear()
    engine.run([prompt], engine.params(max_tokens=1))
    assert next(n for step in engine.steps for n in step.values()) == len(prompt)


def test_an_answer_that_did_not_fork_says_which_weights_wrote_it(engine, trainer):
    from forkjoin_server.trees import tree_of

    request_id = engine.add(engine.prompt("a=7*8"), engine.params(max_tokens=30, forkjoin={"enabled": False}))
    ended = []
    for _ in range(6):
        engine.core.step()
    trainer.update(clear_cache=True)
    while engine.core.has_unfinished_requests():
        ended += [output for output in engine.core.step() if output.finished]
    (answer,) = ended[-1].outputs
    assert ended[-1].request_id == request_id
    prompt = ended[-1].prompt_token_ids
    tree = tree_of(None, prompt, answer.token_ids, None, 0, None, "length", answer.weight_versions)
    assert [s.weight_version for s in tree.segments] == [OLD, NEW]
    assert [s.finish_reason for s in tree.segments] == [None, "length"]
    assert tree.context(1) == [*prompt, *answer.token_ids]
    assert tree.positions() == list(range(len(prompt) + len(answer.token_ids)))


# ---- by vLLM's own transfer -------------------------------------------------------------------


def test_weights_that_a_trainer_sends_by_vllms_own_calls_are_those_of_the_tokens_after_them(models, tmp_path):
    """Start, update, finish with a name; vLLM's own backends need GPUs, so a file is the transport."""
    from safetensors.torch import save_file

    from forkjoin_server.vllm_seam.offline.tree_output import TreeOutputProcessor
    from tests.engine import file_transfer
    from tests.engine.harness import Engine

    file_transfer.register()
    engine = Engine(num_gpu_blocks_override=300, weight_transfer_config={"backend": file_transfer.NAME})
    engine.core.output_processor = TreeOutputProcessor.in_place_of(engine.core.output_processor)
    llm, core = engine.llm, engine.core.engine_core.engine_core
    save_file({NORM: models[NEW].get_parameter(NORM).detach()}, tmp_path / "new.safetensors")
    llm.init_weight_transfer_engine({"init_info": {}})
    request_id = begin(engine)
    core.pause_scheduler("keep", True)
    llm.start_weight_update()
    llm.update_weights({"update_info": {"path": str(tmp_path / "new.safetensors")}})
    llm.finish_weight_update(NEW)
    core.resume_scheduler()
    answer = engine.drain()[request_id]
    tree = engine.core.output_processor.builders[request_id, 0].tree(answer.token_ids, answer.finish_reason)
    check(models, tree)
    assert llm.get_weight_version() == NEW
    assert engine.snapshot() == engine.baseline


# ---- stitched joins ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stitched(tmp_path_factory):
    from forkjoin_scheduler.dialects.files import load
    from tests.engine.harness import Engine
    from tests.engine.renamed import MULTIVERSE, with_tokens

    return Engine(load("multiverse"), with_tokens(tmp_path_factory.mktemp("multiverse"), MULTIVERSE))


class TestStitchedJoins:
    """What is recomputed is recomputed as it was stitched, by the new weights."""

    #: Of tokens that were forced, of which many are unlikely: rounding moves these more.
    NATS = 5e-4

    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, stitched):
        return stitched

    def begin(self, engine, *, joined):
        """The id of a request whose threads write, or that writes behind their join."""
        from forkjoin_scheduler.settings import TREE
        from tests.engine.stitched_cases import TRAJECTORIES, Driver

        params = Driver(engine).params(TRAJECTORIES["over_many_blocks"], 40)
        params.extra_args |= {TREE: True}
        request_id = engine.add(engine.prompt("a=482*731, b=9047*36"), params)

        def is_there():
            roots = [live.family.root for live in engine.scheduler._core.live.values()]
            if joined:
                return bool(roots) and roots[0].num_joined > 0 and roots[0].state.name == "DECODING"
            return bool(roots) and all(thread.num_generated >= 4 for thread in roots[0].threads)

        engine.step_until(is_there)
        for _ in range(6):
            engine.core.step()
        return request_id

    @pytest.mark.parametrize("joined", [False, True], ids=["in_threads", "behind_the_join"])
    def test_what_is_recomputed_is_what_the_new_weights_make_of_the_tree(
        self, engine, trainer, trees, models, joined
    ):
        from tests.engine.tree_reference import deltas

        settings(engine, on_new_weights="recompute")
        request_id = self.begin(engine, joined=joined)
        trainer.update()
        answer = engine.drain()[request_id]
        tree = trees[request_id, 0].tree(answer.token_ids, answer.finish_reason)
        layout = tree.layout
        sampled = [n for n, is_sampled in zip(layout.segment_of, layout.sampled, strict=True) if is_sampled]
        for version, model in models.items():
            own = torch.tensor([tree.segments[n].weight_version == version for n in sampled])
            assert own.any()
            assert deltas(model, tree)[own].max() <= self.NATS
        assert any(segment.joined for segment in tree.segments)
        assert not any(segment.has_old_kv for segment in tree.segments)

    @pytest.mark.parametrize("joined", [False, True], ids=["in_threads", "behind_the_join"])
    def test_what_goes_on_with_old_kv_says_so(self, engine, trainer, trees, joined):
        request_id = self.begin(engine, joined=joined)
        trainer.update()
        answer = engine.drain()[request_id]
        tree = trees[request_id, 0].tree(answer.token_ids, answer.finish_reason)
        versions = {(s.weight_version, s.has_old_kv) for s in tree.segments if any(s.sampled)}
        assert versions == {(OLD, False), (NEW, True)}
        assert answer.finish_reason == "length"

    def test_an_aborted_family_ends_with_its_tree_so_far(self, engine, trainer, trees, models):
        from tests.engine.tree_reference import deltas

        settings(engine, on_new_weights="abort")
        request_id = self.begin(engine, joined=False)
        trainer.update()
        answer = engine.drain()[request_id]
        assert answer.finish_reason == "abort"
        tree = trees[request_id, 0].tree(answer.token_ids, answer.finish_reason)
        assert deltas(models[OLD], tree).max() <= self.NATS
