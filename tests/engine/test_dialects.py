"""Published dialects other than the embedded model's, driven by forced tokens through the real engine.

The embedded model stands in for theirs, with their control tokens in the place of its own.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from forkjoin_scheduler.dialect import load
from forkjoin_server.cli import EMBEDDED_MODEL

pytestmark = pytest.mark.engine


def _with_tokens(folder: Path, renamed: dict[str, str]) -> Path:
    """The embedded model in ``folder``, its tokens ``renamed``."""
    model = shutil.copytree(EMBEDDED_MODEL, folder / "model")
    path = model / "tokenizer.json"
    text = path.read_text()
    for own, other in renamed.items():
        assert f'"{own}"' in text
        text = text.replace(f'"{own}"', f'"{other}"')
    path.write_text(text)
    return model


@pytest.fixture(scope="module")
def parallel_r1(tmp_path_factory):
    from tests.engine.harness import Engine

    names = {
        "<Thread>": "<Path>", "</Thread>": "</Path>", "<Outlines>": "<Summary>", "</Outlines>": "</Summary>",
    }  # fmt: skip
    return Engine(load("parallel-r1"), _with_tokens(tmp_path_factory.mktemp("r1"), names))


def _script(engine, path, **options):
    behind = {"</Parallel>\n<Summary>": "both</Summary>end"}
    return engine.scripted("think<Parallel>", {"1": path}, behind=behind, **options)


def test_parallel_r1_forks_into_two_equal_prompts_and_joins_them_under_a_summary(parallel_r1):
    engine = parallel_r1
    engine.steps.clear()
    (answer,) = engine.run([engine.prompt("q")], _script(engine, "abc</Path>"))
    assert answer.text == (
        "think<Parallel><Path>abc</Path><Path>abc</Path></Parallel>\n<Summary>both</Summary>end"
    )
    first = [next(n for s in engine.steps for i, n in s.items() if i.endswith(f"#{t}")) for t in (0, 1)]
    assert first == [2, 2]  # the trigger and <Path>
    joined = next(s for s in reversed(engine.steps) if max(s.values(), default=0) > 1)
    # the end tag of the first path, the second path whole, and what is injected
    assert list(joined.values()) == [1 + 5 + len(engine.tokenizer.encode("</Parallel>\n<Summary>"))]
    assert engine.snapshot() == engine.baseline


@pytest.mark.parametrize(("path", "limit"), [("ab", None), ("abcdef", 2)], ids=["eos", "length"])
def test_a_path_of_parallel_r1_that_does_not_close_is_closed_and_the_summary_follows(
    parallel_r1, path, limit
):
    params = _script(parallel_r1, path, forkjoin={"max_tokens_per_thread": limit})
    (answer,) = parallel_r1.run([parallel_r1.prompt("q")], params)
    closed = "<Path>ab</Path>" * 2
    assert answer.text == f"think<Parallel>{closed}</Parallel>\n<Summary>both</Summary>end"


def test_the_paths_of_parallel_r1_part_by_their_seeds_and_a_seed_repeats_them(parallel_r1):
    engine = parallel_r1
    prompt = engine.prompt("a=482*731")
    script = [[prompt[-1:], engine.tokenizer.encode("<Parallel>")]]
    params = engine.params(
        temperature=2.0, max_tokens=60, seed=7, forkjoin={"max_tokens_per_thread": 20, "max_forks": 1},
        extra_args={"script": script, "eos": engine.eos},
    )  # fmt: skip
    first, again = (engine.run([prompt], params)[0].text for _ in range(2))
    assert first == again
    one, other = first.partition("</Parallel>")[0].split("<Path>")[1:]
    assert one != other


def test_a_thread_may_end_by_any_of_the_models_end_of_sequence_tokens(tmp_path):
    from tests.engine.harness import Engine

    second = 57  # "Z"
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [257, second]}))
    engine = Engine(generation_config=str(tmp_path))
    assert engine.tokenizer.encode("Z") == [second]
    two = "<Outlines><Outline>1: x</Outline><Outline>2: y</Outline></Outlines>"
    params = engine.scripted(two, {"1": "aZ", "2": "b</Thread>"})
    (answer,) = engine.run([engine.prompt("q")], params)
    assert answer.text == f"{two}\n<Thread>\n1:a\n</Thread><Thread>\n2:b</Thread>\n</Parallel>"
    assert (answer.finish_reason, answer.stop_reason) == ("stop", None)
