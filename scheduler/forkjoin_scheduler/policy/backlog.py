"""How much may wait: counted in families, in the threads and in the tokens that they are expected to need.

A front end knows what of its own waits: from the door on until the engine sends a first token. One
request of eight threads is more than one of two tokens; so each is counted by what the engine has
learnt of those that have ended (``policy/admission.py``), or by what it asks for itself. Past a bound a
request is refused at once, with the time to come back: by then as much is expected to have ended as
is too much now. Those that are refused meanwhile line up after it, so they don't come back together.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace

from forkjoin_scheduler.errors import BadRequestOptions, Limit, Overloaded
from forkjoin_scheduler.policy.admission import Admission

#: Seconds of Retry-After, at least and at most (OpenAI's clients wait no longer).
MIN_RETRY_S, MAX_RETRY_S = 1, 60
#: Retry-After before anything has ended.
FIRST_RETRY_S = 10
#: What has ended longer ago hardly counts.
HORIZON_S = 20.0
#: By unit, the limit of what waits.
QUEUED: dict[str, Limit] = {
    "families": "queued_families",
    "threads": "queued_threads",
    "tokens": "queued_tokens",
}

#: What a client calls each unit.
_ASKED = {"families": "answers", "threads": "threads"}


@dataclass(frozen=True)
class Load:
    """``tokens``: of prompts, and expected to be generated; ``threads``: the widest that is expected."""

    families: float = 0
    threads: float = 0
    tokens: float = 0

    def __add__(self, other: Load) -> Load:
        return Load(self.families + other.families, self.threads + other.threads, self.tokens + other.tokens)

    def __mul__(self, factor: float) -> Load:
        return Load(self.families * factor, self.threads * factor, self.tokens * factor)

    def __sub__(self, other: Load) -> Load:
        return self + other * -1


@dataclass(frozen=True)
class Bounds:
    """What may wait at most; None: as much as comes."""

    families: int | None = None
    threads: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Expected:
    """What the engine expects of a request; where the model does not fork, it is one thread."""

    tokens: float = Admission.PRIOR_TOKENS
    threads: float = Admission.PRIOR_WIDTH


@dataclass(frozen=True)
class Tenant:
    """Whose request it is, as the engine may know it: ``id`` is not the key, nor made of it."""

    id: str = ""
    weight: float = 1
    #: Families that it may have waiting and running at once.
    max_families: int | None = None
    #: Tokens of its prompts that may wait.
    max_queued_tokens: int | None = None
    #: Tokens of its answers that an engine may keep for it.
    max_kept_tokens: int | None = None
    #: What its KV cache is named by, if it is its own.
    cache: str | None = None
    #: Whether it is shown the ids of others' requests.
    sees_all: bool = True


@dataclass(eq=False)
class Visit:
    """One HTTP request on its way to the engine, where it becomes ``num_families``.

    It is admitted, or refused, as one: when the first of these families comes to the engine. If it has
    announced how many there will be, those beyond as many at once are admitted or refused one by one.
    """

    tenant: Tenant
    num_families: int = 1
    #: Different prompts of these.
    num_prompts: int = 1
    #: Threads that it asks for itself.
    width: int | None = None
    #: What names the requests that it shares prompts with.
    group: str | None = None
    #: The engine that is to take it; None: any.
    engine: int | None = None
    refused: Overloaded | BadRequestOptions | None = None
    is_in: bool = False
    #: Whether its body has said how many families it becomes. vLLM makes what it likes of others (an hour of
    #: sound, a list of texts to embed).
    is_announced: bool = False
    #: Families of it that wait or run.
    num_present: int = 0
    #: Called once, when it is admitted or refused.
    decided: Callable[[], None] = lambda: None


@dataclass
class Rate:
    """What ends in a second, of those seconds in which there is something to end; the latest count most."""

    ended: Load = Load()
    seconds: float = 0.0

    def pass_time(self, seconds: float) -> None:
        """So long something was there."""
        kept = math.exp(-seconds / HORIZON_S)
        self.ended *= kept
        self.seconds = self.seconds * kept + HORIZON_S * (1 - kept)

    def seconds_for(self, much: float, unit: str) -> float | None:
        """How long it takes until ``much`` has ended; None if it can't be known yet."""
        ended: float = getattr(self.ended, unit)
        return much * self.seconds / ended if ended > 1e-9 else None


