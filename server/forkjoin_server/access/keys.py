"""API keys: made, kept as hashes, and looked up.

A key of ours is 256 random bits, so one round of SHA-256 keeps it: there is nothing to guess. The
file holds one entry a key:

    alice: {sha256: 2bd806c9…, max_families: 8, max_queued_tokens: 100000, weight: 2}
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from forkjoin_scheduler.dialects.files import StrictLoader
from forkjoin_scheduler.errors import UsageError
from forkjoin_scheduler.excerpt import excerpt
from forkjoin_scheduler.policy.backlog import Tenant, share_of_tenant
from forkjoin_scheduler.wrong_fields import place, sentence

#: ``redact.py`` knows a key by it, wherever one is written.
PREFIX = "sk-fj-"

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")


class KeyLimits(BaseModel):
    """What the file says of one key. A limit that is not there is none."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    max_families: int | None = Field(default=None, ge=1)
    max_queued_tokens: int | None = Field(default=None, ge=1)
    max_kept_tokens: int | None = Field(default=None, ge=0)
    weight: float = Field(default=1, gt=0, le=1000, allow_inf_nan=False)


@dataclass(frozen=True)
class Key:
    """Who asks. ``digest`` is the SHA-256 of the key itself, which is kept nowhere."""

    name: str
    digest: bytes
    #: Requests that it may have in flight at once, each of ``n`` answers counted.
    max_families: int | None = None
    #: Tokens of its prompts that may wait to start.
    max_queued_tokens: int | None = None
    #: Its share of the engine where several keys' requests wait, against the others' weights.
    weight: float = 1
    #: Tokens of its answers that an engine keeps for it (``forkjoin.keep``).
    max_kept_tokens: int | None = None
    #: Whether it is the operator's, who gave it with ``--api-key`` and not in the file of clients' keys.
    is_operators: bool = False

    def tenant(self, num_front_ends: int, *, has_own_cache: bool) -> Tenant:
        """Whose requests those with this key are, at one of ``num_front_ends`` that share its limits."""
        whole = Tenant(
            id=hashlib.sha256(self.name.encode()).hexdigest()[:16],
            weight=self.weight,
            max_families=self.max_families,
            max_queued_tokens=self.max_queued_tokens,
            max_kept_tokens=self.max_kept_tokens,
            cache=self.digest.hex() if has_own_cache else None,
            sees_all=self.is_operators,
        )
        return share_of_tenant(whole, num_front_ends)


def new_key() -> str:
    """A key that nobody else has."""
    return PREFIX + secrets.token_urlsafe(32)


def digest_of(key: str) -> bytes:
    """What is kept of ``key``."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def line_of(name: str, key: str) -> str:
    """The line of the file for ``key``. Raises UsageError for a name that can't be."""
    return f"{_checked(name)}: {{sha256: {digest_of(key).hex()}}}"


class KeyRing:
    """All keys that are known; which one a text is takes as long whichever it is, or none."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = tuple(keys)

    def find(self, text: str) -> Key | None:
        """The key that ``text`` is."""
        digest, found = digest_of(text), None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def read(path: str, *, are_weighed: bool = True) -> list[Key]:
    """The keys in the file at ``path``. Raises UsageError, which repeats no hash, if they can't be read.

    ``are_weighed``: whether the engine shares itself out between them. Otherwise none may have a weight.
    """
    try:
        entries = yaml.load(Path(path).read_text(encoding="utf-8"), StrictLoader)  # noqa: S506 - a SafeLoader
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        problem = getattr(error, "problem", None) or getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"--api-key-file: expected a YAML file of keys, got {path}: {problem}") from error
    if not isinstance(entries, dict) or not entries:
        raise UsageError(
            f"--api-key-file: expected at least one key by its name in {path}, got "
            f"{'none' if not entries else type(entries).__name__}: make one with forkjoin keys new NAME"
        )
    keys = [_key(path, name, entry) for name, entry in entries.items()]
    by_digest: dict[bytes, str] = {}
    for key in keys:
        if (other := by_digest.setdefault(key.digest, key.name)) != key.name:
            raise UsageError(f"{path}: {key.name}: expected a key of its own, got that of {other}")
        if key.weight != 1 and not are_weighed:
            raise UsageError(
                f"{path}: {key.name}: expected no weight, got {key.weight:g}: with --dialect none vLLM's own "
                "queue serves, which knows no keys. Drop the weight, or serve with a dialect"
            )
    return keys


def unnamed(digests: Iterable[bytes]) -> list[Key]:
    """The keys that vLLM was given (``--api-key``, ``VLLM_API_KEY``), which have no names and no limits."""
    return [Key(f"(api-key {number})", digest, is_operators=True) for number, digest in enumerate(digests, 1)]


def _key(path: str, name: object, entry: object) -> Key:
    if not isinstance(entry, Mapping):
        raise UsageError(f"{path}: {excerpt(name)}: expected {{sha256: …}}, got {type(entry).__name__}")
    try:
        limits = KeyLimits.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"{path}: {place(str(name), first['loc'])}: {sentence(first)}") from None
    fields = limits.model_dump(exclude={"sha256"})
    return Key(_checked(name), bytes.fromhex(limits.sha256), **fields)


def _checked(name: object) -> str:
    if isinstance(name, str) and NAME.match(name):
        return name
    raise UsageError(
        f"expected a name of up to 64 letters, digits, dots, dashes and underscores, got {excerpt(name)}"
    )
