"""What the docs show is what the code takes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from forkjoin_scheduler.dialects.assembly import RULES
from forkjoin_scheduler.dialects.bound import WINDOW_TOKENS
from forkjoin_scheduler.dialects.dialect import (
    Answer,
    Context,
    Dialect,
    ForkAt,
    Outline,
    Positions,
    Sampling,
    SamplingOverrides,
    Summary,
    Thread,
)
from forkjoin_scheduler.dialects.files import builtin_names, load, parse
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.patterns import FIELDS, MATCH_TIMEOUT_S
from forkjoin_scheduler.dialects.policies import Policies, Policy
from forkjoin_scheduler.families.fork import ForkPlan, plan_fork
from forkjoin_scheduler.joins.kinds import KINDS
from forkjoin_scheduler.request.options import ExplicitBranch, RequestOptions, parse_options
from forkjoin_server.doctor import prerequisites

ROOT = Path(__file__).parents[3]
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


_SECTIONS = {
    "outline": [Outline],
    "thread": [Thread],
    "join": KINDS.values(),
    "positions": [Positions],
    "limits": [Limits],
    "summary": [Summary],
    "sampling": [Sampling],
    "answer": [Answer],
}
#: The keys of each, in order.
SECTIONS = {
    name: list(dict.fromkeys(k for m in of for k in m.model_fields)) for name, of in _SECTIONS.items()
}


@pytest.mark.parametrize("name", [f"{s}.{key}" for s, keys in SECTIONS.items() for key in keys])
def test_the_guide_names_every_key_of_a_section_with_its_section(name):
    assert f"`{name}`" in GUIDE


def test_the_guide_names_no_key_that_there_is_not():
    for section, key in re.findall(r"`(\w+)\.(\w+)`", GUIDE):
        assert (section, key) == ("assembly", "py") or key in SECTIONS[section]


#: What may stand in a key or a request: none of it may be missing from the guide.
WORDS = [
    *(e.value for kind in (ForkAt, Context, Policy) for e in kind),
    *KINDS,
    *SamplingOverrides.model_fields,
    *ExplicitBranch.model_fields,
    *RULES,
    *(f"{{{name}}}" for name in FIELDS),
    *("branches", "closing", "best_of", "vote", "first", "all", "tokens", "text"),
]


@pytest.mark.parametrize("word", dict.fromkeys(WORDS))
def test_the_guide_names_every_value_and_field(word):
    assert f"`{word}`" in GUIDE


def _rows(heading: str) -> dict[str, list[str]]:
    """The cells of the first table behind ``heading``, by the name in the first."""
    section = GUIDE.partition(f"{heading}\n")[2].partition("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("| `")]
    cells = [[c.strip() for c in line.strip("|").split(" | ")] for line in lines]
    return {row[0].strip("` "): row[1:] for row in cells}


def test_the_table_of_built_in_dialects_is_that_of_their_files():
    rows = _rows("## Built in")
    assert sorted(rows) == builtin_names()
    for name, (_, forks, joins, nesting, _) in rows.items():
        dialect = load(name)
        assert nesting.split()[0] == str(dialect.max_depth)
        if name == "explicit":
            continue
        assert joins.startswith(f"`{dialect.join.kind}`")
        if dialect.fork_at is ForkAt.TRIGGER and dialect.tags_are == "tokens":
            assert f"`{dialect.trigger}`" in forks.replace(r"\|", "|")
        if dialect.width is not None:
            assert f", {dialect.width} " in forks


def test_the_table_of_joins_says_who_waits(make_dialect):
    needs = {"rewrite": {"opens": "<C>"}, "on_demand": {"ask": "(?P<number>.)"}, "vote": {"result": "x"}}
    needs["sync"] = needs["in_place"] = {"sync": "<S>"}
    needs["rounds"] = {"prompt": "{prompt}", "reference": "{returned}"}
    rows = _rows("## Joins")
    assert list(rows) == list(KINDS)
    for kind, (waits, goes_on) in rows.items():
        more = {"fork_at": "prompt", "thread": {"header": "", "returns": "x"}} if kind == "rounds" else {}
        join = make_dialect(join={"kind": kind} | needs.get(kind, {}), **more).join
        assert (waits == "the parent") is join.waits
        assert join.goes_on or goes_on.startswith("nothing: the answer is the")


def test_the_kind_that_is_shown_as_an_example_is_the_one_that_runs():
    shown = re.search(r"```python\n(.*?)```", GUIDE, flags=re.S)
    assert shown is not None
    assert shown[1] == (ROOT / "scheduler/forkjoin_scheduler/joins/sync.py").read_text()


def test_the_table_of_policies_gives_each_its_default_first_and_all_others():
    rows = re.findall(r"^\| ((?:`\w+`(?:, )?)+) \| [^|]* \| ([^|]*) \|$", GUIDE, flags=re.M)
    said = {
        name: re.findall(r"`(\w+)`", policies)
        for names, policies in rows
        for name in re.findall(r"`(\w+)`", names)
    }
    for name in Policies.model_fields:
        allowed = []
        for policy in Policy:
            try:
                Policies.model_validate({name: policy.value})
            except ValueError:
                continue
            allowed.append(policy.value)
        assert said[name][0] == getattr(Policies(), name).value
        assert sorted(said[name]) == sorted(allowed)


def test_the_requests_in_the_guide_are_taken():
    requests = [json.loads(line) for line in re.findall(r"^    (\{.*\})$", GUIDE, flags=re.M)]
    options = [parse_options(request["forkjoin"]) for request in requests]
    assert [(bool(o.branches), bool(o.best_of)) for o in options] == [
        (True, False),
        (False, True),
        (True, True),
    ]
    assert all(o.forks_at_prompt for o in options)
    assert {"branches", "closing", "best_of", "vote"} < set(RequestOptions.model_fields)


def test_the_numbers_and_layouts_in_the_guide_are_the_codes():
    from forkjoin_scheduler.tensors.slots import COPIERS

    assert f"in the last {WINDOW_TOKENS} tokens" in GUIDE
    assert f"given up after {MATCH_TIMEOUT_S} s" in GUIDE
    layouts: dict[str, list[str]] = {}
    for name, isa in COPIERS:
        layouts.setdefault(name, []).extend([] if isa is None else [isa])
    named = ", ".join(f"{n} ({', '.join(isas)})" if isas else n for n, isas in layouts.items())
    assert f"KV layouts {named}." in GUIDE


PAGES = [
    "README.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    *(f"docs/{p.name}" for p in ROOT.glob("docs/*.md")),
]


@pytest.mark.parametrize("path", sorted(PAGES))
def test_no_link_of_the_docs_is_broken(path):
    file = ROOT / path
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", file.read_text()):
        assert (file.parent / target).exists(), target


def test_the_readme_is_read_in_four_minutes():
    assert len((ROOT / "README.md").read_text().split()) <= 900


@pytest.mark.parametrize("page", ["README.md", "docs/quick-start.md"])
def test_the_packages_that_a_newcomer_installs_are_those_that_the_installation_checks(page):
    text = (ROOT / page).read_text()
    (debian,) = re.findall(r"^    apt-get install (.*?)  ", text, flags=re.M)
    (fedora,) = re.findall(r"^    dnf install (.*?)  ", text, flags=re.M)
    checked = (prerequisites.VENV, prerequisites.HEADERS, prerequisites.COMPILER, prerequisites.NUMA)
    own = f"python3.{sys.version_info.minor}"
    assert {p.debian.replace(own, "python3") for p in checked} < set(debian.split())
    assert {p.fedora for p in checked} - {"python3"} < set(fedora.split())  # which headers bring


# ---- ARCHITECTURE.md -------------------------------------------------------------------------


def test_the_architecture_names_no_file_that_there_is_not():
    there = {
        str(path.relative_to(ROOT))
        for room in ("server", "scheduler", "client")
        for path in (ROOT / room).rglob("*.py")
    }
    text = (ROOT / "ARCHITECTURE.md").read_text()
    named = set(re.findall(r"`([\w./]+\.py)`", text))
    assert len(named) > 40
    assert [name for name in named if not any(f"/{path}".endswith(f"/{name}") for path in there)] == []


@pytest.mark.parametrize("figure", ["request-path.svg", "request-path-dark.svg"])
def test_a_requests_way_is_told_in_twelve_lines_and_the_figure_shows_them(figure):
    from docgen.figures.request_path import steps

    told = steps()
    assert [step.number for step in told] == list(range(1, 13))
    shown = re.findall(r">([^<>]+)</text>", (ROOT / "docs" / figure).read_text())
    assert [f"{s.number} {s.name}" for s in told] == [text for text in shown if re.match(r"\d+ ", text)]
    assert {file for step in told for file in step.shown} <= set(shown)
