"""Every malformed case, in the words of every dialect: what the model writes, and what must come of it.

A dialect stands for each kind in ``CASES``, or in ``EXCLUDED`` with the reason why that can't be.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: What may be wrong with what a model writes, or too much of it.
KINDS = (
    "no_outline",
    "duplicates",
    "gaps",
    "wrong_dependencies",
    "too_many_threads",
    "thread_eos",
    "thread_length",
    "missing_tags",
    "stray_tags",
    "nested_fork",
    "max_forks",
    "total_tokens",
    "joined_too_long",
)


@dataclass(frozen=True)
class Case:
    """``script``: what the model writes behind a context that ends so; then comes end-of-sequence."""

    script: Mapping[str, str]
    #: The whole answer, what the engine writes included.
    answer: str
    #: How each thread ended, by its number, in order of forking.
    threads: tuple[str, ...] = ()
    #: What is counted, as kind/policy.
    counted: Mapping[str, int] = field(default_factory=dict)
    finish: str = "stop"
    #: The request's ``forkjoin`` field.
    forkjoin: Mapping[str, Any] = field(default_factory=dict)
    #: Tokens that the request may generate behind what it writes first.
    spend: int | None = None
    #: Tokens that the context has room for behind what it writes first.
    room: int | None = None
    #: What stands behind the prompt in each context that a branch goes on from; none: the answer so far.
    contexts: tuple[str, ...] | None = None
    #: The token that ended the answer, which is not shown; none: end of sequence.
    stop: str | None = None


def ends(numbers: Any, how: str) -> tuple[str, ...]:
    return tuple(f"{n} {how}" for n in numbers)


def ends_of_each(numbers: Sequence[Any], hows: str) -> tuple[str, ...]:
    """``hows``: one for each of ``numbers``; if nothing is said, each ends by its own end tag."""
    each = hows.split() if hows else ["stop"] * len(numbers)
    return tuple(f"{n} {how}" for n, how in zip(numbers, each, strict=True))


# ---- numbered threads in a block: ThreadWeaver, Multiverse, NPR ----------------------------------


@dataclass(frozen=True)
class Block:
    """The published layout, and the policies: sequential or end_request, close_thread or end_request."""

    opens: str
    trigger: str
    thread: str
    end: str
    outline: str
    unclosed_outline: str
    tail: str
    join: str
    close: str
    no_outline: str
    unclosed: str
    #: Three threads of ``long`` tokens don't fit in it.
    room: int
    long: int
    is_stitched: bool
    #: Levels of forks; of one, what stands deeper is text.
    max_depth: int = 1
    #: Threads that a fork may start, if not any number.
    widest: int | None = None
    #: Whether a thread's end tag ends the answer outside threads.
    stops_at_end: bool = False
    #: Whether a second outline of one number starts a thread, too.
    keeps_duplicates: bool = False
    #: Whether a thread ends where it may not fork, and not the answer.
    closes_refused: bool = False
    #: Whether a trigger that follows no opening tag of its own forks into the outlines before it once more.
    rereads: bool = False

    def root(self, *numbers: Any) -> str:
        return f"{self.opens}\n" + "".join(self.outline.format(n) for n in numbers) + self.trigger

    def shown(self, root: str, threads: Mapping[Any, str]) -> str:
        return f"{root}\n" + "".join(f"{self.thread}\n{n}:{text}{self.tail}" for n, text in threads.items())

    def script(self, root: str, threads: Mapping[Any, str], after: str = "end") -> dict[str, str]:
        headers = {f"{self.thread}\n{n}:": text for n, text in threads.items()}
        return {"": root, f"{self.end}{self.tail}{self.join}": after} | headers

    def well(self, *numbers: Any) -> dict[Any, str]:
        return {n: f"t{n}{self.end}" for n in numbers}

    def refused(self, root: str, reason: str, policy: str, **more: Any) -> Case:
        """No fork at the end of ``root``."""
        if policy == "end_request":
            return Case({"": f"{root}on"}, root + self.close, (), {f"{reason}/{policy}": 1}, "length", **more)
        return Case({"": f"{root}on"}, f"{root}on", (), {f"{reason}/{policy}": 1}, **more)

    def joined(self, root: str, threads: Mapping[Any, str], after: str = "end", **more: Any) -> Case:
        """All well: the threads run, and ``after`` follows them."""
        answer = self.shown(root, threads) + self.join + after
        return Case(self.script(root, threads, after), answer, ends(threads, "stop"), **more)

    def unclosed_thread(
        self, how: str, finish: str, texts: Mapping[Any, str], limit: int, **more: Any
    ) -> Case:
        """Threads of which some do not close: those that are longer than ``limit``, or without their end."""
        root = self.root(*texts)
        closed = {n: t if self._ends(t, limit) else t[:limit] + f"\n{self.end}" for n, t in texts.items()}
        threads = tuple(f"{n} {'stop' if self._ends(t, limit) else how}" for n, t in texts.items())
        num = sum(t.endswith(how) for t in threads)
        goes_on = self.unclosed == "close_thread"
        return Case(
            self.script(root, texts),
            self.shown(root, closed) + (f"{self.join}end" if goes_on else self.close),
            threads,
            {f"thread_{how}/{self.unclosed}": num},
            "stop" if goes_on else finish,
            **more,
        )

    def _ends(self, text: str, limit: int) -> bool:
        return text.endswith(self.end) and len(text) - len(self.end) < limit

    def cases(self) -> Iterator[tuple[str, Case]]:
        one, two, three = self.root(1), self.root(1, 2), self.root(1, 2, 3)
        a, b = f"a{self.end}", f"b{self.end}"
        for root in (
            f"{self.opens}\n{self.trigger}",
            f"{self.opens}no{self.trigger}",
            f"1: a{self.trigger}",
            self.trigger,
        ):
            yield "no_outline", self.refused(root, "no_outline", self.no_outline)
        yield "no_outline", self._again(one)
        if self.closes_refused:
            yield "no_outline", self._closed(self.root(), "no_outline")
        yield "duplicates", self._duplicates()
        yield "gaps", self.joined(self.root(2, 7), self.well(2, 7))
        yield "gaps", self.joined(self.root(3, 1), self.well(3, 1))
        limit = {"max_threads_per_fork": 2}
        too_many = self.no_outline  # the same of either, in all three
        yield "too_many_threads", self.refused(three, "too_many_threads", too_many, forkjoin=limit)
        if self.widest is not None:
            many = self.root(*range(1, self.widest + 2))
            yield "too_many_threads", self.refused(many, "too_many_threads", too_many)
            if self.closes_refused:
                yield "too_many_threads", self._closed(many, "too_many_threads")
        yield "thread_eos", self.unclosed_thread("eos", "stop", {1: "aa", 2: b, 3: ""}, 99)
        long = {1: "a" * 30 + self.end, 2: b}
        for texts in (long, {1: b, 2: "a" * 30 + self.end}):
            per_thread = {"max_tokens_per_thread": 7}
            yield "thread_length", self.unclosed_thread("length", "length", texts, 7, forkjoin=per_thread)
        # each of these lacks what opens the block, too
        unclosed = f"{self.opens}\n" + "".join(self.unclosed_outline.format(n) for n in (1, 2)) + self.trigger
        yield "missing_tags", self.joined(unclosed, self.well(1, 2))
        stray = {1: f"x{self.thread}{self.opens}y{self.end}", 2: b}
        if not self.stops_at_end:
            after = f"{self.end}{self.close}on"
            yield "stray_tags", self.joined(f"{self.end}{self.thread}{two}", stray, after)
        else:
            root, after = f"{self.thread}{two}", f"{self.close}on"
            answer = self.shown(root, stray) + self.join + after
            script = self.script(root, stray, f"{after}{self.end}on")
            yield "stray_tags", Case(script, answer, ends("12", "stop"), stop=self.end)
        if self.max_depth == 1:
            nested = {1: f"a{self.root('1.1')}b{self.end}", 2: b}
            yield "nested_fork", self.joined(two, nested, counted={"nested_fork/sequential": 1})
        else:
            yield "nested_fork", self._too_deep()
        too_many_forks = {"too_many_forks/sequential": 1}
        once = {"max_forks": 1}
        yield (
            "max_forks",
            self.joined(two, {1: a, 2: b}, f"{one}on", counted=too_many_forks, forkjoin=once),
        )
        yield "max_forks", self.refused(two, "too_many_forks", "sequential", forkjoin={"max_forks": 0})
        yield "total_tokens", self._cut(two, 4, "total_tokens", {1: 40, 2: 40}, spend=8)
        lengths = dict.fromkeys((1, 2, 3), self.long)
        if not self.is_stitched:
            threads = {n: "a" * length + self.end for n, length in lengths.items()}
            yield "joined_too_long", self._outgrown(three, threads)
            return
        # as soon as the threads alone hold as much as the context may
        num = -(-self.room // 3)
        yield "joined_too_long", self._cut(three, num, "joined_too_long", lengths, room=self.room)
        # they would fit, but for the tags around them
        yield (
            "joined_too_long",
            self._outgrown(three, dict.fromkeys((1, 2, 3), "a" * (self.room // 3 - 6) + self.end)),
        )

    def _cut(self, root: str, num: int, reason: str, lengths: Mapping[int, int], **more: Any) -> Case:
        """The request ends when each thread has ``num`` tokens, all that is open closed."""
        texts = {n: "a" * length + self.end for n, length in lengths.items()}
        shown = self.shown(root, dict.fromkeys(lengths, "a" * num + f"\n{self.end}")) + self.close
        counted = {f"{reason}/end_request": 1}
        return Case(self.script(root, texts), shown, ends(lengths, "cancelled"), counted, "length", **more)

    def _outgrown(self, root: str, threads: Mapping[Any, str]) -> Case:
        """The threads come to their end, and have no room behind one another."""
        answer, counted = self.shown(root, threads) + self.close, {"joined_too_long/end_request": 1}
        script = self.script(root, threads)
        return Case(script, answer, ends(threads, "stop"), counted, "length", room=self.room)

    def _again(self, root: str) -> Case:
        """Behind a block that has been joined, a trigger by itself: the block's outlines, or none."""
        block = self.shown(root, self.well(1)) + self.join
        if self.rereads:
            counted = {"unopened_outline/reread": 1, "too_many_forks/sequential": 1}
            answer = block + self.shown(self.trigger, self.well(1)) + self.join + f"{self.trigger}on"
            threads, limit = ends("11", "stop"), {"max_forks": 2}
        else:
            counted = {f"no_outline/{self.no_outline}": 1}
            answer = block + self.trigger + (self.close if self.no_outline == "end_request" else "on")
            threads, limit = ends("1", "stop"), {}
        finish = "stop" if answer.endswith("on") else "length"
        script = self.script(root, self.well(1), f"{self.trigger}on")
        return Case(script, answer, threads, counted, finish, limit)

    def _closed(self, inner: str, reason: str) -> Case:
        """A thread may not fork into ``inner``, and ends there; the other, and what follows, is as ever."""
        root, texts = self.root(1, 2), {1: f"a{inner}on", 2: f"b{self.end}"}
        shown = self.shown(root, {1: f"a{inner}\n{self.end}", 2: texts[2]})
        counted = {f"{reason}/close_thread": 1}
        script = self.script(root, texts)
        return Case(script, f"{shown}{self.join}end", ("1 refused", "2 stop"), counted)

    def _duplicates(self) -> Case:
        root, well = self.root(1, 4, 1, 1), self.well(1, 4)
        if not self.keeps_duplicates:
            return self.joined(root, well, counted={"duplicate_outline/drop": 2})
        again = "".join(f"{self.thread}\n1:{well[1]}{self.tail}" for _ in range(2))
        answer = f"{self.shown(root, well)}{again}{self.join}end"
        counted = {"duplicate_outline/keep": 2}
        return Case(self.script(root, well), answer, ends("1411", "stop"), counted)

    def _too_deep(self) -> Case:
        most = self.max_depth
        levels = [".".join("1" * depth) for depth in range(1, most + 2)]
        script = self.script(self.root(1), {}, after=f"e{self.end}")
        answer = plain = f"p{self.root(levels[most])}p{self.end}"
        for depth in range(most, 0, -1):
            text = f"l{self.root(levels[depth])}" if depth < most else plain
            script[f"{self.thread}\n{levels[depth - 1]}:"] = text
            inner = answer if depth == most else f"l{answer}"
            answer = (
                self.shown(self.root(levels[depth - 1]), {levels[depth - 1]: inner})
                + self.join
                + f"e{self.end}"
            )
        counted, threads = {"nested_fork/sequential": 1}, ends(levels[:most], "stop")
        if self.stops_at_end:  # the text behind the outermost join is the same, and ends the answer
            return Case(script, answer.removesuffix(self.end), threads, counted, stop=self.end)
        return Case(script, answer, threads, counted)


