"""A dialect and the tokenizer of the model that speaks it: what a stream of tokens says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from forkjoin_scheduler.dialects.dialect import Answer, Dialect, ForkAt
from forkjoin_scheduler.dialects.patterns import Match, find_all
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.families.fork import ThreadPlan, read_outlines

#: Tokens at the end of a text in which a tag is looked for, where tags are text.
WINDOW_TOKENS = 48


@dataclass(frozen=True)
class BoundDialect:
    """``dialect`` as ``tokenizer`` writes it."""

    dialect: Dialect
    tokenizer: Tokenizer
    trigger_id: int | None

    @classmethod
    def bind(cls, dialect: Dialect, tokenizer: Tokenizer) -> BoundDialect:
        """Check and bind. Raises DialectError if ``tokenizer`` lacks what ``dialect`` needs."""
        dialect.check_tokenizer(tokenizer)
        dialect = dialect.with_turns(tokenizer)
        dialect.join.check_tokens(dialect, tokenizer)
        is_token = dialect.trigger is not None and dialect.tags_are == "tokens"
        return cls(dialect, tokenizer, tokenizer.token_id(dialect.trigger or "") if is_token else None)

    @cached_property
    def calls(self) -> frozenset[int] | None:
        """The tokens that call for anything; None if it takes a look at what was written to know."""
        dialect = self.dialect
        has_text = bool(dialect.swaps) and not self._swap_ids
        has_more = dialect.tags_are == "text" or dialect.join.question is not None or has_text
        if has_more or dialect.fork_at is ForkAt.END:
            return None
        called = [] if dialect.fork_at is not ForkAt.TRIGGER else [self.trigger_id]
        return frozenset(i for i in (*called, self.summary_end_id, *self._swap_ids) if i is not None)

    @cached_property
    def summary_end_id(self) -> int | None:
        """The token that ends a summary; None: there are none."""
        summary = self.dialect.summary
        return None if summary is None else self.tokenizer.token_id(summary.end)

    def triggers(self, token_ids: Sequence[int]) -> bool:
        """Whether the last of ``token_ids`` forks."""
        if self.dialect.fork_at is not ForkAt.TRIGGER:
            return False
        if self.trigger_id is not None:
            return token_ids[-1] == self.trigger_id
        assert self.dialect.trigger is not None
        return self._completes(self.dialect.trigger, token_ids) is not None

    def ends_turn_with_fork(self, token_ids: Sequence[int]) -> bool:
        """Whether a branch that wrote ``token_ids`` and ends its turn forks instead."""
        if self.dialect.fork_at is not ForkAt.END:
            return False
        text = self.tokenizer.decode(list(token_ids))
        trigger = self.dialect.trigger
        if trigger is not None:
            found = find_all(re.escape(trigger) if self.dialect.tags_are == "tokens" else trigger, text)
            return bool(found) and not text[found[-1].end() :].strip()
        return self.dialect.outline is not None and bool(read_outlines(self.dialect.outline, text))

    def asked_for(self, token_ids: Sequence[int]) -> str | None:
        """Which thread the last of ``token_ids`` asks for, by number; "": for all; None: for none."""
        if self.dialect.join.question is None:
            return None
        found = self._completes(self.dialect.join.question, token_ids)
        if found is None:
            return None
        return (found["number"] or None) if self.dialect.join.asks_by_number else ""

    def written_itself(self, token_ids: Sequence[int]) -> str | None:
        """The text of ``swaps`` that the last of ``token_ids`` completes, if it does."""
        if self._swap_ids:
            return self._swap_ids.get(token_ids[-1])
        completed = (t for t in self.dialect.swaps if self._completes(re.escape(t), token_ids))
        return next(completed, None)

    @cached_property
    def _swap_ids(self) -> dict[int, str]:
        """The texts of ``swaps`` by their tokens, where each is one; else none."""
        if self.dialect.tags_are == "text":
            return {}
        ids = {self.tokenizer.token_id(text): text for text in self.dialect.swaps}
        return {} if None in ids else {i: text for i, text in ids.items() if i is not None}

    def answer_ids(self, after: str) -> list[int]:
        """The tokens of ``after``: one, where the vocabulary has it."""
        token_id = self.tokenizer.token_id(after)
        return self.tokenizer.encode(after) if token_id is None else [token_id]

    def begins_answer(self, answer: Answer, token_ids: Sequence[int]) -> bool:
        """Whether what follows the last of ``token_ids`` is the answer, by what stands before it."""
        if answer.after is None or not token_ids:
            return False
        token_id = self.tokenizer.token_id(answer.after)
        if token_id is not None:
            return token_ids[-1] == token_id
        return self._completes(re.escape(answer.after), token_ids) is not None

    def banned_ids(self) -> list[list[int]]:
        """The rows of tokens that the dialect bans, as vLLM has bad words; all are known, as was checked."""
        return [self._known(row) for row in self.dialect.sampling.banned]

    def end_id(self, plan: ThreadPlan) -> int | None:
        """The token that ends a thread; None if that is a text, or end of sequence."""
        if plan.end is None or self.dialect.tags_are == "text":
            return None
        return self.tokenizer.token_id(plan.end)

    def end_ids(self, plan: ThreadPlan) -> list[int]:
        """All tokens that end a thread, its own first."""
        own = self.end_id(plan)
        return [] if own is None else [own, *(i for i in self._further_end_ids if i != own)]

    @cached_property
    def _further_end_ids(self) -> list[int]:
        return self._known(self.dialect.further_ends)

    def ends(self, plan: ThreadPlan, token_ids: Sequence[int]) -> bool:
        """Whether the last of ``token_ids`` completes a text that ends the thread."""
        if plan.end is None or self.dialect.tags_are == "tokens":
            return False
        texts = (plan.end, *self.dialect.further_ends)
        return any(self._completes(re.escape(text), token_ids) for text in texts)

    @cached_property
    def stop_ids(self) -> list[int]:
        """The tokens with which the request itself ends the answer."""
        return [] if self.dialect.tags_are == "text" else self._known(self.dialect.stops)

    @cached_property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts that end a request itself, where they are no tokens."""
        return self.dialect.stops if self.dialect.tags_are == "text" else ()

    def stopped_by(self, token_ids: Sequence[int]) -> str | None:
        """The text with which the last of ``token_ids`` ends the answer, where the request wrote it."""
        return next((t for t in self.stop_texts if self._completes(re.escape(t), token_ids)), None)

    def _known(self, tokens: Iterable[str]) -> list[int]:
        """The ids of ``tokens``, which were checked to be known."""
        return [i for i in map(self.tokenizer.token_id, tokens) if i is not None]

    def _completes(self, pattern: str, token_ids: Sequence[int]) -> Match | None:
        """A match of ``pattern`` in the text of ``token_ids`` that ends in its last token."""
        tail = list(token_ids[-WINDOW_TOKENS:])
        before = len(self.tokenizer.decode(tail[:-1]))
        matches = find_all(pattern, self.tokenizer.decode(tail))
        return next((m for m in matches if m.end() > before), None)
