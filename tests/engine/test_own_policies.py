"""The policies that docs/scheduling.md shows, brought by their class paths, decide in a real engine."""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

import pytest

from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.settings import OWN_POLICIES
from forkjoin_scheduler.vllm_seam.cache import kv

pytestmark = pytest.mark.engine

GUIDE = (Path(__file__).parents[2] / "docs/scheduling.md").read_text()
#: The settings, and the class path that the guide serves with.
SHOWN = {
    flag.replace("-", "_"): path
    for flag, path in re.findall(r"^    forkjoin serve MODEL --(\S+) (my_package\.\S+)$", GUIDE, flags=re.M)
}


@pytest.fixture(scope="module", autouse=True)
def my_package(tmp_path_factory):
    """What the guide shows, where its commands look for it."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_package").mkdir()
    (folder / "my_package/__init__.py").touch()
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.S)
    # An import of __future__ can't stand behind another block.
    assert not any("__future__" in block for block in blocks)
    (folder / "my_package/policies.py").write_text("\n\n".join(blocks))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield
    for name in ("my_package", "my_package.policies"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def engine():
    from tests.engine.harness import Engine

    return Engine(max_num_seqs=32, num_gpu_blocks_override=1000, policies=SHOWN)


def test_the_guide_shows_one_of_each_kind():
    assert SHOWN.keys() == OWN_POLICIES.keys()


def _families(engine, num, length=12, **options):
    """Prompts, and what makes the model fork behind each into four threads."""
    outlines = "".join(f"<Outline>{n}: x</Outline>\n" for n in range(1, 5))
    threads = {str(n): "a" * (length + n) + "</Thread>" for n in range(1, 5)}
    root = f"<Parallel>\n<Outlines>\n{outlines}</Outlines>"
    params = engine.scripted(root, threads, "</Parallel>\nok", **options)
    return [engine.prompt(f"q{i}") for i in range(num)], params


def test_no_more_families_and_threads_run_than_the_shown_policies_say(engine):
    prompts, params = _families(engine, 9)
    (alone,) = engine.run(prompts[:1], params)
    engine.steps.clear()
    assert {a.text for a in engine.run(prompts, params)} == {alone.text}
    threads = [Counter(i.split("#")[0] for i in step if "#" in i) for step in engine.steps]
    assert max(n for step in threads for n in step.values()) == 2
    assert max(len({i.split("#")[0] for i in step}) for step in engine.steps) == 6


def test_the_family_gives_way_that_the_shown_policy_chooses(engine):
    prompts, params = _families(engine, 2, length=40)
    (alone,) = engine.run(prompts[:1], params)
    live, manager = engine.scheduler._core.live, engine.scheduler.kv_cache_manager
    # The built-in policy would take the younger one.
    _, slow = _families(engine, 0, length=40, forkjoin={"max_threads_running": 1})
    for prompt, options in zip(prompts, (slow, params), strict=True):
        engine.add(prompt, options)
        engine.step()

    def written():
        return [each.family.num_generated for each in live.values()]

    engine.step_until(lambda: len(live) == 2 and written()[0] < written()[1])
    engine.scheduler._eviction.relieve()
    assert [kv.has_blocks(manager, each.request) for each in live.values()] == [False, True]
    assert {a.text for a in engine.drain().values()} == {alone.text}


def test_a_vote_loses_the_threads_that_the_shown_policy_stops(events):
    from tests.engine.harness import Engine

    policies = {"prune_policy": SHOWN["prune_policy"]}
    engine = Engine(load("explicit"), max_num_seqs=8, max_model_len=1024, policies=policies)
    # Three run at a time: when they have ended, the longest of the others is stopped, until one is left.
    forkjoin = {"best_of": 6, "vote": "nothing", "prune": "own", "max_threads_running": 3}
    params = engine.params(temperature=1.0, max_tokens=40, seed=5, forkjoin=forkjoin)
    engine.run([engine.prompt("a=48*36, b=57*18")], params)
    assert Counter(e["reason"] for e in events("thread_ended")) == {"length": 4, "pruned": 2}
    assert engine.snapshot() == engine.baseline
