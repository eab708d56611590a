"""What the docs show is what the code takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from forkjoin_scheduler.dialect import Dialect, Policies, builtin_names, parse
from forkjoin_scheduler.fork import ForkPlan, plan_fork

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/dialects.md").read_text()


def test_the_dialect_worked_from_scratch_forks_as_the_guide_says(byte_tokenizer):
    (text,) = re.findall(r"```yaml\n(.*?)```", GUIDE, flags=re.S)
    dialect = parse(text, "docs/dialects.md")
    tokenizer = byte_tokenizer(list(dialect.control_tokens))
    (written,) = re.findall(r"    (Two cases.*?\[GO\])", GUIDE, flags=re.S)
    context = tokenizer.encode(written.replace("\n    ", "\n"))
    plan = plan_fork(dialect, dialect.limits, context, tokenizer)
    assert isinstance(plan, ForkPlan)
    assert [(t.number, t.title) for t in plan.threads] == [("1", "n is even"), ("2", "n is odd")]
    assert [tokenizer.decode(list(t.header_ids)) for t in plan.threads] == ["[TASK 1]", "[TASK 2]"]


@pytest.mark.parametrize("name", [*Policies.model_fields, *Dialect.model_fields, *builtin_names()])
def test_the_guide_names_every_key_policy_and_built_in_dialect(name):
    assert re.search(rf"`{name}[`.]", GUIDE)


@pytest.mark.parametrize("path", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/dialects.md"])
def test_no_link_of_the_docs_is_broken(path):
    file = ROOT / path
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text()):
        assert (file.parent / target).exists(), target
