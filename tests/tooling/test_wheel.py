"""The wheel: whoever installs it, away from this checkout, has the dialects and the model."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel was installed into."""
    return installed(ROOT, tmp_path_factory.mktemp("wheel"))


def installed(source: Path, folder: Path) -> Path:
    """A folder below ``folder`` that the wheel of ``source`` was installed into."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-input"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    subprocess.run([*build, str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site")]
    subprocess.run([*install, str(wheel)], check=True)
    return folder / "site"


def run(site: Path, code: str) -> str:
    """What ``code`` prints with the installed wheel ahead of this checkout."""
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=site, env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_the_wheel_holds_our_four_packages_and_nothing_else(site: Path) -> None:
    held = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")}
    assert held == {"bin", "forkjoin", "forkjoin_bench", "forkjoin_scheduler", "forkjoin_server"}


def test_the_packages_are_imported_from_the_wheel(site: Path) -> None:
    assert run(site, "import forkjoin_scheduler as s; print(s.__file__)").startswith(str(site))


def test_every_dialect_of_the_checkout_loads_from_the_wheel(site: Path) -> None:
    code = "from forkjoin_scheduler.dialects.files import builtin_names, load; print(*map(load, builtin_names()))"
    assert run(site, code)
    names = run(site, "from forkjoin_scheduler.dialects.files import builtin_names; print(*builtin_names())")
    assert names.split() == sorted(p.stem for p in (ROOT / "configs/dialects").glob("*.yaml"))


def test_what_pypi_shows_has_urls_and_links_that_work_there(site: Path) -> None:
    (about,) = site.glob("vllm_forkjoin-*.dist-info")
    metadata, _, readme = (about / "METADATA").read_text().partition("\n\n")
    urls = dict(re.findall(r"^Project-URL: (\w+), (\S+)$", metadata, flags=re.M))
    assert set(urls) == {"Repository", "Documentation", "Changelog", "Issues"}
    links = re.findall(r'\]\(([^)]+)\)|\b(?:src|srcset)="([^"]+)"', readme)
    assert len(links) > 30
    tag = "v" + re.search(r"^Version: (.+)$", metadata, flags=re.M)[1]
    for target in (link or picture for link, picture in links):
        kind, path = re.fullmatch(rf"{urls['Repository']}/(blob|raw)/{tag}/([^#]+)(?:#.+)?", target).groups()
        assert (kind == "raw") == path.endswith((".svg", ".png")), target
        assert (ROOT / path).is_file(), target


def test_the_embedded_model_comes_whole_with_the_wheel(site: Path) -> None:
    model = Path("forkjoin_server/embedded")
    expected = {path.name: path.read_bytes() for path in (ROOT / "server" / model).iterdir()}
    assert "model.safetensors" in expected
    assert {path.name: path.read_bytes() for path in (site / model).iterdir()} == expected


def test_the_playground_comes_whole_with_the_wheel(site: Path) -> None:
    built = Path("forkjoin_server/playground/built")
    expected = {f.name: f.read_bytes() for f in (ROOT / "server" / built).rglob("*") if f.is_file()}
    assert "index.html" in expected
    assert {f.name: f.read_bytes() for f in (site / built).rglob("*") if f.is_file()} == expected


def test_the_embedded_models_tokenizer_loads_from_the_wheel(site: Path) -> None:
    code = """if True:
        from forkjoin_server.start.configuration import EMBEDDED_MODEL
        from transformers import AutoConfig, AutoTokenizer
        tokenizer = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
        print(AutoConfig.from_pretrained(EMBEDDED_MODEL).vocab_size >= len(tokenizer))"""
    assert run(site, code) == "True"


def test_the_client_installs_by_itself_and_is_the_servers(site: Path, tmp_path: Path) -> None:
    alone = installed(ROOT / "client", tmp_path)
    (about,) = alone.glob("*.dist-info")
    assert {path.name for path in alone.iterdir()} == {"forkjoin", about.name}
    asked = re.findall(r"^Requires-Dist: (\w+)[^;\n]*$", (about / "METADATA").read_text(), flags=re.M)
    assert asked == ["httpx", "pydantic"]
    files = {path.relative_to(alone) for path in (alone / "forkjoin").rglob("*.py")}
    assert all((alone / path).read_bytes() == (site / path).read_bytes() for path in files)
    assert run(alone, "import forkjoin; print(forkjoin.__file__)").startswith(str(alone))
