"""What a request may say about fork/join: the ``forkjoin`` field of its body."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import UNSET, UnsetType
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from forkjoin_scheduler.dialects.limits import MAX_COUNT, Limits
from forkjoin_scheduler.dialects.patterns import NonEmpty, check_linear
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.request.given import Given
from forkjoin_scheduler.wrong_fields import UNKNOWN_KEY, expected_and_got, place

if TYPE_CHECKING:
    from forkjoin_scheduler.dialects.dialect import Dialect
    from forkjoin_scheduler.settings import Settings

#: Wrong keys that an error names; the others are counted.
_MAX_NAMED = 3
#: Of a sentence about one of them.
_MAX_CHARS = 160


def _is_unicode(text: str) -> str:
    """``text``, if it can be encoded. A JSON escape may write half of a surrogate pair, which can't."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"expected valid Unicode, got half of a surrogate pair at character {error.start}"
        ) from error
    return text


Unicode = Annotated[str, AfterValidator(_is_unicode)]


#: A title only names a thread. It travels with the thread's events, into logs and spans too.
MAX_TITLE_CHARS = 1000
MAX_BRANCHES = 256
MAX_ROUNDS = 8


def _is_short(title: str) -> str:
    if len(title) > MAX_TITLE_CHARS:
        raise ValueError(f"expected at most {MAX_TITLE_CHARS} characters, got {len(title)}")
    return title


