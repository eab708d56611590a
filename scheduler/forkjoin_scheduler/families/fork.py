"""Whether and into what a request forks: facts in, a plan or a refusal out."""

from __future__ import annotations

from dataclasses import dataclass, replace

from forkjoin_scheduler.dialects.assembly import RULES
from forkjoin_scheduler.dialects.dialect import Context, Dialect, Outline
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.patterns import Match, fill, find_all
from forkjoin_scheduler.dialects.policies import Policies, Policy
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.families.stages import in_stages, read_dependencies


@dataclass(frozen=True)
class Announced:
    """One thread as the model announced it."""

    number: str
    title: str = ""
    message: str = ""
    #: What the dialect's rule makes of the message.
    resolved: str = ""
    #: The numbers of the threads that it depends on.
    depends_on: tuple[str, ...] = ()

    def fields(self, place: int) -> dict[str, str]:
        """The fields of templates that it fills, where it is the thread at this ``place``, from 0."""
        return {
            "n": self.number,
            "i": str(place),
            "title": self.title,
            "message": self.message,
            "resolved": self.resolved,
        }


@dataclass(frozen=True)
class Deviation:
    """What was malformed ``num`` times in a call that forks all the same: a field of ``Policies``."""

    reason: str
    policy: Policy
    num: int = 1


@dataclass(frozen=True)
class ThreadPlan:
    """One thread to start: its outline number and title, and the texts around it as token ids.

    ``end``: the text of the tag that ends it; None: end of sequence. ``failed_header_ids``: the
    header once joined if nothing returns. ``returned_end_ids``: what stands after what returns.
    ``path``: whose embedding the model adds to the keys and values of its tokens; 0: as outside threads.
    """

    number: str
    title: str
    header_ids: tuple[int, ...]
    joined_header_ids: tuple[int, ...]
    end: str | None = None
    failed_header_ids: tuple[int, ...] | None = None
    returned_end_ids: tuple[int, ...] = ()
    path: int = 0


@dataclass(frozen=True)
class ForkPlan:
    """The threads of a fork, in outline order; ``num_duplicates`` outlines were dropped.

    ``stages``: how many of them start together, stage by stage (none: all at once).
    """

    threads: tuple[ThreadPlan, ...]
    num_duplicates: int
    tolerated: tuple[Deviation, ...] = ()
    stages: tuple[int, ...] = ()

    @property
    def num_first(self) -> int:
        """Threads that start with the fork itself."""
        return self.stages[0] if self.stages else len(self.threads)


@dataclass(frozen=True)
class Outlines:
    """What a call announces; of ``num_unknown`` outlines the dialect's rule made nothing."""

    announced: list[Announced]
    num_unknown: int = 0
    #: How they were read, where the call follows no opening tag of its own.
    unopened: Policy | None = None

    def tolerated(self, policies: Policies) -> tuple[Deviation, ...]:
        """What of them is malformed and does not keep the call from forking."""
        found = []
        if self.unopened is not None:
            found.append(Deviation("unopened_outline", self.unopened))
        if self.num_unknown:
            found.append(Deviation("unknown_message", policies.unknown_message, self.num_unknown))
        return tuple(found)


@dataclass(frozen=True)
class Refusal:
    """No fork, for a named reason (a field of ``Policies``), and what to do instead."""

    reason: str
    policy: Policy


def read_outlines(outline: Outline, text: str) -> list[Announced]:
    """The threads announced in ``text`` after the last opening tag, in order; none without a number."""
    return _read(outline, text)


def _read(outline: Outline, text: str, *, is_opened: bool = False) -> list[Announced]:
    """The same; ``is_opened``: whether all of ``text`` is taken to stand after the opening tag."""
    if outline.opens is not None and not is_opened:
        _, opened, text = text.rpartition(outline.opens)
        if not opened:
            return []
    return [one for match in find_all(outline.pattern, text) if (one := _announced(match)).number]


def _announced(match: Match) -> Announced:
    """A thread; where threads have no numbers, its title is its number."""
    groups = match.groupdict()
    title = (groups.get("title") or "").strip()
    return Announced(
        groups.get("number", title) or "",
        title,
        groups.get("message") or "",
        depends_on=read_dependencies(groups.get("depends") or ""),
    )


