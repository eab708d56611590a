"""A dialect: the control tokens and rules a model was trained to fork and join with.

Declared in YAML (``configs/dialects/``), validated here, checked against the tokenizer at start.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.dialects.patterns import (
    BRACES,
    TURNS,
    NonEmpty,
    Regex,
    Template,
    check_regex,
    fill,
    fill_turns,
    has_known_fields,
)
from forkjoin_scheduler.dialects.policies import Policies, Policy
from forkjoin_scheduler.dialects.strict import Strict
from forkjoin_scheduler.dialects.tokenizer import Tokenizer
from forkjoin_scheduler.errors import DialectError
from forkjoin_scheduler.joins.kinds import AnyJoin
from forkjoin_scheduler.joins.reprefill import Reprefill

#: The texts around a thread that may have the turns of a chat template in them.
_SPOKEN = ("header", "joined_header", "first_joined_header", "failed_header", "end")
#: The attribute of model classes that add a learned embedding of its path to each token's keys and values.
PATH_EMBEDDINGS = "seg_embeddings"


class ForkAt(StrEnum):
    """When a branch forks."""

    #: As soon as it has written the trigger.
    TRIGGER = "trigger"
    #: When it ends its turn, if what it wrote ends with the trigger or, without one, announces threads.
    END = "end"
    #: After the prompt, before anything is generated.
    PROMPT = "prompt"


class Context(StrEnum):
    """What a thread sees."""

    #: All that its parent saw up to the fork, and its header. The KV of it is shared.
    PARENT = "parent"
    #: Its header only, which then is a prompt of its own.
    HEADER = "header"


class Outline(Strict):
    """Where the threads are announced."""

    opens: NonEmpty | None = Field(
        default=None,
        description="token or text after whose last occurrence the outlines are read; none: all that the "
        "branch wrote since its prompt, or since it forked last",
    )
    pattern: str = Field(
        description="regex: group 'number' (none: titles are numbers) and, optionally, 'title', 'message' "
        "and 'depends': the numbers of earlier threads that this one is to see"
    )
    dependencies: Literal["wait", "ignore"] = Field(
        default="wait",
        description="whether a thread waits for those that it depends on, or all start at once",
    )

    @field_validator("pattern")
    @classmethod
    def _names_threads(cls, value: str) -> str:
        return check_regex(value, needs=("number", "title"))

    @property
    def has_stages(self) -> bool:
        """Whether threads may wait for others, which their outlines name."""
        return self.dependencies == "wait" and "depends" in re.compile(self.pattern).groupindex


class Thread(Strict):
    """What surrounds a thread's text."""

    context: Context = Context.PARENT
    header: Template = Field(description="injected before the thread in its own context")
    joined_header: Template | None = Field(
        default=None,
        description="the header of the 2nd and later threads once joined; none: the same",
    )
    first_joined_header: Template | None = Field(
        default=None, description="that of the first thread, where it differs from the one it ran with"
    )
    end: Annotated[NonEmpty, AfterValidator(has_known_fields)] | None = Field(
        default=None, description="the token (or text) that ends a thread; none: end of sequence"
    )
    also_ends: tuple[Template, ...] = Field(
        default=(),
        description="further tokens (or texts) that end a thread as its end tag does; with {n}, those of all "
        "numbers up to the width",
    )
    close: str = Field(default="", description="injected when a thread ends without its end token")
    tail: str = Field(default="", description="injected after every thread, however it ended")
    between: str = Field(default="", description="injected after every thread but the last of a join")
    without_trigger: bool = Field(
        default=False, description="whether a thread sees its parent up to before the trigger only"
    )
    resolve: Literal["countdown_node"] | None = Field(
        default=None, description="a rule of assembly.py that makes {resolved} of the message"
    )
    returns: Regex | None = Field(
        default=None,
        description="regex whose last match in a thread (its group 'result', if it has one) is what "
        "returns; none: all of it",
    )
    returned_end: Template = Field(
        default="", description="injected after what returns of a thread, where `returns` cuts it out"
    )
    failed_header: Template | None = Field(
        default=None, description="the joined header of a thread in which `returns` finds nothing"
    )
    newlines: int = Field(
        default=0, ge=0, description="splice: newlines that a thread's text begins with in the answer"
    )
    newlines_after: Regex | None = Field(
        default=None,
        description="where in what the branch wrote since it forked last there must be a match; none: always",
    )


