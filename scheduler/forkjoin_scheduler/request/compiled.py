"""A request's texts become tokens here, in the API process: the engine core tokenises no text of a client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut
from forkjoin_scheduler.request.options import (
    CompiledBranch,
    CompiledOptions,
    ExplicitBranch,
    RequestOptions,
    parse_options,
)
from forkjoin_scheduler.settings import Settings

#: What the engine does not get, or gets in another form.
_OF_SERVER = {"branches", "closing", "group_id", "continues_tree", "stream_segments"}


@dataclass(frozen=True)
class Room:
    """How long a context is, in tokens, and how many characters one of them has at most."""

    max_tokens: int
    max_chars_per_token: int

    @property
    def max_chars(self) -> int:
        """More characters can't be a context's: that is known before they are tokenised."""
        return self.max_tokens * self.max_chars_per_token


def check_chars(options: RequestOptions, room: Room) -> None:
    """Raise BadRequestOptions naming a text that can't fit the context, however its tokens are."""
    for name, text in _texts(options):
        if len(text) > room.max_chars:
            raise BadRequestOptions(
                f"{name}: expected at most {room.max_chars} characters: the context holds "
                f"{room.max_tokens} tokens of at most {room.max_chars_per_token}, got {len(text)}"
            )


def compile_options(
    options: RequestOptions,
    encode: Callable[[str], list[int]],
    constrain: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None,
) -> CompiledOptions:
    """``options`` with tokens in the place of texts; takes as long as to tokenise these.

    ``constrain``: makes the engine's parameters of a ``response_format``; raises ValueError if that is wrong.
    """
    token_ids = {name: encode(text) for name, text in _texts(options)}
    for name, ids in token_ids.items():
        if not ids:
            raise BadRequestOptions(f"{name}: expected a text with tokens, got one without")
    fields = options.model_dump(exclude_unset=True, exclude=_OF_SERVER)
    if options.branches is not None:
        fields["branches"] = [
            CompiledBranch(
                title=branch.title,
                token_ids=token_ids[_name(n)],
                **_constraint(n, branch, constrain),
            )
            for n, branch in enumerate(options.branches)
        ]
    if options.closing is not None:
        fields["closing"] = token_ids[_CLOSING]
    return CompiledOptions(**fields)


def check_and_compile(asked: Any, settings: Settings, encode: Callable[[str], list[int]]) -> CompiledOptions:
    """The same of a ``forkjoin`` object that comes without a server: it is checked here, and only here.

    Raises BadRequestOptions.
    """
    options = parse_options(asked)
    if options.continues_tree is not None:
        raise BadRequestOptions(
            "forkjoin.continues_tree: expected a server or forkjoin.LLM, which read trees"
        )
    options.check_limits(settings.limits, settings.caps)
    options.check_pruning(settings.prune_policy)
    options.check_rounds(settings.dialect)
    options.check_keep(settings)
    return compile_options(options, encode, _no_format)


def _no_format(response_format: dict[str, Any]) -> dict[str, Any] | None:
    raise ValueError("expected none, for without a server nothing makes a grammar of it: leave it out")


def check_room(options: CompiledOptions, num_prompt_tokens: int, max_model_len: int) -> None:
    """Raise BadRequestOptions naming what does not fit the context after a prompt of so many tokens.

    A branch must find room beside the prompt, and a closing beside the prompt and all branches, with a
    token to write.
    """
    behind = f"after a prompt of {num_prompt_tokens} tokens in a context of {max_model_len}"
    room = max_model_len - num_prompt_tokens - 1
    for n, branch in enumerate(options.branches or ()):
        if len(branch.token_ids) > room:
            raise BadRequestOptions(
                f"{_name(n)}: expected at most {max(room, 0)} tokens {behind}, got {len(branch.token_ids)}"
            )
    if options.closing is None or options.branches is None:
        return
    num_branch_tokens = sum(len(branch.token_ids) for branch in options.branches)
    if len(options.closing) > room - num_branch_tokens:
        raise BadRequestOptions(
            f"{_CLOSING}: expected at most {max(room - num_branch_tokens, 0)} tokens {behind}, with "
            f"branches of {num_branch_tokens} between them, got {len(options.closing)}"
        )


def _constraint(
    n: int, branch: ExplicitBranch, constrain: Callable[[dict[str, Any]], dict[str, Any] | None] | None
) -> dict[str, Any]:
    if branch.response_format is None or constrain is None:
        return {}
    try:
        structured = constrain(branch.response_format)
    except ValueError as error:
        raise BadRequestOptions(f"forkjoin.branches[{n}].response_format: {cut(str(error), 300)}") from error
    return {} if structured is None else {"structured": structured}


_CLOSING = "forkjoin.closing"


def _name(n: int) -> str:
    return f"forkjoin.branches[{n}].text"


def _texts(options: RequestOptions) -> Iterator[tuple[str, str]]:
    """What is to be tokenised, by the name of the field. A branch without a text goes on from its title."""
    for n, branch in enumerate(options.branches or ()):
        yield _name(n), branch.text or f"{branch.title}\n"
    if options.closing is not None:
        yield _CLOSING, options.closing
