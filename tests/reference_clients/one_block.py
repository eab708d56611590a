"""Threads that come one after the other in the parent's context: asked for when all that they need is written.

ThreadWeaver (the loop of its RL training, and the client of its evaluation) and Parallel-R1 prefill that
context again, as this client does. Multiverse, NPR and ASPD stitch the threads' KV, which no client of a stock
server can. What a model would go on to write differs there; the text after which it does is the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tests.reference_clients.completions import OWN_PENALTY, Completions


@dataclass(frozen=True)
class Rules:
    """What a model was trained with. Texts have ``{}`` for what a thread is announced by."""

    trigger: str
    header: str
    joined_header: str
    end: str
    #: Put after a thread that has no end tag of its own.
    close: str
    #: Put after the last thread.
    join: str
    #: After the last of these the threads are announced, each by a match; none: after the last fork.
    opens: str | None = None
    announced: str | None = None
    #: How many threads a fork has, where nothing announces them.
    width: int = 0
    #: Put after each thread.
    tail: str = ""
    #: How deep threads fork.
    max_depth: int = 1
    #: Put where an answer ends that has no more threads to announce, or a thread that is not closed.
    close_block: str = ""
    #: Whether a thread, or the answer outside of threads, ends where it announces none.
    ends_without_outline: bool = False
    #: Whether the threads of one announcement are those of the last ``opens``, whatever was written since.
    announces_again: bool = False
    #: Whether they are read without ``opens``, too, from all after the last fork.
    reads_unopened: bool = False
    #: Whether what is announced twice is two threads.
    keeps_duplicates: bool = False
    #: Stretches of the answer's own text and forks, after which it ends.
    max_turns: int | None = None
    #: What ends the answer, unseen, where it stands outside of threads.
    stop: str | None = None
    #: What follows a join forks nothing up to this, which is put where it ends without.
    summary_end: str | None = None
    #: Parameters of threads, whatever the request's are.
    sampling: Mapping[str, float] = field(default_factory=dict)
    ends_with_an_unclosed_thread: bool = False


THREADWEAVER = Rules(
    trigger="</Outlines>",
    opens="<Outlines>",
    announced=r"<Outline>\s*([0-9]+(?:\.[0-9]+)*)\s*:",
    header="\n<Thread>\n{}:",
    joined_header="<Thread>\n{}:",
    end="</Thread>",
    close="\n</Thread>",
    join="\n",
    close_block="\n</Parallel>",
    announces_again=True,
    max_turns=32,
    ends_with_an_unclosed_thread=True,
)
#: The client that evaluated it, where it differs.
THREADWEAVER_EVAL = replace(
    THREADWEAVER,
    close="</Thread>",
    close_block="",
    announces_again=False,
    reads_unopened=True,
    keeps_duplicates=True,
    ends_without_outline=True,
    max_turns=None,
)
PARALLEL_R1 = Rules(
    trigger="<Parallel>",
    width=2,
    header="<Path>",
    joined_header="<Path>",
    end="</Path>",
    close="</Path>",
    join="</Parallel>\n<Summary>",
    summary_end="</Summary>",
    max_turns=8,
    sampling={"temperature": 1.0},
)
MULTIVERSE = Rules(
    trigger="</Goal>",
    opens="<Goal>",
    announced=r"<Outline>\s*([0-9]+(?:\.[0-9]+)*)\s*:",
    header="\n<Path>\n{}:",
    joined_header="<Path>\n{}:",
    end="</Path>",
    close="\n</Path>",
    tail="\n",
    join="<Conclusion>\n",
    max_depth=6,
)
NPR = Rules(
    trigger="</guideline>",
    opens="<guideline>",
    announced=r"<plan>\s*([0-9]+(?:\.[0-9]+)*)\s*:",
    header="\n<step>\n{}:",
    joined_header="<step>\n{}:",
    end="</step>",
    close="\n</step>",
    tail="\n",
    join="<takeaway>\n",
    max_depth=6,
    keeps_duplicates=True,
    stop="</step>",
    sampling={OWN_PENALTY: 1.02},
    close_block="</takeaway>",
    ends_without_outline=True,
)
ASPD = Rules(
    trigger="<|para|>",
    announced=r"<\|title\|>((?:[^<]|<[^|])*)<\|/title\|>",
    header="<|branch|>{}: ",
    joined_header="<|branch|>{}: ",
    end="<|/branch|>",
    close="<|/branch|>",
    join="<|/para|>\n",
    close_block="<|/para|>",
    ends_without_outline=True,
)


class OneBlock:
    """The client. ``max_tokens``: of each thread."""

    def __init__(self, model: Completions, rules: Rules, max_tokens: int | None = None) -> None:
        self._model = model
        self._rules = rules
        self._max_tokens = max_tokens

    def answer(self, prompt: str) -> str:
        """All that follows ``prompt`` in the end."""
        return self._branch(prompt, "", 0)[0]

    def _branch(self, start: str, path: str, depth: int) -> tuple[str, bool, bool]:
        """What a branch writes after ``start``, whether it has its end tag, and whether the answer ends here."""
        rules, text, since, num_forks, num_turns = self._rules, "", 0, 0, 0
        forks = [rules.trigger] * (depth < rules.max_depth)
        stop = rules.end if depth else rules.stop
        stops = [*forks, stop] if stop is not None else forks
        own = {"max_tokens": self._max_tokens, "sampling": rules.sampling} if depth else {}
        while depth or num_turns != rules.max_turns:
            piece = self._model.write(start + text, stops, branch=path, num_joins=num_forks, **own)
            text += piece.text
            num_turns += 1
            if piece.stop == rules.stop is not None and not depth:
                return text.removesuffix(rules.stop), False, True
            if piece.stop != rules.trigger:
                return text, piece.stop is not None, False
            names = self._announced(text if rules.announces_again else text[since:])
            if not names and rules.ends_without_outline:
                return (text, False, False) if depth else (text + rules.close_block, False, True)
            if not names:
                continue
            threads, is_over = self._threads(start + text, names, f"{path}/{num_forks}", depth)
            num_forks += 1
            text += threads
            if is_over:
                return text + rules.close_block, False, True
            text += rules.join
            if rules.summary_end is not None:
                summary = self._model.write(
                    start + text, [rules.summary_end], branch=path, num_joins=num_forks, **own
                )
                text += summary.text + ("" if summary.stop else rules.summary_end)
            since, num_turns = len(text), num_turns + 1
        return text, False, True

    def _announced(self, text: str) -> list[str]:
        """What announces the threads at the end of ``text``, each once."""
        rules = self._rules
        if rules.announced is None:
            return [""] * rules.width
        if rules.opens is not None:
            is_read = rules.opens in text or rules.reads_unopened
            text = text.rpartition(rules.opens)[2] if is_read else ""
        names = re.findall(rules.announced, text)
        return names if rules.keeps_duplicates else list(dict.fromkeys(names))

    def _threads(self, context: str, names: list[str], fork: str, depth: int) -> tuple[str, bool]:
        """The threads one after the other, and whether the answer ends with them."""
        rules, joined, is_over = self._rules, "", False
        for i, name in enumerate(names):
            header = rules.header.format(name)
            text, is_closed, ends = self._branch(context + header, f"{fork}.{i}", depth + 1)
            joined += header if i == 0 else rules.joined_header.format(name)
            joined += text + ("" if is_closed else rules.close) + rules.tail
            is_over |= ends or (not is_closed and rules.ends_with_an_unclosed_thread)
        return joined, is_over