class Positions(Strict):
    """Stitched joins: how positions go on, counted from the token before (1: no gap)."""

    fork_gap: int = Field(default=1, ge=0, description="from the trigger to the first token of each header")
    join_gap: int = Field(default=1, ge=0, description="from the token before to what follows the join")
    join_from: Literal["furthest", "last"] = Field(
        default="furthest",
        description="that token: the furthest of any thread, or the last, as if threads stood in a row",
    )


class Summary(Strict):
    """What a branch writes after a join, up to an end tag. Nothing in it forks."""

    end: NonEmpty = Field(
        description="the token that ends the text after a join; up to it a trigger is plain text, and by "
        "the policy summary_eos it takes the place of an end of sequence"
    )


class Answer(Strict):
    """Where the answer begins, after the reasoning: for structured output that is to hold for the answer."""

    after: NonEmpty | None = Field(
        default=None, description="the text after which the answer begins, written or injected"
    )
    behind_join: bool = Field(default=False, description="whether it begins after the first join")

    @model_validator(mode="after")
    def _is_one_place(self) -> Answer:
        if (self.after is None) != self.behind_join:
            raise ValueError("expected answer.after or answer.behind_join")
        return self


class SamplingOverrides(Strict):
    """Sampling parameters of one phase, where the request itself leaves vLLM's default."""

    #: Whether they also take the place of what the request asked for.
    always: bool = False
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0)
    repetition_counts: Literal["context", "output"] = Field(
        default="context",
        description="what that penalty counts: all of the context, as vLLM does, or only what the branch "
        "wrote since it started or joined last",
    )
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)


class Sampling(Strict):
    """Sampling overrides by phase: inside threads, and in the request itself after a join."""

    thread: SamplingOverrides = SamplingOverrides()
    after_join: SamplingOverrides = SamplingOverrides()
    #: Rows of tokens: the last of each is never sampled where the model wrote the others before it.
    banned: tuple[Annotated[tuple[NonEmpty, ...], Field(min_length=1)], ...] = ()


