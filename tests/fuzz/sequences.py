"""Token sequences of every dialect: whatever a model writes, the family ends and its transcript is whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.dialect import Dialect, ForkAt
from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.policies import Policy
from forkjoin_scheduler.families.family import Branch, Family
from forkjoin_scheduler.families.fork import Deviation, ForkPlan, Refusal, plan_fork
from forkjoin_scheduler.families.stitch import joined_offset, num_skipped
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.families.transcript import Transcript
from forkjoin_scheduler.families.vote import Vote
from forkjoin_scheduler.joins.joined import JoinPlan, joined_ids
from forkjoin_scheduler.request.compiled import compile_options
from forkjoin_scheduler.request.explicit import explicit_dialect
from forkjoin_scheduler.request.options import parse_options
from tests.fuzz.source import Source
from tests.fuzz.tokens import TURNS, FuzzTokenizer
from tests.unit.scheduler.dialects.test_published import PUBLISHED

#: What the models write around their tags, and what stands in texts that they should not have written.
TEXTS = (
    "\n", " ", "a", "1", "2", "0", ": x", "1: a", "2. b\n", "1. a\n", "**1. a**", "Path 1", "<plan>1: a</plan>", "<Outline>1: x</Outline>",
    "Moving to Node #0\nCurrent State: 39:[36, 50], Operations: []", "Generated Node #0,0: 39:[50, 2] Operation: 36-25=11\n",
    "<Start Sub Search 0 at level 1> Moving to Node #0,0\n", "<Calling Sub Searches>\n", "<End Calling Sub Searches>\n", "39,39 equal: Goal Reached",
    "<FORK>-1-what\n", "<JOIN>-1", "<FORK-1>what</FORK-1>", "<JOIN-1>", "<RETURN-1>", "\ud800", "é", "\\boxed{3}", "</", ">", "{n}", "x" * 60,
)  # fmt: skip
EOS = ord("\0")
LIMITS = (
    *(Limits(),) * 5,
    Limits(max_threads_per_fork=1),
    Limits(max_threads_per_fork=3, max_forks=1),
    Limits(max_forks=0),
    Limits(max_threads_per_fork=None, max_forks=None),
)


@dataclass(frozen=True)
class Spoken:
    """A dialect, bound to its tokens, and what a model that speaks it may write."""

    bound: BoundDialect
    vocabulary: tuple[tuple[int, ...], ...]
    prompt: str = f"{TURNS[0]}Q{TURNS[2]}"
    #: What a request itself wants behind its branches.
    closing_ids: list[int] | None = None


#: What requests ask for by themselves.
ASKED = {
    "best_of": {"best_of": 3, "vote": "(?P<result>[0-9a])"},
    "branches": {"branches": [{"title": "x"}, {"text": "1. a"}]},
    "closing": {"branches": [{"text": "a"}, {"text": "b"}], "closing": "In short:"},
}


@cache
def spoken(name: str) -> Spoken:
    if name in ASKED:
        tokenizer = FuzzTokenizer(TURNS)
        options = compile_options(parse_options(ASKED[name]), tokenizer.encode)
        return replace(speaking(explicit_dialect(options, Limits()), tokenizer), closing_ids=options.closing)
    dialect, published = load(name), PUBLISHED.get(name)
    tokenizer = FuzzTokenizer([*dialect.control_tokens, *TURNS])
    if published is None:
        return speaking(dialect, tokenizer)
    # Whole outlines and threads are hardly ever hit on piece by piece.
    whole = [published.wrote] * 12 + [text for text, _ in published.threads] * 4 + [published.meanwhile] * 2
    return replace(speaking(dialect, tokenizer, whole), prompt=published.prompt)


def speaking(dialect: Dialect, tokenizer: FuzzTokenizer, whole: Sequence[str] = ()) -> Spoken:
    """``whole``: texts that its model writes in one go. Raises DialectError if it can't be bound."""
    bound = BoundDialect.bind(dialect, tokenizer)
    thread, join = bound.dialect.thread, bound.dialect.join
    own = [
        thread.end,
        thread.close,
        thread.tail,
        join.text,
        join.close_block,
        getattr(join, "opens", None),
        dialect.trigger,
        *dialect.swaps,
    ]
    texts = [*dialect.control_tokens * 2, *(t for t in (*own, *whole) if t), *TEXTS]
    return Spoken(bound, tuple(tuple(tokenizer.encode(t)) for t in texts))


