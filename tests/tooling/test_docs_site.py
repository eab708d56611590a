"""The docs site: it builds strictly, without network, and shows what the code says."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from mkdocs.exceptions import PluginError

from docgen.hooks import PAGES, relinked

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: A proxy that nobody answers at: whoever looks for something elsewhere fails.
NOWHERE = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")


#: Any: which one it is nobody knows yet.
REPOSITORY = "https://example.org/them/vllm-forkjoin"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    env = os.environ | NOWHERE | {"NO_MKDOCS_2_WARNING": "1", "DOCS_REPO_URL": REPOSITORY}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


class Loads(HTMLParser):
    """Gathers the addresses that a page loads something from when it is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.found.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") != "canonical":
            self.found.append(given.get("href") or "")


def test_each_page_and_file_shown_is_on_the_site(site):
    pages = {path.name.replace(".md", ".html") for path in DOCS.glob("*.md")}
    pages |= {page.replace(".md", ".html") for page in PAGES.values()}
    assert pages <= {path.name for path in site.glob("*.html")}


def test_no_page_loads_anything_from_elsewhere(site):
    for path in site.glob("*.html"):
        text = path.read_text()
        loads = Loads()
        loads.feed(text)
        assert [a for a in loads.found if re.match(r"(https?:)?//", a)] == [], path
        # What the theme draws such a diagram with, it would fetch.
        assert 'class="mermaid"' not in text


def test_each_page_has_a_link_to_the_repository_that_the_build_is_told(site):
    for path in site.glob("*.html"):
        assert f'<a href="{REPOSITORY}"' in path.read_text(), path


def test_the_site_brings_what_a_search_from_a_disk_needs(site):
    assert (site / "search/search_index.js").read_text().startswith("var __index = {")
    head = (site / "index.html").read_text().partition("</head>")[0]
    assert '<script src="iframe-worker.js"></script>' in head


