"""The figures of the docs are drawn from runs: what the runs say is what the figures are there to show."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forkjoin.terminal.drawing import DARK, LIGHT

pytestmark = pytest.mark.engine

DOCS = Path(__file__).parents[2] / "docs"


def _texts(path: Path) -> list[str]:
    return re.findall(r">([^<>]+)</text>", path.read_text())


@pytest.fixture(scope="module")
def runs():
    from docgen.figures import joins

    return {kind: joins.record(script) for kind, script in joins.KINDS.items()}


def test_a_reprefill_computes_the_threads_after_the_first_and_a_stitch_only_its_own_text(runs):
    reprefill, stitch, rewrite = runs.values()
    texts = [sum(w.num_tokens for w in reprefill.work[thread]) for thread in reprefill.threads]
    assert reprefill.num_computed_by_join >= sum(texts[1:])
    assert stitch.num_computed_by_join < 16
    assert rewrite.num_computed_by_join > 0


def test_a_thread_that_ended_is_prefilled_for_the_join_while_another_decodes(runs):
    from docgen.figures.recorded import JOIN

    reprefill, *_ = runs.values()
    last = max(w.step for thread in reprefill.threads for w in reprefill.work[thread])
    assert any(w.step < last for w in reprefill.work[JOIN])


def test_the_figure_of_joins_in_the_docs_is_of_such_runs(runs, tmp_path):
    from docgen.figures import joins

    for theme, name in ((LIGHT, "joins.svg"), (DARK, "joins-dark.svg")):  # they are drawn without a warning
        joins.draw(runs, tmp_path / name, theme)
        assert theme.ground in (tmp_path / name).read_text()
        assert _texts(tmp_path / name) == _texts(DOCS / name)


def test_threads_begin_with_their_parents_blocks_and_a_stitch_keeps_theirs(tmp_path):
    from docgen.figures import blocks, scripts

    tables = {kind: blocks.record(getattr(scripts, kind)) for kind in ("REPREFILL", "STITCH")}
    for each in tables.values():
        parent, *threads = each.forked
        num_shared = len(parent.block_ids)
        assert num_shared > 1
        for thread in threads:
            assert thread.block_ids[:num_shared] == parent.block_ids[:num_shared]
        own = [set(thread.block_ids[num_shared:]) for thread in threads]
        assert not own[0] & own[1]
    kept = set(tables["STITCH"].joined.block_ids)
    assert all(
        kept & set(thread.block_ids) - set(tables["STITCH"].forked[0].block_ids)
        for thread in tables["STITCH"].forked[1:]
    )
    blocks.draw(*tables.values(), tmp_path / "kv-blocks.svg", LIGHT)
    assert _texts(tmp_path / "kv-blocks.svg") == _texts(DOCS / "kv-blocks.svg")


def test_a_parent_that_waits_for_its_threads_is_not_preempted():
    from docgen.figures import pressure

    assert pressure.run("greedy", num_families=1, num_before=0).preempted_at == []


def test_more_families_than_fit_fill_the_blocks_and_all_end(tmp_path):
    from docgen.figures import admission, pressure

    runs = {name: pressure.run(name, num_families=7, num_before=1) for name in ("family", "greedy")}
    for name, run in runs.items():
        assert len(run.families) == 7
        assert max(sum(step.values()) for step in run.held) <= run.num_blocks
        assert all((family.expected is not None) is (name == "family") for family in run.families.values())
    assert len(runs["family"].preempted_at) < len(runs["greedy"].preempted_at)
    admission.draw(runs, tmp_path / "admission.svg", LIGHT)
    texts = _texts(tmp_path / "admission.svg")
    assert [text.partition(":")[0] for text in texts if "preemption" in text] == ["family", "greedy"]