class Dialect(Strict):
    """How a family of models forks and joins."""

    name: str
    source: str
    #: A regex, in any case, of what models that speak it are called: their names, their architectures.
    model_names: Regex | None = None
    #: Another dialect of the same models, which they are recognised to speak.
    variant_of: NonEmpty | None = None
    fork_at: ForkAt = ForkAt.TRIGGER
    #: Whether tags are tokens of the vocabulary, or text that may be tokenised in any way.
    tags_are: Literal["tokens", "text"] = "tokens"
    trigger: NonEmpty | None = Field(
        default=None, description="the token that forks; a regex where tags are text"
    )
    #: Where the threads are announced; None: each fork has ``width`` threads.
    outline: Outline | None = None
    width: int | None = Field(
        default=None, ge=1, le=1024, description="threads of each fork, without an outline"
    )
    thread: Thread
    join: AnyJoin = Reprefill()
    positions: Positions = Positions()
    limits: Limits = Limits()
    policies: Policies = Policies()
    sampling: Sampling = Sampling()
    #: What follows a join, up to an end tag; None: the branch goes on as before its fork.
    summary: Summary | None = None
    #: Where the answer begins; None: the dialect does not know.
    answer: Answer | None = None
    #: Tokens that a context must still have room for to fork.
    min_room: int = Field(default=1, ge=1)
    min_left: int = Field(
        default=0,
        ge=0,
        description="positions, counted from the prompt, that max_tokens must still leave a branch to fork",
    )
    max_turns: int | None = Field(
        default=None,
        ge=1,
        description="turns of an answer, which ends after the last: each stretch of text that the request "
        "itself writes, up to a trigger, and each of its forks; none: no limit",
    )
    max_depth: int = Field(default=1, ge=1, description="how deep threads may nest; 1: threads don't fork")
    max_open: int | None = Field(
        default=None,
        ge=1,
        description="threads of an answer that may run at the same time: a fork into more is refused",
    )
    reserve: int = Field(
        default=0,
        ge=0,
        description="tokens of max_tokens that no branch uses: it reaches its limit where its positions, or "
        "the tokens of its context, its own counted once for each thread of its fork, leave no more",
    )
    limits_parent: bool = Field(
        default=False,
        description="whether limits.max_tokens_per_thread also holds for what the request itself writes",
    )
    #: Tokens (or texts) that end the answer where the request itself writes them, and not a thread.
    stops: tuple[NonEmpty, ...] = ()
    #: Further tags that the model writes itself, checked to be one token each.
    tags: tuple[NonEmpty, ...] = ()
    #: Texts that the model should not write itself, and what then stands in their place in its context.
    swaps: dict[NonEmpty, str] = Field(default_factory=dict)
    #: Appended to the last user message of a chat, for models that were not trained to fork.
    instruction: str | None = None
    #: An attribute that the model's class must have to be served with this dialect, and why.
    needs_model_attribute: str | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Dialect:
        if (self.outline is None) == (self.width is None):
            raise ValueError("expected either outline or width, got both or neither")
        if self.fork_at is ForkAt.TRIGGER and self.trigger is None:
            raise ValueError("expected a trigger, for fork_at is trigger")
        if self.fork_at is ForkAt.PROMPT and self.width is None:
            raise ValueError("expected a width, for at the end of the prompt nothing is announced")
        if self.tags_are == "text" and self.trigger is not None:
            check_regex(self.trigger)
        if self.trigger is not None and self.trigger == self.thread.end:
            raise ValueError(f"expected a trigger other than thread.end, got {self.trigger!r} for both")
        if self.fork_at is ForkAt.END and self.trigger is None and self.outline is None:
            raise ValueError("expected a trigger or an outline, to know which turns end with a fork")
        if self.thread.without_trigger and (self.join.waits or self.tags_are == "text"):
            raise ValueError(
                "expected without_trigger only where the trigger is a token and the parent does not wait: "
                "a joined context has it"
            )
        if self.thread.context is Context.HEADER and not self.thread.header:
            raise ValueError("expected a header, for it is all that a thread sees")
        if self.embeds_paths and not (self.join.moves_kv and self.width and self.max_depth == 1):
            raise ValueError(
                f"expected {PATH_EMBEDDINGS} only with the kind stitch, a width and max_depth 1: other joins "
                "compute a thread's tokens again as its parent's, and other threads have no number of a path"
            )
        self.join.check(self)
        if self.outline is not None and self.outline.has_stages:
            self.join.check_stages(self)
        return self

    @model_validator(mode="after")
    def _says_what_it_can_do(self) -> Dialect:
        if self.thread.also_ends and self.thread.end is None:
            raise ValueError("expected thread.end beside also_ends: without, end of sequence ends a thread")
        if self.summary is not None and (self.tags_are == "text" or self.join.moves_kv):
            raise ValueError("expected a summary only of tokens, and not with the kind stitch")
        if self.policies.duplicate_outline is Policy.KEEP and self.join.asks_by_number:
            raise ValueError("expected duplicate_outline other than keep: a join on demand asks by number")
        opens = None if self.outline is None else self.outline.opens
        if self.policies.unopened_outline is not Policy.UNREAD and (opens is None or self.tags_are == "text"):
            raise ValueError(
                "expected outline.opens, a token, beside unopened_outline: what it is about is that tag"
            )
        return self

    def widths_within(self, limits: Limits) -> list[int]:
        """Into how many threads forks without an outline go: each round of them, or all of them alike."""
        assert self.width is not None
        widths = [self.width, *self.join.further_widths]
        return [min(width, limits.max_threads_per_fork or width) for width in widths]

    def with_rounds(self, rounds: Sequence[int]) -> Dialect:
        """The dialect, whose joins ask again, with so many threads in each round."""
        join = self.join.model_copy(update={"then": tuple(rounds[1:])})
        return self.model_copy(update={"width": rounds[0], "join": join})

    def num_answers(self, limits: Limits) -> int:
        """How many answers a request comes to, each with as many tokens as it may have; 1: its own."""
        if not self.join.threads_are_answers:
            return 1
        return sum(self.widths_within(limits)) + self.join.goes_on

    @property
    def embeds_paths(self) -> bool:
        """Whether the model is told of which path each token is."""
        return self.needs_model_attribute == PATH_EMBEDDINGS

    @property
    def control_tokens(self) -> tuple[str, ...]:
        """Every token that must be one id in the model's vocabulary."""
        stops = () if self.tags_are == "text" else self.stops
        if self.summary is not None:
            stops += (self.summary.end,)
        own = (*self.tags, *stops, *(token for row in self.sampling.banned for token in row))
        if self.tags_are == "text":
            return tuple(dict.fromkeys(own))
        opens = self.outline.opens if self.outline is not None else None
        numbers = [str(n) for n in range(1, (self.width or 1) + 1)]
        ends = [fill(self.thread.end, n=n) for n in numbers] if self.thread.end is not None else []
        ends += self.further_ends
        named = [t for t in (self.trigger, opens) if t is not None]
        return tuple(dict.fromkeys((*named, *ends, *own)))

    @property
    def speaks_in_turns(self) -> bool:
        """Whether turns of the model's chat template stand in its texts."""
        texts = [*(getattr(self.thread, name) for name in _SPOKEN), self.join.text]
        return any(found[1] in TURNS for text in texts if text for found in BRACES.finditer(text))

    @property
    def further_ends(self) -> list[str]:
        """What else ends a thread, whichever it is."""
        numbers = [str(n) for n in range(1, (self.width or 1) + 1)]
        return list(dict.fromkeys(fill(t, n=n) for t in self.thread.also_ends for n in numbers))

    def check_tokenizer(self, tokenizer: Tokenizer) -> None:
        """Raise DialectError naming each control token that the tokenizer splits or lacks."""
        missing = [t for t in self.control_tokens if tokenizer.token_id(t) is None]
        if missing:
            raise DialectError(
                f"dialect {self.name!r} needs each of its control tokens as one id of the model's "
                f"tokenizer, which splits or lacks {', '.join(missing)}: choose the dialect the "
                "model was trained with (--dialect), or serve it without (--dialect none)"
            )

    def with_turns(self, tokenizer: Tokenizer) -> Dialect:
        """The dialect with the turns of the model's chat template in its texts, and join.text plain.

        Raises DialectError if it has such fields and the tokenizer no chat template.
        """
        turns: dict[str, str] = {}
        if self.speaks_in_turns:
            written = tokenizer.turns()
            if written is None:
                raise DialectError(
                    f"dialect {self.name!r} speaks in turns, but the model's tokenizer has no chat template: "
                    "give one with --chat-template, or choose another dialect"
                )
            turns = dict(zip(TURNS, written, strict=True))
        thread = {name: fill_turns(getattr(self.thread, name), turns) for name in _SPOKEN}
        return self.model_copy(
            update={
                "thread": self.thread.model_copy(update=thread),
                "join": self.join.model_copy(update={"text": fill(self.join.text, **turns)}),
            }
        )