class ExplicitBranch(BaseModel):
    """A thread that the request names: what it is called, and the text that it continues from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    title: Annotated[Unicode, AfterValidator(_is_short)] = Field(
        default="", description=f"Name of the thread, of at most {MAX_TITLE_CHARS} characters."
    )
    text: Unicode = Field(
        default="",
        description="Text after the prompt that the thread continues. If it is empty, the thread continues "
        "its title and a newline.",
    )
    response_format: dict[str, Any] | None = Field(
        default=None,
        description="Format that the thread's text must obey, as `response_format` of a request.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> ExplicitBranch:
        if not (self.title or self.text):
            raise ValueError("expected a title or a text")
        return self


class _AtPrompt:
    """What options ask to be forked after the prompt, whether they have texts or tokens."""

    __slots__ = ()

    if TYPE_CHECKING:

        @property
        def best_of(self) -> int | None:
            """Of whoever has the options."""

        @property
        def branches(self) -> Sequence[object] | None:
            """Of whoever has the options."""

    @property
    def width(self) -> int | None:
        """Into how many threads the request itself forks after its prompt, None if it does not."""
        return len(self.branches) if self.best_of is None and self.branches is not None else self.best_of

    @property
    def forks_at_prompt(self) -> bool:
        """Whether the request itself asks for a fork after its prompt."""
        return self.width is not None


class RequestOptions(_AtPrompt, Limits):
    """The limits of one request, the off switch, what it asks to be forked and shown."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    enabled: bool = Field(
        default=True,
        description="Whether the request may fork. With false, the same weights decode sequentially.",
    )
    include_threads: bool = Field(
        default=False, description="Whether a chat completion or a response lists its threads."
    )
    return_tree: bool = Field(
        default=False,
        description="Whether each answer comes with its tree: all tokens that were computed for it, with "
        "their contexts, positions and log-probabilities.",
    )
    stream_segments: bool = Field(
        default=False,
        description="For a stream with return_tree: whether segments of the tree are sent as they end, in "
        "chunks of their own.",
    )
    max_threads_running: int | None = Field(
        default=None,
        ge=1,
        le=MAX_COUNT,
        description="Threads of the request that run at the same time. The others wait. A lower "
        "--max-threads-running of the server overrides it.",
    )
    structured: Literal["answer"] | None = Field(
        default=None,
        description="Where structured output applies. answer: from where the dialect says that the answer "
        "begins. Unset: after the reasoning if the server has a reasoning parser, else from the first token.",
    )
    best_of: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BRANCHES,
        description="Number of threads that each answer the prompt. The answer is the first thread with the "
        "majority vote. It needs vote. Beside branches, the threads take these in turn.",
    )
    vote: Annotated[Unicode, AfterValidator(check_linear)] | None = Field(
        default=None,
        description="For best_of: regex of a vote, in the syntax of RE2. The last match at the end of a "
        "thread is its vote, or the group `result` of that match.",
    )
    confidence: float | None = Field(
        default=None,
        ge=0.5,
        le=1,
        allow_inf_nan=False,
        description="For best_of: the vote ends when its leader wins with this probability. Threads start in "
        "waves, each as wide as the vote needs if all of it agree. With 1 the answer is that of all threads.",
    )
    prune: Literal["confidence", "agreement", "memory", "own"] | None = Field(
        default=None,
        description="For best_of: which threads are stopped early, so that the answer may differ. "
        "confidence: the least sure ones. agreement: those that disagree with most. memory: the least sure "
        "one when KV blocks run out. own: those that the server's --prune-policy names.",
    )
    wait_for_all: bool = Field(
        default=False,
        description="For best_of: whether threads run to their ends if they can no longer change the answer. "
        "With false, they are cut.",
    )

    branches: Annotated[list[ExplicitBranch], Field(min_length=1, max_length=MAX_BRANCHES)] | None = Field(
        default=None,
        description="Threads that the request defines. Each continues the prompt and its own text. With "
        "best_of they are the openings of its threads.",
    )
    closing: Annotated[NonEmpty, AfterValidator(_is_unicode)] | None = Field(
        default=None,
        description="For branches: text after all branches that the model continues. Unset, the answer ends "
        "after the branches.",
    )

    rounds: (
        Annotated[
            list[Annotated[int, Field(ge=1, le=MAX_BRANCHES)]], Field(min_length=1, max_length=MAX_ROUNDS)
        ]
        | None
    ) = Field(
        default=None,
        description="For a dialect of rounds: threads of each round, before the one answer. Unset, the "
        "dialect's own.",
    )

    keep: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds for which the KV of the answer is kept after its end, so that requests which go "
        "on from it prefill only what is new. It gives way to running requests. The answer's "
        "`usage.forkjoin` says whether it is kept.",
    )
    continues: Annotated[Unicode, AfterValidator(_is_short)] | None = Field(
        default=None,
        description="Id of a kept answer that the request goes on from. The answer's `usage.forkjoin` says "
        "whether that one is still kept. `/v1/responses` takes it from `previous_response_id`.",
    )
    continues_tree: dict[str, Any] | None = Field(
        default=None,
        description="Tree of an answer that was cut off, as `return_tree` gave it, from which the request "
        "goes on. The prompt is to be that of the tree. Its tokens are not generated again, and count for "
        "all limits.",
    )
    group_id: Annotated[NonEmpty, AfterValidator(_is_unicode), AfterValidator(_is_short)] | None = Field(
        default=None,
        description="Name of a group of requests that share a prompt, such as the samples of one rollout. "
        "With several engines all of a group run on one, which prefills the prompt once. Equal prompts of a "
        "group that wait count once for the limits of an API key.",
    )

    @model_validator(mode="after")
    def _asks_for_one_thing(self) -> RequestOptions:
        num_openings = len(self.branches or ())
        if self.best_of is not None and self.best_of < num_openings:
            raise ValueError(
                f"expected best_of = {num_openings} or more, for each of branches to have a thread, "
                f"got {self.best_of}"
            )
        if self.stream_segments and not self.return_tree:
            raise ValueError("expected return_tree beside stream_segments")
        if self.rounds is not None and self.forks_at_prompt:
            raise ValueError("expected rounds, or branches or best_of, got both")
        if self.closing is not None and self.branches is None:
            raise ValueError("expected branches beside closing")
        if self.closing is not None and self.best_of is not None:
            raise ValueError("expected closing or best_of, got both: of a vote one thread is the answer")
        if (self.best_of is None) != (self.vote is None):
            raise ValueError("expected best_of and vote together")
        for name in ("wait_for_all", "confidence", "prune"):
            is_asked = getattr(self, name) not in (None, False)
            if is_asked and self.best_of is None:
                raise ValueError(f"expected best_of beside {name}")
            if is_asked and self.wait_for_all and name != "wait_for_all":
                raise ValueError(f"expected {name} or wait_for_all, got both")
        return self

    def limits(self, defaults: Limits) -> Limits:
        """``defaults`` with what the request itself set."""
        return defaults.model_copy(update={n: getattr(self, n) for n in self._set_limits()})

    def check_limits(self, defaults: Limits, caps: Limits) -> None:
        """Raise BadRequestOptions naming each limit over the server's own, or too many branches asked for."""
        problems = []
        for name in self._set_limits():
            mine, cap = getattr(self, name), getattr(caps, name)
            if cap is not None and (mine is None or mine > cap):
                flag = f"--{name.replace('_', '-')}"
                problems.append(f"forkjoin.{name}: expected at most {cap}, the server's {flag}, got {mine}")
        limits, asked = self.limits(defaults), f"forkjoin.{self.asked}"
        most = limits.max_threads_per_fork
        if self.width is not None and most is not None and self.width > most:
            whose = self._whose("max_threads_per_fork", caps)
            problems.append(
                f"{asked}: expected at most max_threads_per_fork = {most} ({whose}), got {self.width}"
            )
        if self.rounds is not None and most is not None and max(self.rounds) > most:
            whose = self._whose("max_threads_per_fork", caps)
            problems.append(
                f"forkjoin.rounds: expected at most max_threads_per_fork = {most} ({whose}) threads in each, "
                f"got {max(self.rounds)}"
            )
        num_forks = len(self.rounds or ()) or int(self.width is not None)
        if limits.max_forks is not None and limits.max_forks < num_forks:
            whose = self._whose("max_forks", caps)
            problems.append(
                f"{asked}: expected max_forks = {num_forks} or more beside it, got "
                f"{limits.max_forks} ({whose})"
            )
        if problems:
            raise BadRequestOptions("; ".join(problems))

    @property
    def asked(self) -> str:
        """The field by which the request itself asks for threads."""
        return "best_of" if self.best_of is not None else "rounds" if self.rounds is not None else "branches"

    def _whose(self, limit: str, caps: Limits) -> str:
        """Who has set a limit that the request runs into, and whether the request may set another."""
        if limit in self.model_fields_set:
            return f"the request's own forkjoin.{limit}"
        if getattr(caps, limit) is not None:
            return f"the server's --{limit.replace('_', '-')}"
        return f"the server's default; forkjoin.{limit} sets another"

    def check_pruning(self, policy: str | None) -> None:
        """Raise BadRequestOptions if the request wants the server's own pruning policy, and there is none."""
        if self.prune == "own" and policy is None:
            raise BadRequestOptions(
                "forkjoin.prune: expected a server with a --prune-policy for own, got one without"
            )

    def check_rounds(self, dialect: Dialect | None) -> None:
        """Raise BadRequestOptions if the request wants rounds, and its model does not speak in such."""
        if self.rounds is not None and (dialect is None or not dialect.join.asks_again):
            raise BadRequestOptions(
                "forkjoin.rounds: expected a server whose dialect joins in rounds (pacore), but it runs with "
                f"--dialect {'none' if dialect is None else dialect.name}: leave it out"
            )

    def check_keep(self, settings: Settings) -> None:
        """Raise BadRequestOptions if the answer can't be kept as the request asks."""
        if self.keep is None:
            return
        if settings.dialect is None:
            raise BadRequestOptions(
                "forkjoin.keep: expected a server with a dialect, but it runs with --dialect none: "
                "leave it out"
            )
        if not settings.max_kept_share:
            raise BadRequestOptions(
                "forkjoin.keep: expected a server that keeps answers, but it runs with --max-kept-share 0: "
                "leave it out"
            )
        if self.keep > settings.max_keep_s:
            raise BadRequestOptions(
                f"forkjoin.keep: expected at most {settings.max_keep_s:g} seconds, the server's "
                f"--max-keep-s, got {self.keep:g}"
            )

    def check_continued_tree(self, most: int) -> None:
        """Raise BadRequestOptions if the tree that the request goes on from has more than ``most`` tokens."""
        if self.continues_tree is None:
            return
        if not most:
            raise BadRequestOptions(
                "forkjoin.continues_tree: expected a server that takes trees, but it runs with "
                "--max-continued-tokens 0: ask its operator to set it, or send the request without a tree"
            )
        if (num := _num_tokens(self.continues_tree)) > most:
            raise BadRequestOptions(
                f"forkjoin.continues_tree: expected at most {most} tokens in all segments, the server's "
                f"--max-continued-tokens, got {num}"
            )

    def _set_limits(self) -> list[str]:
        return [n for n in Limits.model_fields if n in self.model_fields_set]


