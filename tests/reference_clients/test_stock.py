"""Each published client over stock ``vllm serve``, and our engine: the same text, drawn threads included.

Both are made to write the same: texts are forced, but for the first tokens of threads, and of what follows some
joins, which the model draws at a temperature. What it draws depends on all that it sees, so equal texts are equal
contexts. What follows a stitched join is forced: a plain model would see other KV there.
"""

from __future__ import annotations

import json

import pytest

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_server.start.configuration import EMBEDDED_MODEL
from tests.engine.malformed_cases import (
    MULTIVERSE,
    NODE_1,
    NODE_2,
    NPR,
    PATH_1,
    SUMMARY,
    THREADWEAVER,
    TRACE,
    call,
)
from tests.reference_clients import rounds, voted
from tests.reference_clients.clients import CLIENTS
from tests.reference_clients.completions import Drawn, Scripted, Stock
from tests.reference_clients.stock import model_with, serving

pytestmark = pytest.mark.engine

Script = dict[str, str | Drawn]
#: Tokens that each thread draws.
NUM_DRAWN = 12


def drawn(end: str) -> Drawn:
    return NUM_DRAWN, end


def block(layout) -> Script:
    return layout.script(layout.root(1, 2), dict.fromkeys((1, 2), drawn(layout.end)))


def promise(topic: str) -> str:
    return f'<promise topic="{topic}" tokens="9"/>'


def step(number: int, name: str, depends_on: str = "") -> str:
    """Of MedVerse; what depends on others stands after a stitched join, so it is forced."""
    return f"<Outline> Transient Step {number}: {name}; Dependency: [{depends_on}] </Outline>\n"


def titled(*titles: str) -> str:
    return "".join(f"<|title|>{title}<|/title|>" for title in titles) + "<|para|>"


#: By the dialect, and what else is special.
SCRIPTS: dict[str, Script] = {
    "threadweaver": block(THREADWEAVER) | {"</Thread>\n": drawn("end")},
    # the same block again and again, until the published loop has had its turns
    "threadweaver turns": THREADWEAVER.script(
        THREADWEAVER.root(1), {1: f"a{THREADWEAVER.end}"}, THREADWEAVER.root(1)
    ),
    "threadweaver-eval": {
        "": "<Outline>1: a</Outline><Outline>2: b</Outline><Outline>1: c</Outline></Outlines>",
        "<Thread>\n1:": drawn("</Thread>"),
        "<Thread>\n2:": drawn(""),
    },
    "multiverse": block(MULTIVERSE) | {
        "<Path>\n1:": f"l{MULTIVERSE.root('1.1', '1.2')}",
        "<Path>\n1.1:": drawn("</Path>"),
        "<Path>\n1.2:": drawn("</Path>"),
        "</Path>\n<Conclusion>\n": "so</Path>",
    },
    "npr": block(NPR),
    "parallel-r1": {
        "": "so<Parallel>", "<Path>": drawn("</Path>"), "</Parallel>\n<Summary>": drawn("</Summary>"),
        "</Summary>": "",
    },
    "aspd": {
        "": f"so: {titled('Cats', 'Dogs')}",
        "<|branch|>Cats: ": drawn("<|/branch|>"),
        "<|branch|>Dogs: ": drawn("<|/branch|>"),
        "<|/para|>\n": "That is all.",
    },
    "medverse": {
        "": f"<Plan>\n{step(1, 'a')}{step(2, 'b')}{step(3, 'c', '1, 2')}</Plan>",
        "Transient Step 1: a\n": drawn("</Step>"),
        "Transient Step 2: b\n": drawn("</Step>"),
        "Transient Step 3: c\n": (0, "both</Step>"),
        "<Conclusion>\n": "That is all.</Conclusion>",
    },
    "medverse-eval": {
        "": f"<Plan>\n{step(1, 'a')}{step(2, 'b', '1')}</Plan>",
        "Transient Step 1: a\n": drawn("</Step>"),
        "Transient Step 2: b\n": drawn("</Step>"),
        "<Conclusion>\n": "That is all.</Conclusion>",
    },
    "parathinker": {
        "<think1>": (20, "</think1>"), "<think2>": (8, "</think2>"), "<think3>": (20, "</think3>"), SUMMARY: " 7",
    },
    "apar": {
        "": "1. one[SplitMask]\n\n2. two[SplitMask]\n\nend",
        "1. one[SplitMask][SplitSop]": drawn(": first"),
        "2. two[SplitMask][SplitSop]": drawn(": second"),
    },
    "hpd": {
        "": "title [1]<FORK>box [2]<FORK>.", "title [1]<CHILD>": drawn("Hello"), "box [2]<CHILD>": drawn("World"),
    },
    "apr": {
        "<|assistant|>": TRACE + call((0, 1), (1, 2)),
        NODE_1: drawn(f"\nGoal Reached\n{PATH_1}"),
        NODE_2: (0, "\nNo solution found.\n"),
        "<End Sub Searches>\n": "so",
    },
    "asyncthink": {
        "": "<FORK-1>a</FORK-1><FORK-2>b</FORK-2> so <JOIN-2>",
        "\na<|assistant|>": drawn("<RETURN>A</RETURN>"),
        "\nb<|assistant|>": (0, "<RETURN>B</RETURN>"),
        "<JOIN-2>B</JOIN-2>": "<JOIN-1>",
        "<JOIN-1>A</JOIN-1>": "end",
    },
    "pasta": {
        "": f"{promise('a')} and {promise('b')}.<sync/>",
        f"{promise('a')}<async>": drawn("</async>"),
        f"{promise('b')}<async>": drawn("</async>"),
        "<sync/>": "That is all.",
    },
    "skeleton": {"<|assistant|>": "1. One\n2. Two", "1. One: ": drawn("."), "2. Two: ": drawn(".")},
    "ssft": {
        f"<think{n}>\n": drawn(rf"\boxed{{{result}}}") for n, result in enumerate((1, 2, 2, 3, 2, 1), 1)
    },
    # of each round, and of the answer behind them
    "pacore": {"q<|assistant|>": drawn(".</think>so"), "solution.<|assistant|>": drawn("</think>then")},
    "explicit": {"": drawn("")},
}  # fmt: skip