@dataclass
class _OfTenant:
    """What a tenant has here: families waiting or running, and tokens of prompts that wait."""

    families: int = 0
    queued_tokens: int = 0


@dataclass(eq=False)
class _Family:
    visit: Visit
    load: Load
    prompt_tokens: int
    waits: bool = True
    #: What it shares its prompt with while it waits: equal for equal prompts of a group.
    shares: Hashable | None = None


@dataclass
class Backlog:
    """The families of one front end, from the door to their end."""

    bounds: Bounds = Bounds()
    expected: Expected = Expected()
    #: What ``time.monotonic`` gives, and tests give by hand.
    clock: Callable[[], float] = time.monotonic
    #: How many front ends share the server's bounds, of which ``bounds`` are this one's.
    num_front_ends: int = 1
    waiting: Load = Load()
    _arriving: set[Visit] = field(default_factory=set)
    _families: dict[str, _Family] = field(default_factory=dict)
    _tenants: dict[str, _OfTenant] = field(default_factory=dict)
    #: Those that wait and share a prompt, which the first of them counts if it is still to be prefilled.
    _sharing: dict[Hashable, list[_Family]] = field(default_factory=dict)
    _rate: Rate = field(default_factory=Rate)
    _at: float | None = None
    #: Until when refused clients were asked to stay away, by the tenant whose limit it was ("": all).
    _promised: dict[str, float] = field(default_factory=dict)

    # ---- from the door to the engine ----------------------------------------------------------

    def arrive(self, visit: Visit) -> None:
        """``visit`` is at the door, its body has not been read. Raises Overloaded if it may not wait."""
        load = Load(families=1)
        self._check(visit, load, 0)
        self._arriving.add(visit)
        self._count(visit.tenant.id, load, families=1)

    def announce(self, visit: Visit) -> None:
        """The body of ``visit`` has been read: it is to become ``num_families``, of its ``width``.

        Raises Overloaded if so many may not wait. Nothing has been made of its prompts by then.
        """
        visit.is_announced, is_at_door = True, visit in self._arriving
        self.leave(visit)
        self._check_size(visit)
        self._check(visit, Load(families=visit.num_families), 0)
        if is_at_door:
            self._arriving.add(visit)
            self._count(visit.tenant.id, Load(families=1), families=1)

    def leave(self, visit: Visit) -> None:
        """``visit`` is over. What it left in the engine is counted until it ends there."""
        if visit in self._arriving:
            self._arriving.remove(visit)
            self._count(visit.tenant.id, Load(families=-1), families=-1)

    def enter(
        self,
        request_id: str,
        visit: Visit,
        prompt_tokens: int,
        max_tokens: int | None,
        prompt: Hashable | None = None,
    ) -> None:
        """A family of ``visit`` comes to the engine. Raises Overloaded if none of its may.

        ``prompt`` is equal for equal prompts; None: not known. Those of one group are prefilled once: while
        the first of them waits, the others count no prompt.
        """
        if visit.refused is not None:
            raise visit.refused
        is_shared = visit.group is not None and prompt is not None
        shares = (visit.tenant.id, visit.group, prompt) if is_shared else None
        if shares in self._sharing:
            prompt_tokens = 0
        load = self._load_of(visit, prompt_tokens, max_tokens)
        if not visit.is_in:
            self.leave(visit)
            num_prompts = visit.num_families if shares is None else visit.num_prompts
            shared = Load(tokens=prompt_tokens * (visit.num_families - num_prompts))
            try:
                self._check_size(visit)
                self._check(visit, load * visit.num_families - shared, prompt_tokens * num_prompts)
            except Overloaded as error:
                visit.refused = error
                visit.decided()
                raise
            visit.is_in = True
            visit.decided()
        elif visit.is_announced and visit.num_present >= visit.num_families:
            self._check(visit, load, prompt_tokens)
        visit.num_present += 1
        family = self._families[request_id] = _Family(visit, load, prompt_tokens, shares=shares)
        if shares is not None:
            self._sharing.setdefault(shares, []).append(family)
        self._count(visit.tenant.id, load, 1, prompt_tokens)

    def _load_of(self, visit: Visit, prompt_tokens: int, max_tokens: int | None) -> Load:
        threads = visit.width or self.expected.threads
        generated = self.expected.tokens if max_tokens is None else min(self.expected.tokens, max_tokens)
        return Load(1, max(threads, 1), prompt_tokens + generated)

    # ---- in the engine -------------------------------------------------------------------------

    def has_begun(self, request_id: str) -> None:
        """The engine has sent something of it: it waits no more."""
        family = self._families.get(request_id)
        if family is not None and family.waits:
            self._waits_no_more(family)

    def has_ended(self, request_id: str) -> None:
        """It is over, however."""
        self._pass_time()
        family = self._families.get(request_id)
        if family is None:
            return
        if family.waits and self._waits_no_more(family):
            self._count_prompt(family)
        del self._families[request_id]
        family.visit.num_present -= 1
        self._rate.ended += family.load
        self._count(family.visit.tenant.id, Load(), families=-1)

    def _waits_no_more(self, family: _Family) -> list[_Family]:
        """Those that wait with the same prompt."""
        family.waits = False
        self.waiting -= family.load
        self._tenants[family.visit.tenant.id].queued_tokens -= family.prompt_tokens
        others = self._sharing.get(family.shares, [])
        if others:
            others.remove(family)
        if not others:
            self._sharing.pop(family.shares, None)
        return others

    def _count_prompt(self, ended: _Family) -> None:
        """The prompt of ``ended``, which never began, is the next one's to prefill."""
        heir, prompt = self._sharing[ended.shares][0], Load(tokens=ended.prompt_tokens)
        heir.prompt_tokens += ended.prompt_tokens
        heir.load += prompt
        self.waiting += prompt
        self._tenants[heir.visit.tenant.id].queued_tokens += ended.prompt_tokens

    @property
    def num_families(self) -> int:
        """Those that wait or run."""
        return len(self._families)

    def holds(self, request_id: str) -> bool:
        """Whether it waits or runs."""
        return request_id in self._families

    def tenant_of(self, request_id: str) -> str | None:
        """The id of the tenant whose it is; None if it neither waits nor runs."""
        family = self._families.get(request_id)
        return None if family is None else family.visit.tenant.id

    # ---- accounts ------------------------------------------------------------------------------

    def _count(self, tenant: str, load: Load, families: int, tokens: int = 0) -> None:
        self._pass_time()
        self.waiting += load
        account = self._tenants.setdefault(tenant, _OfTenant())
        account.families += families
        account.queued_tokens += tokens
        if account == _OfTenant():
            del self._tenants[tenant]

    def _pass_time(self) -> None:
        now = self.clock()
        if self._at is not None and self._families:
            self._rate.pass_time(now - self._at)
        self._at = now

    # ---- refusals ------------------------------------------------------------------------------

    def _check_size(self, visit: Visit) -> None:
        """Raise Overloaded if ``visit`` alone is more than may ever wait, by what it asks for itself.

        What is only expected of it (threads of a model's own, tokens) can change, and is no reason.
        """
        asked = {"families": visit.num_families, "threads": visit.num_families * (visit.width or 0)}
        for unit, num in asked.items():
            own = getattr(self.bounds, unit)
            bound = None if own is None else own * self.num_front_ends
            if bound is not None and num > bound:
                raise Overloaded(
                    f"expected at most {bound} {_ASKED[unit]} in one request, as many as may wait (the "
                    f"server's --max-queued-{unit}), got {num}: ask for fewer, or send several requests",
                    reason=QUEUED[unit],
                    status=400,
                    retry_after_s=0,
                )

    def _check(self, visit: Visit, load: Load, prompt_tokens: int) -> None:
        """Raise Overloaded if ``load`` more may not wait. What finds nothing before it may."""
        self._check_tenant(visit.tenant, load, prompt_tokens)
        for unit, limit in QUEUED.items():
            bound, waiting, more = (
                getattr(self.bounds, unit),
                getattr(self.waiting, unit),
                getattr(load, unit),
            )
            if bound is not None and more and waiting > 0.5 and waiting + more > bound:
                raise Overloaded(
                    f"the queue is full: expected at most {bound} {unit} to wait, {waiting:.0f} do: "
                    "ask again later, or elsewhere",
                    reason=limit,
                    status=503,
                    retry_after_s=self._retry_after("", unit, waiting + more - bound, more),
                )

    def _check_tenant(self, tenant: Tenant, load: Load, prompt_tokens: int) -> None:
        has, num = self._tenants.get(tenant.id, _OfTenant()), int(load.families)
        if tenant.max_families is not None and has.families + num > tenant.max_families:
            too_much = has.families + num - tenant.max_families
            raise Overloaded(
                f"expected at most {tenant.max_families} answers at once for this API key, {has.families} are"
                f" being made, {num} more were asked for: "
                + ("ask for fewer" if num > tenant.max_families else "ask again when one is over"),
                reason="key_families",
                status=400 if num > tenant.max_families else 429,
                retry_after_s=self._retry_after(tenant.id, "families", too_much, num),
            )
        bound = tenant.max_queued_tokens
        if bound is not None and has.queued_tokens and has.queued_tokens + prompt_tokens > bound:
            raise Overloaded(
                f"expected at most {bound} tokens of this API key's prompts to wait, {has.queued_tokens} do: "
                "ask again later",
                reason="key_tokens",
                status=429,
                retry_after_s=self._retry_after(
                    tenant.id, "tokens", has.queued_tokens + prompt_tokens - bound, prompt_tokens
                ),
            )

    def _retry_after(self, whose: str, unit: str, too_much: float, size: float) -> int:
        """Seconds until ``too_much`` has ended, or ``size`` more than what ends for those refused before."""
        self._pass_time()
        now = self.clock()
        if (takes := self._rate.seconds_for(1, unit)) is None:
            return FIRST_RETRY_S
        at = max(now + takes * too_much, self._promised.get(whose, 0.0) + takes * size)
        at = min(at, now + MAX_RETRY_S)
        self._promised[whose] = at
        return max(math.ceil(at - now), MIN_RETRY_S)

    def retry_after_s(self) -> int:
        """Retry-After for a client that vLLM refuses: until one family has ended."""
        return self._retry_after("vllm", "families", 1, 1)


def shared(bounds: Bounds, num_front_ends: int) -> Bounds:
    """The part of one of ``num_front_ends``, each of which counts only its own."""
    return Bounds(*(_part(n, num_front_ends) for n in (bounds.families, bounds.threads, bounds.tokens)))


def share_of_tenant(tenant: Tenant, num_front_ends: int) -> Tenant:
    """``tenant`` with the part of its limits that one of ``num_front_ends`` keeps."""
    return replace(
        tenant,
        max_families=_part(tenant.max_families, num_front_ends),
        max_queued_tokens=_part(tenant.max_queued_tokens, num_front_ends),
    )


def _part(limit: int | None, num: int) -> int | None:
    return None if limit is None else max(-(-limit // num), 1)
