"""Trajectories in Multiverse's format, run by the engine and by the reference in transformers.

A trajectory is a list of parts: texts, and ``Split``s into threads, each a trajectory of its own.
The model writes all of it as told, and decides by itself behind the last join.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.engine.stitched_reference import Fork, Run, flatten, logprobs

GAPS = {"fork_gap": 1, "join_gap": 1}
#: What ends a thread and what the engine writes behind each; what it writes behind the last.
END, TAIL, JOIN = "</Path>", "\n", "<Conclusion>\n"
#: Two tokens this close may change places by rounding alone.
TIE_NATS = 1e-4


@dataclass
class Split:
    """A fork; ``label`` tells it from others in the same trajectory."""

    label: str
    threads: list[Trajectory]


Trajectory = list["str | Split"]


def arithmetic(seed: int, length: int) -> str:
    """Something like what the model was trained on."""
    line = f" a={seed}47*36\n{seed}47*6=2082\n"
    return (line * (length // len(line) + 1))[:length]


def split(label: str, lengths: list[int]) -> Split:
    """Threads of these lengths."""
    return Split(label, [[arithmetic(seed, length)] for seed, length in enumerate(lengths, 1)])


def _goal(number: str, parts: Split) -> str:
    names = _names(number, parts)
    outlines = "".join(f"<Outline>\n{n}: {parts.label} {n}\n</Outline>\n" for n in names)
    return f"<Parallel>\n<Goal>\n{outlines}</Goal>"


def _names(number: str, parts: Split) -> list[str]:
    return [f"{number}.{i}" if number else str(i) for i in range(1, len(parts.threads) + 1)]


def _header(name: str) -> str:
    return f"<Path>\n{name}:"


class Driver:
    """Turns a trajectory into scripted parameters for an engine, and into the reference's context."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._encode = engine.tokenizer.encode
        self._script: list[list[Any]] = []
        self._num_scripted = 0

    def params(self, trajectory: Trajectory, num_free: int, **options: Any) -> Any:
        """Parameters under which the model writes ``trajectory`` and ``num_free`` tokens behind it."""
        self._script, self._num_scripted = [], 0
        self._tell(trajectory, "", "", "", "")
        extra = {"script": self._script, "eos": self._engine.eos}
        limit = self._num_scripted + num_free
        return self._engine.params(max_tokens=limit, logprobs=0, ignore_eos=True, extra_args=extra, **options)

    def _tell(self, trajectory: Trajectory, before: str, header: str, number: str, end: str) -> str:
        """Script a branch that starts behind ``before`` and its ``header``.

        Returns what it ends with, in its own context and in the joined one.
        """
        suffix, text = before + header, ""
        ending = header
        for part in trajectory:
            if isinstance(part, str):
                text = part
                continue
            opening = text + _goal(number, part)
            self._say(suffix, opening)
            ending = ""
            for name, thread in zip(_names(number, part), part.threads, strict=True):
                ending = self._tell(thread, opening + "\n", _header(name), name, END)
            suffix, text = ending + TAIL + JOIN, ""
            ending = suffix
        if not end:
            self._script.append([self._encode(suffix)[-48:], None])
            return ending
        self._say(suffix, text + end)
        return ending + text + end

    def _say(self, suffix: str, text: str) -> None:
        self._script.append([self._encode(suffix)[-48:], self._encode(text)])
        self._num_scripted += len(self._encode(text))

    def context(self, prompt: str, trajectory: Trajectory, continuation: list[int]) -> list[Any]:
        """The reference's context tree, the model's own ``continuation`` at its end."""
        parts = self._parts(trajectory, f"<|user|>{prompt}<|assistant|>", "", "")
        parts[-1] = Run([*self._encode(JOIN), *continuation])
        return parts

    def _parts(self, trajectory: Trajectory, opening: str, number: str, end: str) -> list[Any]:
        parts: list[Any] = []
        text = opening
        for part in trajectory:
            if isinstance(part, str):
                text += part
                continue
            # the newline before the first thread stands once in the joined context, for all threads
            parts.append(Run(self._encode(text + _goal(number, part) + "\n")))
            named = zip(_names(number, part), part.threads, strict=True)
            parts.append(
                Fork([self._parts(thread, _header(name), name, END + TAIL) for name, thread in named])
            )
            text = JOIN
        return [*parts, Run(self._encode(text + end))]


@dataclass
class Comparison:
    """What the reference says of tokens that the engine chose."""

    same_tokens: bool
    max_delta: float


def compare(
    model: Any,
    context: list[Any],
    continuation: list[int],
    own: list[float],
    *,
    join_gap: int = GAPS["join_gap"],
    **wrong: bool,
) -> Comparison:
    """Compare ``continuation``, with the engine's ``own`` logprobs, with one pass over ``context``."""
    gaps = GAPS | {"join_gap": join_gap}
    rows = logprobs(model, context, **gaps, **wrong)
    slots = list(flatten(context, **gaps).slots[(len(context) - 1,)])[-len(continuation) :]
    chosen = [rows[s - 1] for s in slots]
    deltas = [abs(float(r[t]) - o) for r, t, o in zip(chosen, continuation, own, strict=True)]
    # a token that ties with the best one is as good
    greedy = [float(r[t]) >= float(r.max()) - TIE_NATS for r, t in zip(chosen, continuation, strict=True)]
    return Comparison(all(greedy), max(deltas))


#: Trajectories by what is special of them.
TRAJECTORIES: dict[str, Trajectory] = {
    "one_thread": ["work\n", split("u", [9])],
    "equal": ["work\n", split("u", [10, 10])],
    "uneven": ["work\n", split("u", [24, 17, 31, 9])],
    "longest_first": ["work\n", split("u", [70, 3, 40])],
    "eight_wide": ["work\n", split("u", [5, 30, 12, 44, 3, 21, 33, 8])],
    "over_many_blocks": ["work\n", split("u", [150, 90, 200])],
    "empty_threads": ["work\n", Split("u", [[""], ["a=1"], [""]])],
    "two_rounds": ["one\n", split("u", [20, 33]), "mid</Conclusion>\n</Parallel>\n", split("v", [9, 40, 21])],
    "three_rounds": ["one\n", split("u", [8, 5]), "two\n", split("v", [3, 16]), "three\n", split("w", [11, 2])],
    "nested": ["one\n", Split("u", [["a\n", split("i", [12, 30]), " so 7\n"], [arithmetic(2, 33)]])],
    "nested_in_both": [
        "one\n",
        Split("u", [["a\n", split("i", [12, 30]), " so\n"], ["b\n", split("j", [5, 9, 40]), " and\n"]]),
    ],
    "nested_twice_in_a_row": [
        "one\n",
        Split("u", [[arithmetic(4, 20)], ["b\n", split("i", [7, 9]), "c\n", split("j", [15, 3]), " then\n"]]),
    ],
    "depth_five": [
        "1\n",
        Split("p", [
            ["2\n", Split("q", [
                ["3\n", Split("r", [
                    ["4\n", Split("s", [["5\n", split("t", [6, 11]), "e\n"], ["x"]]), "d\n"], [arithmetic(3, 9)],
                ]), "c\n"], ["y"],
            ]), "b\n"], [arithmetic(5, 14)],
        ]),
    ],
}  # fmt: skip