THREADWEAVER = Block(
    opens="<Outlines>",
    trigger="</Outlines>",
    thread="<Thread>",
    end="</Thread>",
    outline="<Outline>{}: part</Outline>\n",
    unclosed_outline="<Outline>{}: part\n",
    tail="",
    join="\n",
    close="\n</Parallel>",
    no_outline="sequential",
    unclosed="end_request",
    room=200,
    long=90,
    is_stitched=False,
    rereads=True,
)
MULTIVERSE = Block(
    opens="<Goal>",
    trigger="</Goal>",
    thread="<Path>",
    end="</Path>",
    outline="<Outline>\n{}: part\n</Outline>\n",
    unclosed_outline="<Outline>\n{}: part\n",
    tail="\n",
    join="<Conclusion>\n",
    close="</Parallel>",
    no_outline="sequential",
    unclosed="close_thread",
    room=200,
    long=90,
    is_stitched=True,
    max_depth=6,
    widest=50,
)
NPR = Block(
    opens="<guideline>",
    trigger="</guideline>",
    thread="<step>",
    end="</step>",
    outline="<plan>{}: part</plan>\n",
    unclosed_outline="<plan>{}: part\n",
    tail="\n",
    join="<takeaway>\n",
    close="</takeaway>",
    no_outline="end_request",
    unclosed="close_thread",
    room=1100,
    long=400,
    is_stitched=True,
    max_depth=6,
    widest=5,
    stops_at_end=True,
    keeps_duplicates=True,
    closes_refused=True,
)

# ---- paths of a fixed width: Parallel-R1, ParaThinker --------------------------------------------


