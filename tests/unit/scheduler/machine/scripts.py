"""What the branches of random families would write if they were let, in the words of each built-in dialect."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import strategies as st

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.files import load
from forkjoin_scheduler.dialects.patterns import fill
from forkjoin_scheduler.families.family import Branch
from forkjoin_scheduler.request.options import CompiledBranch, CompiledOptions
from tests.unit.scheduler.machine.stepping import Play

#: They end the request.
STOPS = "!?"
#: What is written behind a script that does not end.
_FILLER = "z"


@dataclass(frozen=True)
class Script:
    """``text``, calls among it, and what the threads of each fork write; behind a last one, for ever."""

    text: str
    forks: list[list[Script]] = field(default_factory=list)


@dataclass(frozen=True)
class Speech:
    """How a dialect calls for its ``number``-th fork, into ``width`` threads, and how deep it nests here."""

    call: Callable[[int, int], str] | None
    widths: tuple[int, int]
    max_forks: int = 2
    depth: int = 1
    prompt: str = "Q"
    #: How threads end without their end tag.
    ends: str = "\0"
    options: Callable[[int], CompiledOptions] | None = None
    #: Whether the threads of a fork may start in stages.
    has_stages: bool = False
    #: How many threads the rounds behind the first have.
    then: tuple[int, ...] = ()


def _steps(_: int, width: int) -> str:
    """A plan in which each second step depends on the one before, and each third on an unknown one, too."""
    wanted = [f"{n - 1}, 9" if n % 3 == 0 else f"{n - 1}" if n % 2 == 0 else "" for n in range(1, width + 1)]
    steps = "".join(f"Transient Step {n}: a; Dependency: [{d}]\n" for n, d in enumerate(wanted, 1))
    return f"<Plan>{steps}</Plan>"


def _outlines(opens: str, one: str, closes: str) -> Callable[[int, int], str]:
    return lambda _, width: opens + "".join(one.format(n) for n in range(1, width + 1)) + closes


_APR_PROMPT = "<s>Moving to Node #0\nCurrent State: 39:[36, 50], Operations: []"
_APR_CALL = _outlines(
    "<Calling Sub Searches>\n",
    "<Start Sub Search {} at level 1> Moving to Node #0\n",
    "<End Calling Sub Searches>\n\0",
)

SPEECHES = {
    "threadweaver": Speech(_outlines("<Outlines>", "<Outline>{}: a</Outline>", "</Outlines>"), (1, 3)),
    "threadweaver-eval": Speech(_outlines("<Outlines>", "<Outline>{}: a</Outline>", "</Outlines>"), (1, 3)),
    "multiverse": Speech(_outlines("<Goal>", "<Outline>{}: a</Outline>", "</Goal>"), (1, 3), depth=3),
    "npr": Speech(_outlines("<guideline>", "<plan>{}: a</plan>", "</guideline>"), (1, 3)),
    "aspd": Speech(_outlines("", "<|title|>{}<|/title|>", "<|para|>"), (1, 3)),
    "medverse": Speech(_steps, (1, 4), has_stages=True),
    "medverse-eval": Speech(_steps, (1, 4)),
    "parallel-r1": Speech(lambda *_: "<Parallel>", (2, 2)),
    "apar": Speech(lambda *_: "[SplitMask]", (1, 1), max_forks=3, depth=3),
    "hpd": Speech(lambda *_: "<FORK>", (1, 1), max_forks=3),
    "asyncthink": Speech(lambda number, _: f"<FORK-{number}>q</FORK-{number}>", (1, 1), max_forks=3),
    "apr": Speech(_APR_CALL, (1, 3), prompt=_APR_PROMPT),
    "pasta": Speech(lambda number, _: f'<promise topic="{number}" tokens="9"/>', (1, 1), max_forks=3),
    "skeleton": Speech(_outlines("\n", "{}. point\n", "\0"), (2, 3), max_forks=1),
    "parathinker": Speech(None, (4, 4)),
    "ssft": Speech(None, (6, 6)),
    "pacore": Speech(None, (4, 4), then=(2, 1)),
    "openings of a vote": Speech(
        None,
        (2, 5),
        options=lambda width: CompiledOptions(
            best_of=width,
            vote="[0-9]",
            branches=[CompiledBranch("", [ord("a")]), CompiledBranch("", [ord("b")])],
        ),
    ),
    "branches": Speech(
        None,
        (1, 4),
        options=lambda width: CompiledOptions(
            branches=[CompiledBranch(str(n), [ord("a") + n]) for n in range(width)]
        ),
    ),
    "closed branches": Speech(
        None,
        (1, 4),
        options=lambda width: CompiledOptions(
            branches=[CompiledBranch(str(n), [ord("a") + n]) for n in range(width)], closing=[ord("c")]
        ),
    ),
    "best_of": Speech(None, (1, 5), options=lambda width: CompiledOptions(best_of=width, vote="[0-9]")),
    "best_of in waves": Speech(
        None, (1, 5), options=lambda width: CompiledOptions(best_of=width, vote="[0-9]", confidence=1.0)
    ),
}
#: Where the answer is that of the first thread to end, or of whoever runs when another stops it, order matters.
ORDERED = ("parathinker",)


@dataclass
class Case:
    """A request: how it forks, and what its branches write."""

    name: str
    dialect: Dialect | None
    options: CompiledOptions | None
    prompt: str
    script: Script


@st.composite
def cases(draw, names=tuple(SPEECHES)) -> Case:
    name = draw(st.sampled_from(names))
    speech = SPEECHES[name]
    width = draw(st.integers(*speech.widths))
    options = None if speech.options is None else speech.options(width)
    dialect = load(name) if options is None else None
    if dialect is not None and speech.then:
        join = dialect.join.model_copy(update={"then": speech.then})
        dialect = dialect.model_copy(update={"join": join})
    end = None if dialect is None else dialect.thread.end
    stops = STOPS if dialect is None or dialect.join.waits else ""
    votes = "best_of" in name or "vote" in name
    words = st.text("ab \n7", max_size=4) if votes else st.text("ab \n", max_size=4)

    def threads(width: int, depth: int) -> list[Script]:
        return [script(depth, n) for n in range(1, width + 1)]

    def script(depth: int, number: int = 0) -> Script:
        text, forks = draw(words), []
        if number == 0 and speech.call is None:
            forks += [threads(num, 0) for num in (width, *speech.then)]
        for fork in range(1, (draw(st.integers(0, speech.max_forks)) if depth and speech.call else 0) + 1):
            assert speech.call is not None
            here = draw(st.integers(*speech.widths))
            text += speech.call(fork, here) + draw(words)
            forks.append(threads(here, depth - 1))
            if name == "asyncthink" and draw(st.booleans()):
                text += f"<JOIN-{draw(st.integers(1, fork))}>" + draw(words)
            if name == "pasta" and draw(st.booleans()):
                text += "<sync/>" + draw(words)
        if name == "apr" and draw(st.integers(0, 4)) == 0:
            text += "<Sub Searches>" + draw(words)
        if number == 0:
            return Script(text + "\0", forks)
        tag = "\0" if end is None else fill(end, n=str(number))
        returns = {
            "asyncthink": "<RETURN>r",
            "pacore": "</think>",
            "ssft": draw(st.sampled_from([r"\boxed{1}", r"\boxed{2}"])),
            "apr": "Goal Reached\nx Goal Reached",
        }.get(name, "")
        if draw(st.booleans()):
            text += returns
        return Script(text + draw(st.sampled_from([tag, tag, tag, tag, "\0", "", *stops])), forks)

    return Case(name, dialect, options, speech.prompt, script(speech.depth))


class Playing:
    """A case being played: how far each branch has come in its script."""

    def __init__(self, case: Case, **request) -> None:
        self.case = case
        self.play = Play(
            case.dialect,
            options=case.options,
            prompt=case.prompt,
            stop=STOPS,
            tags=("<s>", "<think>"),
            **request,
        )
        self._at: dict[Branch, int] = {}

    def script(self, branch: Branch) -> Script:
        """What ``branch`` would write; of one that a refused fork has brought in another's place, nothing."""
        if branch.parent is None:
            return self.case.script
        forks = self.script(branch.parent).forks
        if SPEECHES[self.case.name].has_stages:  # in which it has no place in its fork; nor do threads fork
            scripts = [script for fork in forks for script in fork]
            return scripts[branch.index] if branch.index < len(scripts) else Script("")
        fork = forks[branch.fork_number] if branch.fork_number < len(forks) else []
        return fork[branch.sibling_index] if branch.sibling_index < len(fork) else Script("")

    def runnable(self) -> list[Branch]:
        """The branches that may write, in outline order."""
        stage = self.play.stage
        return sorted((b for b in stage.contexts if b not in stage.standing), key=lambda b: b.path)

    def next_of(self, branch: Branch, num: int) -> list[int]:
        """The next ``num`` tokens of ``branch``."""
        ids = self.play.tokenizer.encode(self.script(branch).text)[self._at.get(branch, 0) :][:num]
        return ids or self.play.tokenizer.encode(_FILLER) * num

    def step(self, wrote: dict[Branch, int], closes: list[Branch]) -> None:
        """A step in which branches write so many tokens."""
        runs = [(branch, self.next_of(branch, num)) for branch, num in wrote.items()]
        for branch, num_heard in self.play.run(runs, closes):
            self._at[branch] = self._at.get(branch, 0) + num_heard

    def in_turn(self) -> None:
        """Play it to its end, one branch at a time, in outline order."""
        while self.play.finish is None:
            (first, *_) = self.runnable()
            self.step({first: 16}, [])

    def at_random(self, seed: int, *, cancels: bool = False) -> list[str]:
        """Play it to its end in any order; returns the answer so far behind each step."""
        rng, answers, stage = random.Random(seed), [], self.play.stage
        while self.play.finish is None:
            ready, closing = self.runnable(), list(stage.closing)
            assert ready or closing, "nothing can go on"
            some = rng.sample(ready, rng.randint(not closing, len(ready)))
            if cancels and self.play.machine.family.threads and rng.random() < 0.1:
                self.play.cancel(rng.randrange(len(self.play.machine.family.threads)))
            closes = rng.sample(closing, rng.randint(not some, len(closing)))
            self.step({branch: rng.randint(1, 8) for branch in some}, closes)
            answers.append(self.play.answer)
        return answers