def _num_tokens(tree: dict[str, Any]) -> int:
    """Tokens of ``tree``, which is JSON that nobody has read yet, and may be no tree."""
    segments = tree.get("segments")
    ids = [s.get("token_ids") for s in segments if isinstance(s, dict)] if isinstance(segments, list) else []
    return sum(len(of_segment) for of_segment in ids if isinstance(of_segment, list))


class CompiledBranch(msgspec.Struct, frozen=True, omit_defaults=True):
    """The same as the engine gets it: the tokens that the thread continues from."""

    title: str
    token_ids: list[int]
    #: What the thread is to obey: fields of vLLM's ``StructuredOutputsParams``, and its ``backend``.
    structured: dict[str, Any] | None = None


class CompiledOptions(_AtPrompt, msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``RequestOptions`` as they cross to the engine core: checked, with tokens in the place of texts.

    ``compiled.py`` makes them, and nothing in them is checked again. A limit that the request says nothing
    of is unset.
    """

    enabled: bool = True
    include_threads: bool = False
    return_tree: bool = False
    max_threads_running: int | None = None
    structured: Literal["answer"] | None = None
    best_of: int | None = None
    vote: str | None = None
    confidence: float | None = None
    prune: str | None = None
    wait_for_all: bool = False
    branches: list[CompiledBranch] | None = None
    closing: list[int] | None = None
    rounds: list[int] | None = None
    keep: float | None = None
    continues: str | None = None
    given: Given | None = None

    def branch_of(self, sibling_index: int) -> CompiledBranch | None:
        """What the thread at that place continues from, None if from the prompt alone."""
        return self.branches[sibling_index % len(self.branches)] if self.branches else None

    max_threads_per_fork: int | UnsetType | None = UNSET
    max_forks: int | UnsetType | None = UNSET
    max_tokens_per_thread: int | UnsetType | None = UNSET
    max_total_tokens: int | UnsetType | None = UNSET

    def limits(self, defaults: Limits) -> Limits:
        """``defaults`` with what the request itself set."""
        given = {name: getattr(self, name) for name in Limits.model_fields}
        return defaults.model_copy(update={n: limit for n, limit in given.items() if limit is not UNSET})


def parse_options(value: Any) -> RequestOptions:
    """Validate a ``forkjoin`` object, or its JSON text (vLLM's ``vllm_xargs`` hold no objects).

    Raises BadRequestOptions naming what is wrong, and beside an unknown key those that are legal there.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise BadRequestOptions(f"forkjoin: expected an object or its JSON, {error}") from error
    if not isinstance(value, dict):
        raise BadRequestOptions(f"forkjoin: expected an object, got {type(value).__name__}")
    try:
        return RequestOptions.model_validate(value)
    except ValidationError as error:
        raise BadRequestOptions(_named(error)) from error


def _named(error: ValidationError) -> str:
    """The first wrong fields, each with what was expected and what was seen, both cut to a few words."""
    wrong = error.errors(include_url=False, include_context=False)
    named = wrong[:_MAX_NAMED]
    problems = [f"{place('forkjoin', e['loc'])}: {expected_and_got(e, _MAX_CHARS)}" for e in named]
    if len(wrong) > len(named):
        problems.append(f"and {len(wrong) - len(named)} more")
    unknown = [e["loc"] for e in named if e["type"] == UNKNOWN_KEY]
    legal = dict.fromkeys(_legal_keys(in_branch=len(loc) > 1) for loc in unknown)
    return ". ".join(["; ".join(problems), *legal])


def _legal_keys(*, in_branch: bool) -> str:
    of, model = ("a branch", ExplicitBranch) if in_branch else ("forkjoin", RequestOptions)
    return f"Legal keys of {of}: {', '.join(sorted(model.model_fields))}"