def parallel_r1() -> Iterator[tuple[str, Case]]:
    join = "</Parallel>\n<Summary>"

    def case(
        path: str, shown: str, how: str = "stop", *, root="so", after="both</Summary>", num=2, **more: Any
    ) -> Case:
        script = {"": f"{root}<Parallel>", "<Path>": path, join: after}
        answer = f"{root}<Parallel>" + f"<Path>{shown}" * num + join + after
        if "</Summary>" not in after:  # it ends by an end of sequence, and the model goes on, to another
            answer += "</Summary>fin"
            script[f"{after}</Summary>"] = "fin"
            more["counted"] = dict(more.get("counted", {})) | {"summary_eos/close_summary": 1}
        return Case(script, answer, ends(range(1, num + 1), how), **more)

    well = "ab</Path>"
    yield "too_many_threads", case(well, well, num=1, forkjoin={"max_threads_per_fork": 1})
    yield "thread_eos", case("ab", well, "eos", counted={"thread_eos/close_thread": 2})
    counted = {"thread_length/close_thread": 2}
    yield (
        "thread_length",
        case("abcd", well, "length", counted=counted, forkjoin={"max_tokens_per_thread": 2}),
    )
    unopened = f"so<Path>ab</Path><Path>cd</Path>{join}both</Summary>"
    yield "missing_tags", Case({"": unopened}, unopened)
    yield "missing_tags", case(well, well, after="both")
    stray = "x<Path>y</Summary></Parallel>z</Path>"
    yield "stray_tags", case(stray, stray, root="</Path>so</Parallel>", after="both</Path></Parallel>on")
    nested = "a<Parallel>b</Path>"
    yield "nested_fork", case(nested, nested, counted={"nested_fork/sequential": 2})
    # nor does a summary fork
    nested = {"nested_fork/sequential": 1}
    yield "nested_fork", case(well, well, after="a<Parallel>b</Summary>", counted=nested)
    counted = {"too_many_forks/sequential": 1}
    again = "both</Summary><Parallel>on"
    yield "max_forks", case(well, well, after=again, counted=counted, forkjoin={"max_forks": 1})
    yield "max_forks", Case({"": "so<Parallel>on"}, "so<Parallel>on", (), counted, forkjoin={"max_forks": 0})
    script = {"": "so<Parallel>", "<Path>": "a" * 40}
    counted = {"total_tokens/end_request": 1}
    shown = "so<Parallel><Path>aaaa</Path><Path>aaaa</Path></Parallel>"
    yield "total_tokens", Case(script, shown, ends("12", "cancelled"), counted, "length", spend=8)
    long = "a" * 150 + "</Path>"
    counted = {"joined_too_long/end_request": 1}
    script = {"": "so<Parallel>", "<Path>": long}
    shown = f"so<Parallel><Path>{long}<Path>{long}</Parallel>"
    yield "joined_too_long", Case(script, shown, ends("12", "stop"), counted, "length", room=200)


# ---- steps that depend on others: MedVerse -------------------------------------------------------


def medverse() -> Iterator[tuple[str, Case]]:
    end, close, after = "</Step>", "\n</Execution>", "\n</Execution>\n<Conclusion>\n"

    def step(number: int) -> str:
        return f" Transient Step {number}: s"

    def planned(steps: Mapping[int, str] | str, num_repeated: int = 0) -> str:
        """``steps``: what each depends on."""
        steps = {int(n): "" for n in steps} if isinstance(steps, str) else steps
        outlines = [f"<Outline>{step(n)}; Dependency: [{d}] </Outline>\n" for n, d in steps.items()]
        return f"go<Plan>\n{''.join(outlines + outlines[:num_repeated])}</Plan>"

    def shown(root: str, texts: Mapping[int, str]) -> str:
        return f"{root}\n<Execution>\n" + "\n".join(f"<Step>{step(n)}\n{t}" for n, t in texts.items())

    def case(
        root: str,
        wrote: Mapping[int, str],
        how: str = "",
        *,
        so: str = "so",
        goes_on: bool = True,
        **more: Any,
    ) -> Case:
        threads = ends_of_each(list(wrote), how)
        script = {"": root, after: so} | {f"<Step>{step(n)}\n": text for n, text in wrote.items()}
        closed = more.pop("closed", wrote)
        answer = shown(root, closed) + (f"{after}{so}" if goes_on else close)
        return Case(script, answer, threads, finish="stop" if goes_on else "length", **more)

    def refused(root: str, reason: str, **more: Any) -> Case:
        return Case({"": f"{root}on"}, f"{root}on", (), {f"{reason}/sequential": 1}, **more)

    well, chain = {1: f"aa{end}", 2: f"b{end}"}, planned({1: "", 2: "1"})
    for root in ("<Plan></Plan>", "<Plan>Transient Step 1: s</Plan>", "Step 1: s; Dependency: []</Plan>"):
        yield "no_outline", refused(root, "no_outline")
    yield "duplicates", case(planned("12", 2), well, counted={"duplicate_outline/drop": 2})
    yield "gaps", case(planned({2: "", 7: "2"}), {2: f"aa{end}", 7: f"b{end}"})
    wrong = {"wrong_dependency/drop": 3}
    yield "wrong_dependencies", case(planned({1: "1, 2", 2: "1, 9"}), well, counted=wrong)
    yield (
        "too_many_threads",
        refused(planned("123"), "too_many_threads", forkjoin={"max_threads_per_fork": 2}),
    )
    eos = {"counted": {"thread_eos/close_thread": 1}, "closed": {1: f"x\n{end}", 2: f"b{end}"}}
    for root in (planned("12"), chain):
        yield "thread_eos", case(root, {1: "x", 2: f"b{end}"}, "eos stop", **eos)
    length = {"counted": {"thread_length/close_thread": 1}, "forkjoin": {"max_tokens_per_thread": 7}}
    for root in (planned("12"), chain):
        long = {1: "a" * 30 + end, 2: f"b{end}"}
        yield "thread_length", case(root, long, "length stop", closed=well | {1: f"aaaaaaa\n{end}"}, **length)
    untagged = chain.replace("<Outline>", "").replace("</Outline>", "").replace("<Plan>", "")
    yield "missing_tags", case(untagged, well, counted={"unopened_outline/read_all": 1})
    stray = {1: f"x<Execution></Execution>y{end}", 2: f"<Step>b{end}"}
    yield "stray_tags", case(f"{end}</Execution>{chain}", stray, so=f"{end}<Step>on")
    nested = {1: f"x{chain}y{end}", 2: f"b{end}"}
    yield "nested_fork", case(planned("12"), nested, counted={"nested_fork/sequential": 1})
    again = {"counted": {"too_many_forks/sequential": 1}, "forkjoin": {"max_forks": 1}}
    yield "max_forks", case(chain, well, so=f"{planned('3')}on", **again)
    yield "max_forks", refused(chain, "too_many_forks", forkjoin={"max_forks": 0})
    long = dict.fromkeys((1, 2, 3), "a" * 90 + end)
    for kind, num, more in (("total_tokens", 4, {"spend": 12}), ("joined_too_long", 67, {"room": 200})):
        cut = dict.fromkeys((1, 2, 3), "a" * num + f"\n{end}")
        counted = {f"{kind}/end_request": 1}
        how = "cancelled " * 3
        yield kind, case(planned("123"), long, how, closed=cut, goes_on=False, counted=counted, **more)
    # the steps would fit, but for what stands around them
    long = dict.fromkeys((1, 2, 3), "a" * 55 + end)
    counted = {"joined_too_long/end_request": 1}
    yield "joined_too_long", case(planned("123"), long, goes_on=False, counted=counted, room=200)