#: Where nothing that is drawn comes into the answer: what returns is forced.
UNSEEN = {"threadweaver turns", "asyncthink", "apr"}


#: The field that requests have, where theirs is not empty.
ASKED = {"pacore": {"rounds": list(rounds.PACORE.widths)}}


def spoken(name: str) -> Dialect:
    """As it is; but of ParaThinker three paths, without their embeddings: a model of its own has these."""
    dialect = load(name)
    if name != "parathinker":
        return dialect
    return Dialect.model_validate(dialect.model_dump() | {"needs_model_attribute": None, "width": 3})


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    embedded = json.loads((EMBEDDED_MODEL / "tokenizer.json").read_text())
    known = {token["content"] for token in embedded["added_tokens"]}
    tags = dict.fromkeys(tag for name in builtin_names() for tag in load(name).control_tokens)
    return model_with(tmp_path_factory.mktemp("model"), [tag for tag in tags if tag not in known])


@pytest.fixture(scope="module")
def stock(model, tmp_path_factory):
    """The address of stock ``vllm serve``."""
    with serving(model, tmp_path_factory.mktemp("stock") / "log") as url:
        yield url


@pytest.fixture(scope="module")
def engine(model):
    """Ours, with the worker that stitched joins need."""
    from tests.engine.harness import Engine
    from tests.reference_clients.forced import Forced

    return Engine(load("multiverse"), model, logits_processors=[Forced])


def ours(engine, name: str, prompt: str, **options) -> str:
    """What our engine answers."""
    encode = engine.tokenizer.encode
    script = [
        [encode(end), *((text[0], encode(text[1])) if isinstance(text, tuple) else (0, encode(text)))]
        for end, text in SCRIPTS[name].items()
    ]
    extra = {"script": json.dumps(script), "eos": engine.eos}
    with engine.speaking(spoken(name.partition(" ")[0])):
        (answer,) = engine.run([encode(prompt)], engine.params(extra_args=extra, **options))
    assert engine.snapshot() == engine.baseline
    return answer.text


def theirs(engine, stock, name: str, prompt: str, **options) -> str:
    """What the published client answers, asking stock ``vllm serve``."""
    encode = engine.tokenizer.encode
    model = Stock(stock, Scripted(SCRIPTS[name], encode), encode, engine.eos, **options)
    return CLIENTS[name.partition(" ")[0]](model, prompt, None)


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "explicit"])
def test_the_published_client_over_stock_vllm_writes_what_our_engine_does(name, engine, stock):
    prompt, options = "<|user|>q<|assistant|>", {"temperature": 1.5, "seed": 7}
    text = theirs(engine, stock, name, prompt, **options)
    assert ours(engine, name, prompt, forkjoin=ASKED.get(name, {}), **options) == text
    if name not in UNSEEN:
        assert theirs(engine, stock, name, prompt, **options | {"seed": 8}) != text


def test_a_vote_over_stock_vllm_is_what_our_engine_answers(engine, stock):
    prompt, options = "<|user|>a=48*36<|assistant|>", {"temperature": 1.5, "seed": 7}
    encode, result = engine.tokenizer.encode, "[0-9]"
    model = Stock(stock, Scripted(SCRIPTS["explicit"], encode), encode, engine.eos, **options)
    text = voted.answer(model, [prompt] * 5, result)
    vote = {"best_of": 5, "vote": result}
    assert ours(engine, "explicit", prompt, forkjoin=vote, **options) == text