def plan_fork(
    dialect: Dialect,
    limits: Limits,
    context: list[int],
    tokenizer: Tokenizer,
    *,
    since: int = 0,
    begin: int | None = None,
    num_forks: int = 0,
    depth: int = 0,
    max_model_len: int | None = None,
    num_left: int | None = None,
) -> ForkPlan | Refusal:
    """Decide what the trigger at the end of ``context`` (token ids) does.

    ``since``: tokens of the context that were there before the branch wrote, or when it forked
    last; ``begin``: before it wrote (None: ``since``). ``num_forks`` counts the forks that the request
    has made before, ``depth`` the threads around the one that forks (0: the request itself),
    ``max_model_len`` the tokens that a context can hold, ``num_left`` the positions that max_tokens
    leaves the branch.
    """
    policies = dialect.policies
    if depth >= dialect.max_depth:
        return Refusal("nested_fork", policies.nested_fork)
    if limits.max_forks is not None and num_forks >= limits.max_forks:
        return Refusal("too_many_forks", policies.too_many_forks)
    outlines = _outlines(
        dialect, limits, context, since, since if begin is None else begin, tokenizer, num_forks
    )
    if outlines.num_unknown and policies.unknown_message is not Policy.DROP:
        return Refusal("unknown_message", policies.unknown_message)
    announced, num_duplicates = outlines.announced, 0
    tolerated = outlines.tolerated(policies)
    by_number = {a.number: a for a in reversed(announced)}
    if num_again := len(announced) - len(by_number):
        if policies.duplicate_outline is Policy.KEEP:
            tolerated += (Deviation("duplicate_outline", Policy.KEEP, num_again),)
        elif policies.duplicate_outline is Policy.DROP:
            announced = [by_number[n] for n in dict.fromkeys(a.number for a in announced)]
            num_duplicates = num_again
        else:
            return Refusal("duplicate_outline", policies.duplicate_outline)
    if not announced:
        return Refusal("no_outline", policies.no_outline)
    if limits.max_threads_per_fork is not None and len(announced) > limits.max_threads_per_fork:
        return Refusal("too_many_threads", policies.too_many_threads)
    stages, num_wrong = _stages_of(dialect, announced)
    if num_wrong and policies.wrong_dependency is not Policy.DROP:
        return Refusal("wrong_dependency", policies.wrong_dependency)
    if num_wrong:
        tolerated += (Deviation("wrong_dependency", Policy.DROP, num_wrong),)
    threads = _plan_threads(dialect, announced, stages, tokenizer)
    seen = len(context) if dialect.thread.context is Context.PARENT else 0
    num_closing = dialect.join.num_closing_tokens(dialect, tokenizer)
    is_near_end = dialect.min_left > 0 and num_left is not None and num_left < dialect.min_left
    if is_near_end or not has_room(threads, seen, max_model_len, dialect.min_room, num_closing):
        return Refusal("no_room", policies.no_room)
    return ForkPlan(threads, num_duplicates, tolerated, stages)


def has_room(
    threads: tuple[ThreadPlan, ...],
    context_len: int,
    max_model_len: int | None,
    min_room: int = 1,
    num_closing: int = 0,
) -> bool:
    """Whether each of ``threads`` can write a token and close, and the context ``min_room`` tokens."""
    longest = max(len(t.header_ids) for t in threads) + 1 + num_closing
    return max_model_len is None or context_len + max(longest, min_room) <= max_model_len


def _stages_of(dialect: Dialect, announced: list[Announced]) -> tuple[tuple[int, ...], int]:
    """The stages of the ``announced`` threads, if there are any, and how many dependencies are wrong."""
    if dialect.outline is None or not dialect.outline.has_stages:
        return (), 0
    return in_stages([(one.number, one.depends_on) for one in announced])


def _plan_threads(
    dialect: Dialect, announced: list[Announced], stages: tuple[int, ...], tokenizer: Tokenizer
) -> tuple[ThreadPlan, ...]:
    """Of a later stage, each thread begins as a joined one does: what opens the first stands before it."""
    num_first = stages[0] if stages else len(announced)
    plans = [_plan_thread(dialect, one, place, tokenizer) for place, one in enumerate(announced)]
    later = [replace(plan, header_ids=plan.joined_header_ids) for plan in plans[num_first:]]
    return (*plans[:num_first], *later)


def _plan_thread(dialect: Dialect, one: Announced, place: int, tokenizer: Tokenizer) -> ThreadPlan:
    thread, fields = dialect.thread, one.fields(place)
    header = thread.header
    if place == 0:
        joined = thread.first_joined_header if thread.first_joined_header is not None else header
    else:
        joined = thread.joined_header if thread.joined_header is not None else header

    def ids(template: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(fill(template, **fields)))

    return ThreadPlan(
        one.number,
        one.title,
        ids(header),
        ids(joined),
        None if thread.end is None else fill(thread.end, **fields),
        None if thread.failed_header is None else ids(thread.failed_header),
        ids(thread.returned_end),
        int(one.number) if dialect.embeds_paths else 0,
    )


def _outlines(
    dialect: Dialect,
    limits: Limits,
    context: list[int],
    since: int,
    begin: int,
    tokenizer: Tokenizer,
    num_forks: int,
) -> Outlines:
    """The threads as the outlines announce them, or as many as the dialect's width, or as the round has."""
    outline = dialect.outline
    if outline is None:
        widths = dialect.widths_within(limits)
        return Outlines([Announced(str(n)) for n in range(1, widths[num_forks % len(widths)] + 1)])
    unopened = None
    if outline.opens is not None and dialect.tags_are == "tokens":
        tokens = _since_opening(outline.opens, dialect.trigger, context[since:], tokenizer)
        if not tokens and dialect.policies.unopened_outline is not Policy.UNREAD:
            unopened = dialect.policies.unopened_outline
            tokens = context[since:]
            if unopened is Policy.REREAD:
                tokens = _since_opening(outline.opens, None, context[begin:], tokenizer)
    else:
        tokens = context[since:]
    announced = _read(outline, tokenizer.decode(tokens), is_opened=unopened is Policy.READ_ALL)
    rule = dialect.thread.resolve
    resolved = announced if rule is None else _resolved(rule, announced, tokenizer.decode(context))
    return Outlines(resolved, len(announced) - len(resolved), unopened if announced else None)


def _resolved(rule: str, announced: list[Announced], text: str) -> list[Announced]:
    """What ``rule`` makes of the messages; threads of which it can't make anything are left out."""
    resolve = RULES[rule](text)
    made = [(one, resolve(one.message)) for one in announced]
    return [replace(one, resolved=resolved) for one, resolved in made if resolved is not None]


def _since_opening(opens: str, trigger: str | None, context: list[int], tokenizer: Tokenizer) -> list[int]:
    """What stands after the last opening tag; nothing where another ``trigger`` lies in between."""
    opening = tokenizer.token_id(opens)
    triggering = None if trigger is None else tokenizer.token_id(trigger)
    for index in range(len(context) - 2, -1, -1):
        if context[index] == triggering:
            break
        if context[index] == opening:
            return context[index:]
    return []