# ---- titled branches: ASPD -----------------------------------------------------------------------


def aspd() -> Iterator[tuple[str, Case]]:
    end, close = "<|/branch|>", "<|/para|>"

    def announced(titles: str) -> str:
        return "".join(f"<|title|>{title}<|/title|>" for title in titles) + "<|para|>"

    def shown(root: str, branches: Mapping[str, str]) -> str:
        return root + "".join(f"<|branch|>{title}: {text}" for title, text in branches.items())

    def case(
        root: str,
        wrote: Mapping[str, str],
        how: str = "",
        *,
        after: str = "so",
        goes_on: bool = True,
        **more: Any,
    ) -> Case:
        threads = ends_of_each(list(wrote), how)
        script = {"": root, f"{end}{close}\n": after} | {
            f"<|branch|>{t}: ": text for t, text in wrote.items()
        }
        closed = more.pop("closed", wrote)
        answer = shown(root, closed) + close + (f"\n{after}" if goes_on else "")
        return Case(script, answer, threads, finish="stop" if goes_on else "length", **more)

    def refused(root: str, reason: str, **more: Any) -> Case:
        counted = {f"{reason}/sequential": 1}
        return Case({"": f"{root}on"}, f"{root}on", (), counted, **more)

    two, three = announced("ab"), announced("abc")
    well = {"a": f"aa{end}", "b": f"b{end}"}
    for root in ("<|para|>", "x<|title|>a<|para|>"):
        yield "no_outline", Case({"": f"{root}on"}, root + close, (), {"no_outline/end_request": 1}, "length")
    yield "duplicates", case(announced("abab"), well, counted={"duplicate_outline/drop": 2})
    yield "too_many_threads", refused(three, "too_many_threads", forkjoin={"max_threads_per_fork": 2})
    eos = {"counted": {"thread_eos/close_thread": 1}, "closed": {"a": f"x{end}", "b": f"b{end}"}}
    yield "thread_eos", case(two, {"a": "x", "b": f"b{end}"}, "eos stop", **eos)
    length = {"counted": {"thread_length/close_thread": 1}, "forkjoin": {"max_tokens_per_thread": 7}}
    long = {"a": "a" * 30 + end, "b": f"b{end}"}
    yield "thread_length", case(two, long, "length stop", closed=well | {"a": "a" * 7 + end}, **length)
    # an announcement that does not end is none
    yield "missing_tags", case("<|title|>x<|title|>a<|/title|><|title|>b<|/title|><|para|>", well)
    stray = {"a": f"x<|title|><|branch|>y{end}", "b": f"b{end}"}
    yield "stray_tags", case(f"{end}{close}<|/title|>{two}", stray, after=f"{end}{close}on")
    nested = {"a": f"x{announced('q')}y{end}", "b": f"b{end}"}
    yield "nested_fork", case(two, nested, counted={"nested_fork/sequential": 1})
    again = {"counted": {"too_many_forks/sequential": 1}, "forkjoin": {"max_forks": 1}}
    yield "max_forks", case(two, well, after=f"{announced('c')}on", **again)
    yield "max_forks", refused(two, "too_many_forks", forkjoin={"max_forks": 0})
    long = dict.fromkeys("abc", "a" * 90 + end)
    for kind, num, more in (("total_tokens", 4, {"spend": 12}), ("joined_too_long", 67, {"room": 200})):
        cut = dict.fromkeys("abc", "a" * num + end)
        counted = {f"{kind}/end_request": 1}
        how = "cancelled " * 3
        yield kind, case(three, long, how, closed=cut, goes_on=False, counted=counted, **more)
    # the branches would fit, but for what stands around them
    long = dict.fromkeys("abc", "a" * 62 + end)
    counted = {"joined_too_long/end_request": 1}
    yield "joined_too_long", case(three, long, goes_on=False, counted=counted, room=200)


SUMMARY = "<summary>By analyzing multiple reasoning processes above, I concluded that: The final answer is"


def parathinker() -> Iterator[tuple[str, Case]]:
    def case(paths: list[str], shown: list[str], hows: str, after: str = " 7</summary>", **more: Any) -> Case:
        script = {"": "plain", SUMMARY: after} | {f"<think{n}>": text for n, text in enumerate(paths, 1)}
        stop = "</summary>" if after.endswith("</summary>") else None
        after = after.removesuffix("</summary>")
        answer = "".join(f"<think{n}>{text}" for n, text in enumerate(shown, 1)) + SUMMARY + after
        threads = tuple(f"{n} {how}" for n, how in enumerate(hows.split(), 1))
        return Case(script, answer, threads, stop=stop, **more)

    long = "a" * 20
    paths = [long, "bb</think2>", long]
    limit = {"max_threads_per_fork": 2}
    yield "too_many_threads", case(paths, ["aaa", paths[1]], "cut stop", forkjoin=limit)
    counted = {"thread_eos/close_thread": 1}
    yield "thread_eos", case([long, "bb", long], ["aaa", "bb", "aaa"], "cut eos cut", counted=counted)
    counted = {"thread_length/close_thread": 3}
    limit = {"max_tokens_per_thread": 2}
    yield (
        "thread_length",
        case([long] * 3, ["aa"] * 3, "length length length", counted=counted, forkjoin=limit),
    )
    yield "missing_tags", case(paths, ["aaa", paths[1], "aaa"], "cut stop cut", after=" 7")
    # what ends another path, the reasoning or the summary ends a path, too
    for end in ("</think1>", "</think3>", "</think>", "</summary>"):
        stray = [long, f"bb{end}{long}", long]
        yield "stray_tags", case(stray, ["aaa", f"bb{end}", "aaa"], "cut stop cut")
    # what opens another path, or the summary, becomes <think1> in what the path sees, and it goes on
    for opening in ("<think3>", "<summary>"):
        script = {"": "plain", SUMMARY: " 7", "<think1>": long, "<think3>": long}
        script |= {"<think2>": f"b{opening}", "b<think1>": "c</think2>"}
        shown = ["aaaa", f"b{opening}<think1>c</think2>", "aaaa"]
        answer = "".join(f"<think{n}>{text}" for n, text in enumerate(shown, 1)) + SUMMARY + " 7"
        joined = answer.replace(opening + "<think1>", "<think1>").removesuffix(" 7")
        counted, contexts = {"stray_tag/swap": 1}, ("<think2>b<think1>", joined)
        threads = ("1 cut", "2 stop", "3 cut")
        yield "stray_tags", Case(script, answer, threads, counted, contexts=contexts)
    counted = {"too_many_forks/sequential": 1}
    yield "max_forks", Case({"": "plain"}, "plain", (), counted, forkjoin={"max_forks": 0})
    script = {"": "", **{f"<think{n}>": "a" * 300 for n in (1, 2, 3)}}
    for kind, num, more in (("total_tokens", 3, {"spend": 9}), ("joined_too_long", 67, {"room": 200})):
        shown_all = "".join(f"<think{n}>" + "a" * num for n in (1, 2, 3))
        counted = {f"{kind}/end_request": 1}
        yield kind, Case(script, shown_all, ends("123", "cancelled"), counted, "length", **more)


