"""Each file of ``examples/`` runs by itself against the real server, and shows what its first lines say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
#: What no reader runs: it helps those that they run.
HELPERS = {
    "README.md",
    "batch.jsonl",
    "gather-threads.mjs",
    "package.json",
    "package-lock.json",
    "tsconfig.json",
}
#: They have an engine in their own process, and ask no server.
IN_PROCESS = {"offline_batch.py", "train_on_trees.py"}
#: The products of the question that all of them ask.
A, B = 482 * 731, 9047 * 36

Run = Callable[[str], str]


@pytest.fixture(scope="module")
def python():
    """A Python with the frameworks, and without vLLM. That they can't be installed is a failure, no skip."""
    done = subprocess.run([ROOT / "scripts/install-examples"], capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr[-3000:]
    return Path(done.stdout.splitlines()[-1]) / "bin/python"


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory):
    """The examples with what they import in Node, compiled."""
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("client-ts", "examples"):
        left_out = shutil.ignore_patterns("node_modules", "dist", "build")
        shutil.copytree(ROOT / name, checkout / name, ignore=left_out)
    for name, *command in (
        ("client-ts", "npm", "ci", "--no-audit", "--no-fund"),
        ("client-ts", "npm", "run", "build"),
        ("examples", "npm", "ci", "--no-audit", "--no-fund"),
        ("examples", "npx", "tsc"),
    ):
        done = subprocess.run(command, cwd=checkout / name, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
    return checkout / "examples"


@pytest.fixture
def run(request, server, tmp_path) -> Run:
    """Runs an example in a process of its own, and returns what it wrote."""
    env = os.environ | {
        "OPENAI_BASE_URL": f"{server}/v1",
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would fetch prices
    }

    def run(name: str) -> str:
        path = EXAMPLES / name
        if name in IN_PROCESS:
            command = [sys.executable, path]
        elif path.suffix in (".py", ".ipynb"):
            env["PYTHONPATH"] = str(ROOT / "client")
            python = request.getfixturevalue("python")
            notebook = ["-m", "jupyter", "execute", f"--output={tmp_path / name}"]
            command = [python, *(notebook if path.suffix == ".ipynb" else []), path]
        elif path.suffix in (".mjs", ".ts"):
            built = name if path.suffix == ".mjs" else f"build/{path.stem}.js"
            command = ["node", request.getfixturevalue("node_folder") / built]
        else:
            command = [path]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return (tmp_path / name).read_text() if path.suffix == ".ipynb" else done.stdout

    return run


def _saved(said: str, threads: int = 2) -> None:
    """It says what forking saved."""
    found = re.search(rf"^{threads} threads: (\d+) steps instead of (\d+)$", said, flags=re.MULTILINE)
    assert found is not None, said
    assert int(found[1]) < int(found[2])


def _joined(said: str) -> None:
    """It shows the answer that both threads came to."""
    assert re.search(rf"^a={A} \(\d\)\nb={B} \(\d\)$", said, flags=re.MULTILINE), said
    _saved(said)


def _streams(said: str) -> None:
    """It shows threads while they write, in turns, before the answer."""
    writers = re.findall(r"^thread (\d): ", said, flags=re.MULTILINE)
    assert writers != sorted(writers)
    assert f"thread 0: a:{A}\n" in said
    assert f"thread 1: b:{B}\n" in said
    _joined(said)


def _shows_texts(said: str) -> None:
    """It shows what each thread wrote."""
    assert re.search(
        rf"--- thread 0: a=482\*731.*\na:{A}\n.*--- thread 1: b=9047\*36.*\nb:{B}\n", said, flags=re.S
    )
    _joined(said)


def _compares(said: str) -> None:
    forked, sequential = said.split("--- sequential")
    assert "thread 1: b=9047*36" in forked
    _joined(forked)
    assert f"a={A}" in sequential
    assert re.search(r"^0 threads: (\d+) steps instead of \1$", sequential, flags=re.MULTILINE)


def _types(said: str) -> None:
    assert said.count("--- thread") == 2
    assert f"a:{A}" in said
    assert f"{{'a': {A}, 'b': {B}}}" in said


def _is_the_wire(said: str) -> None:
    *chunks, last, done = re.findall(r"^data: (.+)$", said, flags=re.MULTILINE)
    assert done == "[DONE]"
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert f"a={A}" in "".join(delta.get("content") or "" for delta in deltas)
    assert {t["index"] for delta in deltas for t in delta.get("threads", [])} == {0, 1}
    assert json.loads(last)["usage"]["forkjoin"]["num_threads"] == 2


def _checks_itself(said: str) -> None:
    assert said.count("--- work out") == said.count("--- check") == 2
    assert f"a={A}: checked\nb={264 * 905}: checked\n" in said
    _saved(said, threads=4)


def _answers_all(said: str) -> None:
    first, second, third = said.split("--- ")[1:]
    assert (first.split()[0], second.split()[0], third.split()[0]) == ("2", "0", "3")
    assert f"a={A}" in first
    assert f"b={B}" in first
    assert f"a={7 * 8}" in second
    assert f"b={264 * 905}" in second
    assert f"a={613 * 52}" in third
    assert f"b={4821 * 37}" in third
    assert f"c={905 * 264}" in third


def _spawns_agents(said: str) -> None:
    """Three agents are spawned, find their products, and are waited for."""
    products = {"/root/1": f"a:{A}", "/root/2": f"b:{B}", "/root/3": f"c:{218 * 654}"}
    spawned = re.findall(
        r"^/root: spawn_agent \{'agent_name': '(\S+)', 'message': ", said, flags=re.MULTILINE
    )
    assert spawned == list(products)
    found = dict(re.findall(r"^(/root/\d) found (\S+)$", said, flags=re.MULTILINE))
    assert found == products
    waits = f"/root: wait_agent {{'agent_names': {list(products)}}}"
    assert all(said.index(f"{name} found") < said.index(waits) for name in products)
    assert re.search(rf"^a={A} \(\d\)\nb={B} \(\d\)\nc={218 * 654} \(\d\)$", said, flags=re.MULTILINE), said


def _learns(said: str) -> None:
    """Its loss falls at each step, and more of its new answers are right than before."""
    before = re.search(r"^before: (\d+) of (\d+) right, with (\d+) threads$", said, flags=re.MULTILINE)
    after = re.search(r"^after: (\d+) of (\d+) right$", said, flags=re.MULTILINE)
    assert before is not None, said
    assert after is not None, said
    losses = [float(loss) for loss in re.findall(r"^step \d: loss (\S+)$", said, flags=re.MULTILINE)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
    assert int(before[3]) > int(before[1]), "answers fork"
    assert int(after[1]) > int(before[1])


def _draws(notebook: str) -> None:
    outputs = [out for cell in json.loads(notebook)["cells"] for out in cell.get("outputs", [])]
    said = "".join("".join(out["text"]) for out in outputs if out["output_type"] == "stream")
    assert re.search(r"joins \[0, 1\]\n", said)
    assert f"a={A}" in said
    assert f"c={B}" in said
    _saved(said)
    (picture,) = ["".join(out["data"]["image/svg+xml"]) for out in outputs if "data" in out]
    assert "482*731" in picture
    assert "9047*36" in picture


#: What each shows.
SHOWS: dict[str, Callable[[str], None]] = {
    "agent_that_forks.py": _checks_itself,
    "forkjoin.ipynb": _draws,
    "offline_batch.py": _answers_all,
    "train_on_trees.py": _learns,
    "with_curl.sh": _is_the_wire,
    "with_httpx.py": _streams,
    "with_langchain.py": _shows_texts,
    "with_litellm.py": _shows_texts,
    "with_openai.mjs": _streams,
    "with_openai.py": _compares,
    "with_openai_agents.py": _spawns_agents,
    "with_pydantic_ai.py": _types,
    "with_python_client.py": _streams,
    "with_typescript_client.ts": _streams,
}


@pytest.mark.parametrize("name", SHOWS)
def test_an_example_runs_and_shows_what_it_is_there_for(name, run):
    SHOWS[name](run(name))


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.S)


def test_the_tutorial_for_javascript_runs_as_written(node_folder, server):
    whole, streamed = (
        _node(node_folder, f"tutorial{i}.mjs", text, server)
        for i, text in enumerate(_blocks("javascript.md", "js"))
    )
    assert re.search(r"^thread 1: c=9047\*36, \d+ tokens$", whole, flags=re.M)
    assert "num_threads: 2" in whole
    assert re.search(r"^a=482\*731: \d+ characters\nc=9047\*36: \d+ characters$", streamed, flags=re.M)


def test_the_tutorial_for_typescript_compiles_and_runs_as_written(node_folder, server):
    (text,) = _blocks("javascript.md", "ts")
    (node_folder / "tutorial.ts").write_text(text)
    done = subprocess.run(["npx", "tsc"], cwd=node_folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout
    said = _node(node_folder, "build/tutorial.js", (node_folder / "build/tutorial.js").read_text(), server)
    assert "forks into a=482*731 and c=9047*36" in said
    assert re.search(r"^joins \d+ and \d+ tokens$", said, flags=re.M)
    assert re.search(r"^\d+ steps$", said, flags=re.M)


def _node(folder: Path, name: str, text: str, server: str) -> str:
    """What the program ``text`` of the folder with all packages writes, asking ``server``."""
    assert "http://localhost:8000" in text
    (folder / name).write_text(text.replace("http://localhost:8000", server))
    done = subprocess.run(["node", name], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_notebook_is_kept_as_a_run_left_it():
    _draws((EXAMPLES / "forkjoin.ipynb").read_text())


def test_every_file_is_run_and_listed():
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()}
    assert files == SHOWS.keys() | HELPERS, "a new example needs a line in SHOWS, which says what it shows"
    guide = (EXAMPLES / "README.md").read_text()
    assert SHOWS.keys() == set(re.findall(r"^\| \[examples/\S+\]\((\S+)\)", guide, flags=re.MULTILINE))