class Tables(HTMLParser):
    """Gathers the tables of a page: of each its rows, of each row the text of its cells."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[list[list[str]]] = []
        self._is_cell = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.found.append([])
        elif tag == "tr":
            self.found[-1].append([])
        elif tag in ("td", "th"):
            self.found[-1][-1].append("")
            self._is_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._is_cell = self._is_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._is_cell:
            self.found[-1][-1][-1] += data.strip()


def test_no_table_has_an_empty_column(site):
    num = 0
    for path in site.glob("*.html"):
        tables = Tables()
        tables.feed(path.read_text())
        for head, *rows in tables.found:
            num += 1
            for place, name in enumerate(head):
                filled = sum(bool(row[place]) for row in rows if place < len(row))
                assert filled, f"{path.name}: the column {name!r} is empty"
    assert num > 50


FIGURES = sorted(path.name for path in DOCS.glob("*.svg") if not path.stem.endswith("-dark"))


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_there_for_light_and_dark_pages_and_its_page_says_how_it_is_made(name):
    dark = name.replace(".svg", "-dark.svg")
    assert (DOCS / dark).exists()
    texts = [re.findall(r">([^<>]+)</text>", (DOCS / figure).read_text()) for figure in (name, dark)]
    assert texts[0] == texts[1], "they are of two runs: make both again"
    sources = [path.read_text() for path in (*DOCS.glob("*.md"), ROOT / "ARCHITECTURE.md")]
    pages = [text for text in sources if f"({name}#only-light)" in text or f'src="docs/{name}"' in text]
    assert pages, f"no page shows {name}"
    for page in pages:
        assert f"({dark}#only-dark)" in page or f'srcset="docs/{dark}"' in page
        made = {
            line for line in page.splitlines() if re.search(r"docgen\.figures|--svg|--plot|\.pictures", line)
        }
        assert any(_makes(line, name) for line in made)


def _makes(command: str, figure: str) -> bool:
    """Whether ``command`` makes ``figure``, which it names, or as one of all panels of the dashboard."""
    if figure.startswith("dashboard-"):
        return "tests.deploy.pictures" in command
    return figure in command or f"figures {figure.removesuffix('.svg')}" in command


def test_the_docstrings_of_the_policies_are_on_the_site(site):
    text = (site / "python-api.html").read_text()
    for name in ("threads.Slack.choose", "threads.StepFacts", "admission.Admission.admits"):
        assert f'id="forkjoin_scheduler.policy.{name}"' in text


@pytest.mark.parametrize(
    ("markdown", "source", "shown"),
    [
        ("[a](../README.md#use-it)", "docs/x.md", "[a](index.md#use-it)"),
        ("[a](docs/dialects.md)", "README.md", "[a](dialects.md)"),
        ("[a](../README.md)", "docker/README.md", "[a](index.md)"),
        ("[`scripts/lock`](scripts/lock)", "README.md", "`scripts/lock`"),
        ("[how](../scripts/lock)", "docs/x.md", "how (`scripts/lock`)"),
        ("[a](https://x.org/y) [b](#c)", "README.md", "[a](https://x.org/y) [b](#c)"),
        ('<img src="docs/fork-join.svg">', "README.md", '<img src="fork-join.svg">'),
    ],
    ids=["to_front", "to_docs", "between_files", "own_name", "no_page", "elsewhere", "picture"],
)
def test_a_link_of_the_repository_leads_to_the_page_that_shows_its_target(markdown, source, shown):
    assert relinked(markdown, source) == shown


def test_a_link_that_leads_nowhere_fails_the_build():
    with pytest.raises(PluginError, match=r"README.md: the link to no/such/file leads nowhere"):
        relinked("[a](no/such/file)", "README.md")


@functools.cache
def _said() -> str:
    """All text that the code may say, a line each; what it fills in is an ellipsis."""
    lines = []
    for path in (p for room in ("server", "scheduler") for p in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                lines.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    shell = re.sub(r'" \\\n\s*"', " ", (ROOT / "scripts/install").read_text())
    return "\n".join([*lines, re.sub(r"\$\([^)]*\)|\$\w+", "…", shell)])


MESSAGES = re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), flags=re.M)


def test_there_are_messages_to_look_for():
    assert len(MESSAGES) > 15


@pytest.mark.parametrize("message", MESSAGES)
def test_the_code_says_each_message_of_the_guide(message):
    assert message in _said()


def _flags(page: str) -> set[str]:
    return set(re.findall(r"`(--[a-z][a-z-]+)", (DOCS / page).read_text()))


@pytest.mark.parametrize("page", ["tuning.md", "scheduling.md", "replicas.md", "troubleshooting.md"])
def test_each_flag_of_ours_in_the_guides_is_one(page):
    from forkjoin_server.doctor.verdicts.others import OTHERS
    from forkjoin_server.doctor.verdicts.table import RULES
    from forkjoin_server.start.flags import own_flags

    ours = {f"--{name}" for name in own_flags()} | {"--device"}  # of forkjoin_scheduler.verify
    vllms = {f"--{name}" for of in (*RULES, *OTHERS) for name in of.names}
    vllms |= {f"--no-{flag[2:]}" for flag in vllms}
    routers = {"--cb-failure-threshold"}
    assert _flags(page) <= ours | vllms | routers


def test_the_guides_name_every_flag_of_the_settings_with_its_default():
    from forkjoin_scheduler.settings import Settings

    guides = "".join((DOCS / page).read_text() for page in ("tuning.md", "scheduling.md"))
    named = [name for name, field in Settings.model_fields.items() if field.description]
    for name in named:
        assert f"--{name.replace('_', '-')}" in guides
    assert f"`--join-ahead-tokens` ({Settings().join_ahead_tokens})" in guides
    assert f"`{Settings().admission}` (the default)" in guides


def test_the_numbers_of_the_admission_in_the_guide_are_the_codes():
    from forkjoin_scheduler.policy.admission import Admission

    guide = " ".join((DOCS / "scheduling.md").read_text().split())
    assert Admission.PRIOR_PART == 1 / 12
    bounds = f"(at least {Admission.PRIOR_TOKENS}, at most {Admission.MOST_PRIOR_TOKENS:,})"
    assert f"a twelfth of the KV cache holds {bounds}, and {Admission.PRIOR_WIDTH} threads" in guide
    assert f"{Admission.PRIOR_THREADS} times what the families have written" in guide
    assert Admission.ENOUGH == 4 / 5
    assert "four fifths of the growth is enough" in guide
    assert Admission.LAST_PART == 1 / 8
    assert "another eighth" in guide
    assert Admission.RARELY == 1 / 20
    assert "fewer than one request in twenty" in guide