def pacore() -> Iterator[tuple[str, Case]]:
    """Three answers, two, and one (``renamed.py``); all of a round write the same."""
    first = "q: 1=A 2=A 3=A<|assistant|>"
    second = "q: 1=B 2=B<|assistant|>"

    def case(answer: str, hows: str, *texts: str, **more: Any) -> Case:
        a, b, *end = texts
        script = {"": a, first: b} | {more.pop("last", second): text for text in end}
        how = hows.split()
        numbers = [1, 2, 3, 1, 2][: len(how)]
        threads = tuple(f"{n} {end}" for n, end in zip(numbers, how, strict=True))
        return Case(script, answer, threads, contexts=more.pop("contexts", ("", "")), **more)

    stop = "stop stop stop stop stop"
    a, b = "x</think>A", "y</think>B"
    limit = {"max_threads_per_fork": 1}
    one = Case(
        {"": a, "q: 1=A<|assistant|>": b, "q: 1=B<|assistant|>": "C"},
        "C",
        ("1 stop", "1 stop"),
        contexts=("", ""),
        forkjoin=limit,
    )
    yield "too_many_threads", one
    # an answer without </think> is a reference as it is; behind several, what stands behind the last
    yield "missing_tags", case("z</think>C", stop, "A", b, "z</think>C")
    yield "stray_tags", case("C</think>", stop, "<think>x</think></think>A", b, "C</think>")
    counted, limit = {"thread_length/close_thread": 5}, {"max_tokens_per_thread": 1}
    lengths = stop.replace("stop", "length")
    yield "thread_length", case("C", lengths, "AAA", "BBB", "C", counted=counted, forkjoin=limit)
    counted, limit = {"too_many_forks/sequential": 1}, {"max_forks": 1}
    yield (
        "max_forks",
        case("y</think>B", "stop stop stop", a, b, counted=counted, contexts=("",), forkjoin=limit),
    )
    counted = {"total_tokens/end_request": 1}
    script = {"": "a" * 99}
    yield (
        "total_tokens",
        Case(script, "", ends("123", "cancelled"), counted, "length", forkjoin={"max_total_tokens": 9}),
    )
    counted = {"prompt_too_long/end_request": 1}
    script = {"": "a" * 90}
    yield "joined_too_long", Case(script, "", ends("123", "stop"), counted, "length", room=150)


def ssft() -> Iterator[tuple[str, Case]]:
    def opening(n: int) -> str:
        return f"<|im_start|><think{n}>\n"

    def case(texts: list[str], answer: str, hows: str, **more: Any) -> Case:
        script = {"": "plain"} | {opening(n): text for n, text in enumerate(texts, 1)}
        how = hows.split()
        threads = tuple(f"{n} {how[min(n, len(how)) - 1]}" for n in range(1, more.pop("num", 6) + 1))
        return Case(script, answer, threads, **more)

    one, two, none = r"\boxed{1}", r"so \boxed{2}", "?" * 40
    limit = {"max_threads_per_fork": 2}
    yield "too_many_threads", case([none, two], two, "stop", num=2, forkjoin=limit)
    # what has no box has no vote; where most agree, and the first of them is known, the others are cut
    texts = [none, two, two, one, two, none * 2]
    yield "missing_tags", case(texts, two, "stop stop stop stop stop cut")
    counted, limit = {"thread_length/close_thread": 6}, {"max_tokens_per_thread": 3}
    yield "thread_length", case([none] * 6, "???", "length", counted=counted, finish="length", forkjoin=limit)
    stray = f"</think1><think2>{two}"
    yield "stray_tags", case([stray] * 4 + [none] * 2, stray, "stop stop stop stop cut")
    counted = {"too_many_forks/sequential": 1}
    yield "max_forks", Case({"": "plain"}, "plain", (), counted, forkjoin={"max_forks": 0})
    script = {"": "", **{opening(n): "a" * 300 for n in range(1, 7)}}
    counted = {"total_tokens/end_request": 1}
    yield "total_tokens", Case(script, "aaa", ends("123456", "cancelled"), counted, "length", spend=18)
    # a thread that runs into the context's end is an answer that was cut
    counted = {"thread_length/close_thread": 6}
    room = len(opening(1)) + 60
    yield "joined_too_long", Case(script, "a" * 60, ends("123456", "length"), counted, "length", room=room)


# ---- calls: APR ----------------------------------------------------------------------------------

TRACE = (
    "Moving to Node #0\nCurrent State: 11:[3, 4, 4], Operations: []\n"
    "Exploring Operation: 3+4=7, Resulting Numbers: [4, 7]\nGenerated Node #1: 11:[4, 7] Operation: 3+4=7\n"
    "Exploring Operation: 4-3=1, Resulting Numbers: [4, 1]\nGenerated Node #2: 11:[4, 1] Operation: 4-3=1\n"
)
OPENS, CLOSES, RESULTS = "<Calling Sub Searches>", "<End Calling Sub Searches>\n", "<Sub Searches>"
NODE_1 = "Moving to Node #1\nCurrent State: 11:[4, 7], Operations: ['3+4=7']"
NODE_2 = "Moving to Node #2\nCurrent State: 11:[4, 1], Operations: ['4-3=1']"
PATH_1 = f"{NODE_1}\nExploring Operation: 4+7=11\n11,11 equal: Goal Reached"


def searches(*nodes: tuple[int, int]) -> str:
    return "".join(f"<Start Sub Search {n} at level 1> Moving to Node #{node}\n" for n, node in nodes)


def call(*nodes: tuple[int, int]) -> str:
    return f"{OPENS}\n{searches(*nodes)}{CLOSES}"


def results(*found: tuple[int, int, str | None]) -> str:
    """What the searches by number and node found."""
    lines = [
        f"<{'No Solution' if path is None else 'Goal Reached'} in Sub Search {n} at level 1 at Node #{node}>\n"
        + (f"{path}\n" if path else "")
        for n, node, path in found
    ]
    return f"{RESULTS}\n{''.join(lines)}<End Sub Searches>\n"