def target(data: bytes) -> None:
    source = Source(data)
    run(spoken(source.choice((*builtin_names(), *ASKED))), source)


def run(spoken: Spoken, source: Source) -> None:
    """Let a family write what ``source`` says to its end."""
    _Run(spoken, source).to_its_end()


class _Run:
    def __init__(self, spoken: Spoken, source: Source) -> None:
        self._vocabulary, self._prompt, self._source = spoken.vocabulary, spoken.prompt, source
        self._bound, self._dialect = spoken.bound, spoken.bound.dialect
        self._closing_ids = spoken.closing_ids
        self._tokenizer = spoken.bound.tokenizer
        self._family = Family("f", source.choice(LIMITS))
        self._transcript: Transcript[int] = Transcript()
        self._released: list[int] = []
        self._shown: list[int] = []
        self._since: dict[Branch, int] = {}
        self._max_model_len = source.choice((None, None, None, 4096, 800, 400, 40))

    def to_its_end(self) -> None:
        self._shown = self._branch(self._family.root, self._tokenizer.encode(self._prompt), self._transcript)
        self._transcript.close()
        self._released += self._transcript.release()
        assert not self._family.is_live
        assert self._released == self._shown, "what left is not what was written, in outline order"

    def _branch(self, branch: Branch, context: list[int], transcript: Transcript[int]) -> list[int]:
        """Write in ``branch`` until it ends. What stands of it in the transcript."""
        context, shown, since = list(context), [], len(context)
        if self._dialect.fork_at is ForkAt.PROMPT and branch is self._family.root:
            shown += self._fork(branch, context, 0, transcript)
            since = len(context)
        while branch.is_live:
            for token in self._next():
                context.append(token)
                shown.append(token)
                transcript.push([token])
                self._family.generated(branch, [token])
                self._release()
                if token == EOS or self._ended_by_tag(branch, context):
                    break
                if self._bound.triggers(context):
                    shown += self._fork(branch, context, since, transcript)
                    since = len(context)
                    break
                asked = self._bound.asked_for(context)
                assert asked is None or isinstance(asked, str)
                swapped = self._bound.written_itself(context[since:] or context)
                assert swapped is None or swapped in self._dialect.swaps
            if branch.is_live and (how := self._how_it_ends(branch, context)) is not None:
                num_forks = self._family.num_forks
                if how is ThreadEnd.EOS and self._bound.ends_turn_with_fork(context[since:-1]):
                    context.pop()
                    shown += self._fork(branch, context, since, transcript)
                    since = len(context)
                if branch.is_live and self._family.num_forks == num_forks:
                    self._family.end(branch, how)
            self._family.check_integrity()
        return shown

    def _next(self) -> tuple[int, ...]:
        return (EOS,) if self._source.is_empty else self._source.choice((*self._vocabulary, (EOS,)))

    def _release(self) -> None:
        if self._source.below(8) == 1:
            self._released += self._transcript.release()

    def _ended_by_tag(self, branch: Branch, context: list[int]) -> bool:
        plan = branch.plan
        if plan is None:
            return False
        return context[-1] in self._bound.end_ids(plan) or self._bound.ends(plan, context)

    def _how_it_ends(self, branch: Branch, context: list[int]) -> ThreadEnd | None:
        if self._ended_by_tag(branch, context):
            return ThreadEnd.STOP
        if context[-1] == EOS:
            return ThreadEnd.EOS if branch.plan is None or branch.plan.end is not None else ThreadEnd.STOP
        return ThreadEnd.LENGTH if len(context) > 3000 else None

    def _fork(self, branch: Branch, context: list[int], since: int, transcript: Transcript[int]) -> list[int]:
        """What a fork adds to what stands of ``branch``; its context goes on behind it."""
        plan = plan_fork(
            self._dialect, self._family.limits, context, self._tokenizer, since=since, num_forks=self._family.num_forks,
            depth=branch.depth, max_model_len=self._max_model_len,
        )  # fmt: skip
        if isinstance(plan, Refusal):
            assert plan.policy is getattr(self._dialect.policies, plan.reason)
            if plan.policy is not Policy.SEQUENTIAL:
                closes = plan.policy is Policy.CLOSE_THREAD and branch.plan is not None
                self._family.end(branch, ThreadEnd.REFUSED if closes else ThreadEnd.STOP)
            return []
        self._check(plan, context)
        positions = self._dialect.positions
        offset = self._dialect.join.thread_offset(branch.offset, positions)
        waits = self._dialect.join.waits
        threads = self._family.fork(branch, plan, len(context), waits=waits, offset=offset)
        parts = transcript.fork(list(t.plan.joined_header_ids) for t in threads if t.plan is not None)
        shown: list[int] = []
        for thread, part in zip(threads, parts, strict=True):
            assert thread.plan is not None
            seen = context if self._dialect.thread.context.value == "parent" else []
            text = self._branch(thread, [*seen, *thread.plan.header_ids], part)
            part.close()
            shown += [*thread.plan.joined_header_ids, *text]
            self._family.check_integrity()
        return shown + self._join(branch, threads, context, transcript)

    def _check(self, plan: ForkPlan, context: list[int]) -> None:
        most = self._family.limits.max_threads_per_fork
        assert plan.threads
        assert most is None or len(plan.threads) <= most
        num_again = len(plan.threads) - len({t.number for t in plan.threads})
        kept = Deviation("duplicate_outline", Policy.KEEP, num_again)
        assert num_again == 0 or kept in plan.tolerated
        if self._max_model_len is not None:
            assert all(len(t.header_ids) < self._max_model_len for t in plan.threads)

    def _join(
        self, branch: Branch, threads: list[Branch], context: list[int], transcript: Transcript[int]
    ) -> list[int]:
        if (ballot := self._dialect.join.ballot) is not None:
            vote = Vote(ballot, self._tokenizer, len(threads))
            for thread in threads:
                vote.read(thread)
            assert vote.winner(threads)[0] in threads
        if not self._dialect.join.waits:
            for thread in threads:
                context += joined_ids(self._dialect, thread, self._tokenizer)
            return []
        plan = self._plan_join(threads, context)
        assert plan.token_ids[len(plan.token_ids) - len(plan.closing_ids) :] == plan.closing_ids
        if plan.keep is not None:
            assert 0 <= plan.keep <= len(context)
            del context[plan.keep :]
        if self._dialect.join.moves_kv:
            self._check_positions(branch, threads, plan, len(context))
        context += plan.token_ids
        transcript.push(plan.closing_ids)
        if plan.end is not None or not self._dialect.join.goes_on:
            self._family.end(branch, plan.end or ThreadEnd.STOP)
        else:
            self._family.join(branch, list(plan.token_ids))
        return list(plan.closing_ids)

    def _plan_join(self, threads: list[Branch], context: list[int]) -> JoinPlan:
        return self._dialect.join.plan(self._dialect, threads, context, self._tokenizer, self._closing_ids)

    def _check_positions(
        self, branch: Branch, threads: list[Branch], plan: JoinPlan, context_len: int
    ) -> None:
        """What follows a stitched join stands after every token of its threads, or of a text in a row."""
        lengths = []
        for thread in threads:
            skipped = num_skipped(thread, is_first=thread is threads[0])
            lengths.append(skipped + len(joined_ids(self._dialect, thread, self._tokenizer)))
        joined_len = context_len + len(plan.token_ids) - len(plan.closing_ids)
        in_row = joined_len - 1 + branch.offset
        branch.offset = joined_offset(threads, lengths, joined_len, self._dialect.positions)
        furthest = max(t.fork_len + n - 1 + t.offset for t, n in zip(threads, lengths, strict=True))
        last = in_row if self._dialect.positions.join_from == "last" else furthest
        assert joined_len + branch.offset == last + self._dialect.positions.join_gap
