"""What the engine core gets at start: the dialect and the server's limits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from forkjoin_scheduler.dialects.dialect import Dialect
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.policy.admission import AdmissionPolicy
from forkjoin_scheduler.policy.eviction import EvictionPolicy
from forkjoin_scheduler.policy.own import own_policy
from forkjoin_scheduler.policy.pruning import Pruning
from forkjoin_scheduler.policy.threads import ThreadPolicy

#: The key of vLLM's ``additional_config``; and of ``SamplingParams.extra_args``, where whoever uses vLLM
#: without our server asks for fork/join, in the words of the HTTP API.
KEY = "forkjoin"
#: Of ``extra_args``: what an API process has checked and compiled.
COMPILED = "forkjoin_compiled"
#: Of ``extra_args``: whether the request's tree is recorded, and emitted as segments.
TREE = "forkjoin_tree"

#: How attention is grouped unless it is said otherwise: where that is expected to pay.
AUTO = "auto"
#: Who may draft tokens for requests that fork.
DraftSource = Literal["drafter", "family"]
UNLIMITED = Limits(
    max_threads_per_fork=None, max_forks=None, max_tokens_per_thread=None, max_total_tokens=None
)


#: The settings that bring a policy of the user's own, by its class path, and what it has to be like.
OWN_POLICIES: dict[str, type] = {
    "admission_policy": AdmissionPolicy,
    "thread_policy": ThreadPolicy,
    "prune_policy": Pruning,
    "eviction_policy": EvictionPolicy,
}


class Settings(BaseModel):
    """``additional_config["forkjoin"]``; ``dialect`` None switches fork/join off.

    ``limits`` hold for requests that say nothing; no request may go over ``caps``, the limits
    that the operator gave on the command line.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    dialect: Dialect | None = None
    limits: Limits = Limits()
    caps: Limits = UNLIMITED
    join_ahead_tokens: int = Field(
        default=128,
        ge=0,
        description="Tokens of finished threads that one step may prefill for a re-prefill join while other "
        "threads decode. With 0, all of them are prefilled at the join.",
    )
    admission: Literal["family", "greedy"] = Field(
        default="family",
        description="When a waiting request starts. family: when the KV blocks and slots that it is "
        "expected to need, threads included, fit beside the running requests. greedy: when its prompt "
        "fits, as in vLLM.",
    )
    admission_policy: str | None = Field(
        default=None,
        description="Python path (package.module.Class) of your own policy, which decides whether a waiting "
        "request starts beside the running ones. The built-in one is "
        "forkjoin_scheduler.policy.admission.Admission.",
    )
    max_threads_running: int | None = Field(
        default=None,
        ge=1,
        description="Threads of one request that run at the same time. The others wait and hold no KV "
        "blocks.",
    )
    slo_itl_ms: float | None = Field(
        default=None,
        gt=0,
        description="Target time between two tokens of a stream, in milliseconds. Threads skip steps that "
        "would make the streams of others slower.",
    )

    thread_policy: str | None = Field(
        default=None,
        description="Python path (package.module.Class) of your own policy, which chooses the threads of "
        "each step. The built-in ones are in forkjoin_scheduler.policy.threads.",
    )

    prune_policy: str | None = Field(
        default=None,
        description="Python path (package.module.Class) of your own policy, which stops threads of a vote if "
        "the request sets prune to own. It must subclass forkjoin_scheduler.policy.pruning.Pruning.",
    )

    eviction_policy: str | None = Field(
        default=None,
        description="Python path (package.module.Class) of your own policy, which chooses the family that "
        "gives up its KV blocks when nothing can run for want of them. The built-in one, "
        "forkjoin_scheduler.policy.eviction.LastCome, takes the one that came last.",
    )

    draft_from: DraftSource = Field(
        default="drafter",
        description="Where an ngram or suffix drafter finds drafts for a thread. drafter: in the thread's "
        "own context. family: if that has none, also in its siblings and in the text before the fork.",
    )

    max_request_threads: int = Field(
        default=256,
        ge=1,
        description="Threads that one request may ask for by branches or best_of, or bring in the tree that "
        "it goes on from, summed over all its answers.",
    )
    max_request_tokens: int | None = Field(
        default=None,
        ge=1,
        description="Tokens that all answers to one request may generate together. Unset, the limit is 256 "
        "full contexts.",
    )

    max_tree_tokens: int = Field(
        default=1 << 20,
        ge=1,
        description="Tokens that the trees of all answers to one request may have together "
        "(forkjoin.return_tree). What the answers may generate counts, and the prompt once for each answer. "
        "Each likeliest token that is reported beside a generated one counts as one more.",
    )

    max_continued_tokens: int = Field(
        default=0,
        ge=0,
        description="Tokens that a tree may have from which a request goes on (forkjoin.continues_tree). "
        "With 0, such requests are refused. The server replays a tree before the request begins, so allow "
        "it to clients that you trust.",
    )

    on_new_weights: Literal["finish", "recompute", "abort"] = Field(
        default="finish",
        description="What happens to requests that have begun when the weights change. finish: they go on, "
        "on KV of the old weights where they have it. recompute: the new weights compute it again. abort: "
        "they end with what they have.",
    )

    max_kept_share: float = Field(
        default=0.25,
        ge=0,
        le=0.9,
        description="Share of the KV blocks that answers may hold which clients have kept (forkjoin.keep). "
        "With 0, none is kept.",
    )
    max_keep_s: int = Field(
        default=3600, ge=1, description="Seconds for which a client may have an answer kept."
    )

    control_tokens_in_prompts: Literal["neutralise", "allow", "refuse"] = Field(
        default="neutralise",
        description="How the dialect's control tokens in a chat's messages and tools are read. neutralise: "
        "as text. allow: as control tokens, as in vLLM. refuse: the request gets a 400.",
    )

    grouped_attention: str = Field(
        default=AUTO,
        description="Whether KV that several rows of a step share is read once. auto: where a check at the "
        "start finds it exact, in steps that save at least 50 MB a layer (17 MB with --grouped-graphs full). "
        "N: in steps that save N tokens of KV a layer or more. order: rows that share KV only stand side by "
        "side. off: as in vLLM.",
        json_schema_extra={"metavar": "auto|N|order|off"},
    )

    grouped_graphs: Literal["piecewise", "full"] = Field(
        default="piecewise",
        description="CUDA graphs of decoding steps with grouped attention. piecewise: attention runs between "
        "them. full: a graph of a whole step has it, too, if a check at the start finds it exact. No GPU has "
        "run full.",
    )

    @field_validator("grouped_attention")
    @classmethod
    def _is_known(cls, value: str) -> str:
        if value not in (AUTO, "order", "off") and not (value.isascii() and value.isdigit()):
            raise ValueError(f"expected auto, order, off or a number of tokens, got {value!r}")
        return value

    @field_validator(*OWN_POLICIES)
    @classmethod
    def _can_be_made(cls, path: str | None, info: ValidationInfo) -> str | None:
        if path is not None:
            own_policy(path, OWN_POLICIES[str(info.field_name)])
        return path

    @model_validator(mode="after")
    def _has_one_admission(self) -> Settings:
        if self.admission_policy is not None and self.admission == "greedy":
            raise ValueError("expected one way to admit requests, got admission greedy and admission_policy")
        return self

    @model_validator(mode="after")
    def _has_one_thread_policy(self) -> Settings:
        given = {n: getattr(self, n) for n in ("max_threads_running", "slo_itl_ms", "thread_policy")}
        both = [name for name, value in given.items() if value is not None]
        if len(both) > 1:
            raise ValueError(f"expected one way to choose threads, got {' and '.join(both)}")
        return self

    @property
    def groups_attention(self) -> bool:
        """Whether workers are to attend to groups, if they can."""
        return self.grouped_attention not in ("order", "off")

    def policy(self, setting: str) -> Any:
        """A new policy of the user's own, if ``setting``, one of ``OWN_POLICIES``, brings one; else None."""
        path = getattr(self, setting)
        return None if path is None else own_policy(path, OWN_POLICIES[setting])

    @classmethod
    def of(cls, dialect: Dialect, given: dict[str, int], **more: Any) -> Settings:
        """The dialect's own limits, with those ``given`` on the command line in their place."""
        return cls(
            dialect=dialect,
            limits=dialect.limits.model_copy(update=given),
            caps=UNLIMITED.model_copy(update=given),
            **more,
        )