def apr() -> Iterator[tuple[str, Case]]:
    found_1, found_2 = f"\ntried\n11,11 equal: Goal Reached\n{PATH_1}", "\nNo solution found.\n"
    script = {NODE_1: found_1, NODE_2: found_2, "<End Sub Searches>\n": "so\n"}

    def case(wrote: str, block: str, hows: tuple[str, ...], *, after: str = "so\n", **more: Any) -> Case:
        """``wrote``: what ends with a call, in whose place ``block`` comes."""
        behind = script | {"": TRACE + wrote, "<End Sub Searches>\n": after} | more.pop("script", {})
        more.setdefault("contexts", (TRACE + block,))
        return Case(behind, TRACE + wrote + block + after, hows, **more)

    def ended(wrote: str, counted: dict[str, int], **more: Any) -> Case:
        """The turn ends as it would without fork/join."""
        return Case({"": TRACE + wrote}, TRACE + wrote, (), counted, **more)

    both, block = call((0, 1), (1, 2)), results((0, 1, PATH_1), (1, 2, None))
    stops = ends("01", "stop")
    none = {"no_outline/sequential": 1}
    yield "no_outline", ended(call(), none)
    yield "no_outline", ended(call((0, 8), (1, 9)), none)
    kept = {"duplicate_outline/keep": 1}
    yield "duplicates", case(call((0, 1), (0, 2)), block, ends("00", "stop"), counted=kept)
    # results are numbered by their places
    yield "gaps", case(call((2, 1), (7, 2)), block, ends("27", "stop"))
    # a node that the trace does not know is left out
    dropped = {"unknown_message/drop": 1}
    yield "gaps", case(call((0, 9), (1, 1)), results((0, 1, PATH_1)), ends("1", "stop"), counted=dropped)
    counted = {"too_many_threads/sequential": 1}
    yield "too_many_threads", ended(both, counted, forkjoin={"max_threads_per_fork": 1})
    cut = results((0, 1, None), (1, 2, None))
    counted, limit = {"thread_length/close_thread": 2}, {"max_tokens_per_thread": 8}
    yield "thread_length", case(both, cut, ends("01", "length"), counted=counted, forkjoin=limit)
    yield "missing_tags", ended(searches((0, 1)) + CLOSES, none)
    yield "missing_tags", ended(f"{OPENS}\n{searches((0, 1))}", {})
    yield "stray_tags", ended(f"<End Sub Searches>\n{OPENS}\n", {})
    # results that the model begins itself become a call, again and again, and in searches, too
    swapped = {"stray_tag/swap": 1}
    rest = both.removeprefix(OPENS)
    yield (
        "stray_tags",
        case(
            RESULTS + OPENS + rest,
            block,
            stops,
            script={"": TRACE + RESULTS, OPENS: rest},
            contexts=(TRACE + OPENS, TRACE + block),
            counted=swapped,
        ),
    )
    yield (
        "stray_tags",
        case(
            both,
            results((0, 1, None), (1, 2, None)),
            stops,
            script={NODE_1: f"\nx{RESULTS}", f"x{OPENS}": "\nno\n"},
            contexts=(f"\nx{OPENS}", TRACE + results((0, 1, None), (1, 2, None))),
            counted=swapped,
        ),
    )
    nested = {NODE_1: f"\n{both}"}
    counted = {"nested_fork/sequential": 1}
    yield "nested_fork", case(both, cut, stops, script=nested, counted=counted)
    counted = {"too_many_forks/sequential": 1}
    yield "max_forks", case(both, block, stops, after=both, counted=counted, forkjoin={"max_forks": 1})
    yield "max_forks", ended(both, counted, forkjoin={"max_forks": 0})
    long = {NODE_1: "\n" + "." * 90, NODE_2: "\n" + "." * 90}
    counted = {"total_tokens/end_request": 1}
    # behind the end of sequence, which is taken back, and counted
    root = {"": TRACE + both}
    yield "total_tokens", Case(root | long, TRACE + both, ends("01", "cancelled"), counted, "length", spend=9)
    path = "x" * 500 + "Goal Reached"
    counted = {"joined_too_long/end_request": 1}
    yield (
        "joined_too_long",
        case(
            both,
            results((0, 1, path), (1, 2, None)),
            stops,
            script={NODE_1: f"\nGoal Reached\n{path}"},
            after="",
            contexts=(),
            counted=counted,
            finish="length",
            room=300,
        ),
    )


# ---- the parent goes on: APAR, HPD-Parsing, AsyncThink -------------------------------------------


def spliced(fork: str, child: str, seen: str, gap: str) -> Iterator[tuple[str, Case]]:
    """``seen``: what a thread's prompt has behind the text before; ``gap``: what is put behind a thread."""
    script = {"": f"a{fork}zz", f"a{seen}": "b" * 50}
    # as many as the parent writes, its end of sequence included
    counted, limit = {"thread_length/close_thread": 1}, {"max_tokens_per_thread": 5}
    answer = f"a{fork}{child}bbbbb{gap}zz"
    yield "thread_length", Case(script, answer, ends("1", "length"), counted, forkjoin=limit)
    yield "stray_tags", Case({"": f"a{child}b"}, f"a{child}b")
    script = {"": f"a{fork}z", f"a{seen}": f"b{child}c"}
    yield "stray_tags", Case(script, f"a{fork}{child}b{child}c{gap}z", ends("1", "stop"))
    script = {"": f"a{fork}b{fork}c", f"a{seen}": "x"}
    counted = {"too_many_forks/sequential": 1}
    answer = f"a{fork}{child}x{gap}b{fork}c"
    yield "max_forks", Case(script, answer, ends("1", "stop"), counted, forkjoin={"max_forks": 1})
    # the request itself ends, by an end of sequence that counts, too
    script = {"": f"a{fork}z", f"a{seen}": "b" * 90}
    counted = {"total_tokens/end_request": 1}
    answer = f"a{fork}{child}" + "b" * 10 + f"{gap}z"
    yield "total_tokens", Case(script, answer, ends("1", "cancelled"), counted, "length", spend=11)


def apar() -> Iterator[tuple[str, Case]]:
    fork, child = "[SplitMask]", "[SplitSop]"
    yield from spliced(fork, child, fork + child, "\n\n")

    def level(depth: int) -> str:
        inner = child + level(depth + 1) + "\n\n" if depth < 8 else ""
        return f"{depth}{fork}{inner}z"

    script = {f"{depth - 1}{fork}{child}" if depth else "": f"{depth}{fork}z" for depth in range(9)}
    counted = {"nested_fork/sequential": 1}
    yield "nested_fork", Case(script, level(0), ends("1" * 8, "stop"), counted)


def hpd() -> Iterator[tuple[str, Case]]:
    fork, child = "<FORK>", "<CHILD>"
    yield from spliced(fork, child, child, "")
    script = {"": f"a{fork}z", f"a{child}": f"b{fork}c"}
    counted = {"nested_fork/sequential": 1}
    yield "nested_fork", Case(script, f"a{fork}{child}b{fork}cz", ends("1", "stop"), counted)


def asyncthink() -> Iterator[tuple[str, Case]]:
    def fork(number: int, query: str) -> str:
        return f"<FORK-{number}>{query}</FORK-{number}>"

    def returned(number: int, result: str) -> str:
        return f"<JOIN-{number}>{result}</JOIN-{number}>"

    def worker(query: str) -> str:
        return f"\n{query}<|assistant|>"

    a = {worker("a"): "hm<RETURN>A</RETURN>"}
    b = {worker("b"): "<RETURN>B</RETURN>"}
    none = {"no_outline/sequential": 1}
    for root in ("a</FORK-1>on", "<FORK-1>a</FORK-2>on"):
        yield "no_outline", Case({"": root}, root, (), none)
    root = fork(1, "a") + fork(1, "b")
    counted = {"duplicate_outline/sequential": 1}
    script = {"": f"{root}<JOIN-1>", returned(1, "A"): "end"}
    yield "duplicates", Case(script | a, f"{root}{returned(1, 'A')}end", ends("1", "stop"), counted)
    # a fork that was refused does not stand in the way of the next
    root += fork(2, "c")
    script = {"": f"{root}<JOIN-2>", returned(2, "C"): "<JOIN-1>", returned(1, "A"): "end"}
    answer = f"{root}{returned(2, 'C')}{returned(1, 'A')}end"
    third = {worker("c"): "<RETURN>C</RETURN>"}
    yield "duplicates", Case(script | a | third, answer, ends("12", "stop"), counted)
    root = fork(2, "a") + fork(5, "b")
    script = {"": f"{root}<JOIN-5>", returned(5, "B"): "<JOIN-2>", returned(2, "A"): "end"}
    answer = f"{root}{returned(5, 'B')}{returned(2, 'A')}end"
    yield "gaps", Case(script | a | b, answer, ends("25", "stop"))
    root = fork(1, "a")
    script = {"": f"{root}<JOIN-1>", returned(1, ""): "well"}
    nothing = f"{root}{returned(1, '')}well"
    counted = {"thread_eos/close_thread": 1}
    yield "thread_eos", Case(script | {worker("a"): "hm"}, nothing, ends("1", "eos"), counted)
    counted, limit = {"thread_length/close_thread": 1}, {"max_tokens_per_thread": 6}
    long = {worker("a"): "h" * 90}
    yield "thread_length", Case(script | long, nothing, ends("1", "length"), counted, forkjoin=limit)
    yield "missing_tags", Case(script | {worker("a"): "hm</RETURN>"}, nothing, ends("1", "stop"))
    script = {"": f"<FORK-1>a{fork(2, 'b')}<JOIN-2>", returned(2, "B"): "end"}
    answer = f"<FORK-1>a{fork(2, 'b')}{returned(2, 'B')}end"
    yield "missing_tags", Case(script | b, answer, ends("2", "stop"))
    # what nobody asks for, nobody waits for
    yield "missing_tags", Case({"": f"{root}end"} | long, f"{root}end", ends("1", "cancelled"))
    unknown = {"unknown_thread/sequential": 1}
    stray = "</RETURN></JOIN-1><RETURN><JOIN-7>on"
    yield "stray_tags", Case({"": stray}, stray, (), unknown)
    script = {"": f"{root}<JOIN-1>", returned(1, "A"): "end"}
    answer = f"{root}{returned(1, 'A')}end"
    inside = {worker("a"): "<JOIN-1>x<RETURN>A</RETURN>"}
    yield "stray_tags", Case(script | inside, answer, ends("1", "stop"), unknown)
    # the end of the answer is a text, and nothing behind it is sampled
    yield "stray_tags", Case({"": "so</ANSWER>on"}, "so</ANSWER>")
    answered = {"": f"{root}<JOIN-1>", returned(1, "A"): "so</ANSWER>on"}
    answer_at_end = f"{root}{returned(1, 'A')}so</ANSWER>"
    inside = {worker("a"): "</ANSWER><RETURN>A</RETURN>"}
    yield "stray_tags", Case(answered | inside, answer_at_end, ends("1", "stop"))
    inside = {worker("a"): f"{fork(1, 'x')}<RETURN>A</RETURN>"}
    counted = {"nested_fork/sequential": 1}
    yield "nested_fork", Case(script | inside, answer, ends("1", "stop"), counted)
    root = fork(1, "a") + fork(2, "b") + "<JOIN-2>"
    script = {"": f"{root}<JOIN-1>", returned(1, "A"): "end"}
    counted = {"too_many_forks/sequential": 1} | unknown
    answer = f"{root}{returned(1, 'A')}end"
    yield "max_forks", Case(script | a, answer, ends("1", "stop"), counted, forkjoin={"max_forks": 1})
    root = f"{fork(1, 'a')}<JOIN-1>"
    counted = {"total_tokens/end_request": 1}
    yield "total_tokens", Case({"": root} | long, root, ends("1", "cancelled"), counted, "length", spend=30)
    found = "x" * 300
    script = {"": root, worker("a"): f"<RETURN>{found}</RETURN>"}
    counted, answer = {"joined_too_long/end_request": 1}, fork(1, "a") + returned(1, found)
    yield "joined_too_long", Case(script, answer, ends("1", "stop"), counted, "length", room=200)


def pasta() -> Iterator[tuple[str, Case]]:
    def promise(topic: str) -> str:
        return f'<promise topic="{topic}" tokens="9"/>'

    def kept(topic: str, text: str) -> str:
        return f"{promise(topic)}<async>{text}</async>"

    def thread(topic: str, text: str) -> dict[str, str]:
        return {f"{promise(topic)}<async>": text}

    one, two = promise("a"), promise("a") + promise("b")
    a, long = thread("a", "A</async>"), thread("a", "h" * 90)
    script = {"": f"{one}x<sync/>", "<sync/>": "end"}
    well = f"{kept('a', 'A')}x<sync/>end"
    none = {"no_outline/sequential": 1}
    for root in ('<promise tokens="9"/>on', '<promise topic=""/>on'):
        yield "no_outline", Case({"": root}, root, (), none)
    answer = f"{kept('a', 'A')}{kept('a', 'A')}<sync/>end"
    yield "duplicates", Case(script | {"": f"{one}{one}<sync/>"} | a, answer, ends("aa", "stop"))
    counted = {"thread_eos/close_thread": 1}
    yield "thread_eos", Case(script | thread("a", "A"), well, ends("a", "eos"), counted)
    counted, limit = {"thread_length/close_thread": 1}, {"max_tokens_per_thread": 6}
    answer = f"{kept('a', 'h' * 6)}x<sync/>end"
    yield "thread_length", Case(script | long, answer, ends("a", "length"), counted, forkjoin=limit)
    root = '<promise topic="a" tokens="9">on'
    yield "missing_tags", Case({"": root}, root)
    # what nobody waits for is written all the same
    yield "missing_tags", Case({"": f"{one}end"} | a, f"{kept('a', 'A')}end", ends("a", "stop"))
    unknown = {"unknown_thread/sequential": 1}
    stray = "</async><async><sync/>on"
    yield "stray_tags", Case({"": stray}, stray, (), unknown)
    inside = thread("a", "<sync/>A</async>")
    answer = f"{kept('a', '<sync/>A')}x<sync/>end"
    yield (
        "stray_tags",
        Case({"": f"{one}x<sync/>", "x<sync/>": "end"} | inside, answer, ends("a", "stop"), unknown),
    )
    inside = thread("a", f"{promise('b')}A</async>")
    answer = f"{kept('a', promise('b') + 'A')}x<sync/>end"
    yield "nested_fork", Case(script | inside, answer, ends("a", "stop"), {"nested_fork/sequential": 1})
    counted, answer = {"too_many_forks/sequential": 1}, f"{kept('a', 'A')}{promise('b')}<sync/>end"
    limit = {"max_forks": 1}
    yield (
        "max_forks",
        Case(script | {"": f"{two}<sync/>"} | a, answer, ends("a", "stop"), counted, forkjoin=limit),
    )
    counted, answer = {"total_tokens/end_request": 1}, f"{kept('a', 'h' * 30)}x<sync/>"
    yield "total_tokens", Case(script | long, answer, ends("a", "cancelled"), counted, "length", spend=30)
    texts = {"a": "a" * 120, "b": "b" * 120}
    both = thread("a", f"{texts['a']}</async>") | thread("b", f"{texts['b']}</async>")
    counted = {"joined_too_long/end_request": 1}
    answer = "".join(kept(topic, text) for topic, text in texts.items()) + "<sync/>"
    script = {"": f"{two}<sync/>"} | both
    yield "joined_too_long", Case(script, answer, ends("ab", "stop"), counted, "length", room=200)


# ---- any model: skeleton, explicit ---------------------------------------------------------------


def skeleton() -> Iterator[tuple[str, Case]]:
    def case(
        outline: str, points: dict[str, str], shown: dict[str, str], how: str = "stop", **more: Any
    ) -> Case:
        script = {"": outline} | {f"{title}: ": text for title, text in points.items()}
        answer = outline + "".join(f"\n\n{title}: {text}" for title, text in shown.items())
        return Case(script, answer, ends([title.partition(".")[0] for title in points], how), **more)

    two = "1. One\n2. Two"
    well = {"1. One": "aa.", "2. Two": "b."}
    yield "no_outline", Case({"": "Just so."}, "Just so.")
    dropped = {"duplicate_outline/drop": 1}
    yield "duplicates", case("1. One\n1. Again\n2. Two", well, well, counted=dropped)
    gaps = {"2. Two": "b.", "7. Seven": "g."}
    yield "gaps", case("2. Two\n7. Seven", gaps, gaps)
    counted, limit = {"too_many_threads/sequential": 1}, {"max_threads_per_fork": 1}
    yield "too_many_threads", case(two, {}, {}, counted=counted, forkjoin=limit)
    long = {"1. One": "a" * 30, "2. Two": "b" * 30}
    counted, limit = {"thread_length/close_thread": 2}, {"max_tokens_per_thread": 5}
    cut = {"1. One": "a" * 5, "2. Two": "b" * 5}
    yield "thread_length", case(two, long, cut, "length", counted=counted, finish="length", forkjoin=limit)
    counted = {"nested_fork/sequential": 1}
    nested = well | {"1. One": f"so:\n{two}"}
    yield "nested_fork", case(two, nested, nested, counted=counted)
    counted = {"too_many_forks/sequential": 1}
    yield "max_forks", case(two, {}, {}, counted=counted, forkjoin={"max_forks": 0})
    cut = {"1. One": "aaaa", "2. Two": "bbbb"}
    counted = {"total_tokens/end_request": 1}
    # behind the end of sequence, which is taken back, and counted
    yield "total_tokens", case(two, long, cut, "cancelled", counted=counted, finish="length", spend=9)
    # the answer ends there: no context has to hold it
    long = {"1. One": "a" * 120, "2. Two": "b" * 120}
    yield "joined_too_long", case(two, long, long, room=250)


def explicit() -> Iterator[tuple[str, Case]]:
    branches = [{"text": f"{letter}:"} for letter in "ABC"]
    closing = {"closing": "\nSo:"}

    def case(
        text: str, shown: str, how: str, *, closes: bool = True, after: str = "end", **more: Any
    ) -> Case:
        script = {"": "plain", "So:": after} | {f"{letter}:": text for letter in "ABC"}
        answer = "".join(f"{letter}:{shown}" for letter in "ABC") + (f"\nSo:{after}" if closes else "")
        asked = {"branches": branches} | (closing if closes else {}) | more.pop("forkjoin", {})
        return Case(script, answer, ends("123", how), forkjoin=asked, **more)

    def plain(counted: dict[str, int], **limit: int) -> Case:
        return Case({"": "plain"}, "plain", (), counted, forkjoin={"branches": branches} | limit)

    # the front end answers either with a 400
    yield "too_many_threads", plain({}, max_threads_per_fork=2)
    counted, limit = {"thread_length/close_thread": 3}, {"max_tokens_per_thread": 4}
    yield "thread_length", case("a" * 30, "aaaa", "length", counted=counted, forkjoin=limit)
    yield "max_forks", plain({}, max_forks=0)
    counted, limit = {"total_tokens/end_request": 1}, {"max_total_tokens": 12}
    yield (
        "total_tokens",
        case("a" * 30, "aaaa", "cancelled", closes=False, counted=counted, finish="length", forkjoin=limit),
    )
    counted, long = {"joined_too_long/end_request": 1}, "a" * 90
    # what stands behind the prompt is written by threads only
    yield (
        "joined_too_long",
        case(long, long, "stop", closes=False, counted=counted, finish="length", room=200, forkjoin=closing),
    )
    yield "joined_too_long", case(long, long, "stop", closes=False, room=200)


def _table(**dialects: Iterator[tuple[str, Case]]) -> dict[tuple[str, str], list[Case]]:
    table: dict[tuple[str, str], list[Case]] = {}
    for name, cases in dialects.items():
        for kind, case in cases:
            table.setdefault((name.replace("_", "-"), kind), []).append(case)
    return table


#: By dialect and kind.
CASES = _table(
    threadweaver=THREADWEAVER.cases(),
    multiverse=MULTIVERSE.cases(),
    npr=NPR.cases(),
    parallel_r1=parallel_r1(),
    parathinker=parathinker(),
    aspd=aspd(),
    medverse=medverse(),
    apr=apr(),
    apar=apar(),
    hpd=hpd(),
    asyncthink=asyncthink(),
    pasta=pasta(),
    pacore=pacore(),
    ssft=ssft(),
    skeleton=skeleton(),
    explicit=explicit(),
)

_NO_OUTLINE = "each fork has a fixed width: the model announces nothing and numbers nothing"
_AS_ASKED = "the request names its branches: the model announces nothing and numbers nothing"
_AS_THREADWEAVER = "threadweaver's tags; what its policies do otherwise is tested without an engine"
_AS_MEDVERSE = "medverse's tags; what its rules do otherwise is tested without an engine"
_ENDS_BY_EOS = "end of sequence is how a thread ends"
_NO_DEPENDENCIES = "no outline names what its thread depends on"
_NO_TAGS = "there are no tags"

#: What can't be, and why.
EXCLUDED: dict[tuple[str, str], str] = {
    **{
        (name, kind): _NO_OUTLINE
        for name in ("parallel-r1", "parathinker", "pacore", "ssft", "apar", "hpd")
        for kind in ("no_outline", "duplicates", "gaps")
    },
    **{("explicit", kind): _AS_ASKED for kind in ("no_outline", "duplicates", "gaps")},
    **{("threadweaver-eval", kind): _AS_THREADWEAVER for kind in KINDS},
    **{("medverse-eval", kind): _AS_MEDVERSE for kind in KINDS},
    **{(name, "thread_eos"): _ENDS_BY_EOS for name in ("pacore", "ssft", "apr", "apar", "hpd", "skeleton", "explicit")},
    **{(name, kind): _NO_TAGS for name in ("skeleton", "explicit") for kind in ("missing_tags", "stray_tags")},
    **{(name, "too_many_threads"): "a fork starts one thread, and no limit is lower" for name in ("apar", "hpd")},
    ("asyncthink", "too_many_threads"): "each closing tag starts one thread, and no limit is lower",
    ("pasta", "too_many_threads"): "each promise starts one thread, and no limit is lower",
    ("pasta", "gaps"): "promises have topics, no numbers",
    **{(name, "missing_tags"): "neither token closes what the other opened" for name in ("apar", "hpd")},
    **{(name, "joined_too_long"): "nothing is joined to any context" for name in ("apar", "hpd")},
    **{(name, "wrong_dependencies"): _NO_DEPENDENCIES for name, _ in CASES if name != "medverse"},
    ("aspd", "gaps"): "nothing is numbered",
    ("parathinker", "nested_fork"): "it forks behind the prompt: threads have nothing to fork with",
    ("pacore", "nested_fork"): "it forks behind prompts: threads have nothing to fork with",
    ("ssft", "nested_fork"): "it forks behind the prompt: threads have nothing to fork with",
    ("explicit", "nested_fork"): "it forks behind the prompt: threads have nothing to fork with",
}  # fmt: skip
