"""Trees that requests go on from (``forkjoin.continues_tree``): read, and compared with this server's own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from forkjoin.tree.segment import ROOT, Segment
from forkjoin.tree.tree import Tree
from forkjoin_scheduler.dialects.bound import BoundDialect
from forkjoin_scheduler.dialects.limits import Limits
from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut, excerpt
from forkjoin_scheduler.families.family import Family
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.machine.machine import Terms
from forkjoin_scheduler.replay.given import Engine, replay_given, unsupported
from forkjoin_scheduler.request.explicit import explicit_dialect
from forkjoin_scheduler.request.given import BEGIN, FORK, OPEN, Given, Part, Stretch
from forkjoin_scheduler.request.options import CompiledOptions
from forkjoin_scheduler.settings import Settings
from forkjoin_server.request.shape import MAX_BESIDE_PROMPT_BYTES, MAX_BITS
from forkjoin_server.trees import CANCELLED, TreeBuilder

LOG = logging.getLogger("vllm.forkjoin.server")

_ASKED = "forkjoin.continues_tree"
#: How an answer may have ended that was cut off.
_CUT_OFF = ("abort", "length", None)
_ENDS = frozenset(ThreadEnd)
#: Characters of the name of a version of the weights.
_MAX_NAME = 256
#: A segment by the path of its thread, and its place among that thread's.
_Name = tuple[str, int]


def read_tree(value: Any, vocab_size: int, max_logprobs: int) -> Tree:
    """The tree that ``value``, of a JSON body, is. Raises BadRequestOptions naming what is wrong.

    ``max_logprobs``: of how many likeliest tokens the server tells for each; -1: of all.
    """
    if isinstance(value, Tree):
        value = value.to_dict()
    try:
        tree = msgspec.convert(value, Tree, str_keys=True)
    except (msgspec.ValidationError, ValueError, TypeError, RecursionError) as error:
        raise _bad(f"expected a tree as return_tree gives it, got another: {cut(str(error), 200)}") from error
    if not tree.segments:
        raise _bad("expected segments, got none")
    for number, segment in enumerate(tree.segments):
        _check_segment(number, segment, vocab_size)
        longest = max(map(len, segment.top_logprobs or ()), default=0)
        if 0 <= max_logprobs < longest:
            raise _bad(
                f".segments[{number}].top_logprobs: expected at most {max_logprobs} of each token (the "
                f"server's --max-logprobs), got {longest}"
            )
    first = tree.segments[0]
    if first.thread != ROOT or not first.num_injected:
        raise _bad(".segments[0]: expected the prompt of the request itself (thread -1), got another")
    if (reason := _last_segments(tree)[ROOT].finish_reason) not in _CUT_OFF:
        raise _bad(f"expected an answer that was cut off (abort, length), got one that ended by {reason!r}")
    return tree


def _check_segment(number: int, segment: Segment, vocab_size: int) -> None:
    name, num_tokens = f".segments[{number}]", len(segment.token_ids)
    for token_id in segment.token_ids:
        if not 0 <= token_id < vocab_size:
            raise _bad(
                f"{name}.token_ids: expected tokens of the model's {vocab_size}, got {excerpt(token_id)}"
            )
    if not 0 <= segment.num_injected <= num_tokens:
        raise _bad(
            f"{name}.num_injected: expected at most its {num_tokens} tokens, got "
            f"{excerpt(segment.num_injected)}"
        )
    for field in ("parent", "forked_by"):
        other = getattr(segment, field)
        if other is not None and not 0 <= other < number:
            raise _bad(f"{name}.{field}: expected the number of an earlier segment, got {excerpt(other)}")
    if segment.thread == ROOT and segment.forked_by is not None:
        raise _bad(f"{name}.forked_by: expected null of the request itself, got {excerpt(segment.forked_by)}")
    if any(not 0 <= joined.segment < number for joined in segment.joined):
        raise _bad(f"{name}.joined: expected numbers of earlier segments")
    if (version := segment.weight_version) is not None and not _is_name(version):
        raise _bad(f"{name}.weight_version: expected a text of at most {_MAX_NAME} characters")
    if segment.seed is not None and segment.seed.bit_length() > MAX_BITS:
        raise _bad(
            f"{name}.seed: expected an integer of at most {MAX_BITS} bits, got {excerpt(segment.seed)}"
        )
    for token_id in (token_id for row in segment.top_logprobs or () for token_id in row):
        if not 0 <= token_id < vocab_size:
            raise _bad(
                f"{name}.top_logprobs: expected tokens of the model's {vocab_size}, got {excerpt(token_id)}"
            )
    for field in ("logprobs", "top_logprobs"):
        told = getattr(segment, field)
        if told is not None and len(told) != num_tokens:
            raise _bad(f"{name}.{field}: expected {num_tokens}, one for each token, got {len(told)}")


def _is_name(text: str) -> bool:
    """Whether ``text`` is short, and can be sent to an engine: not half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return len(text) <= _MAX_NAME


def check_threads(tree: Tree, most: int, max_depth: int) -> None:
    """Raise BadRequestOptions if ``tree`` has more than ``most`` threads, or some deeper than ``max_depth``.

    Called before anything else is made of it: what that takes grows with both.
    """
    depths = {ROOT: 0}
    for segment in tree.segments:
        if segment.thread not in depths:
            parent = ROOT if segment.forked_by is None else tree.segments[segment.forked_by].thread
            depths[segment.thread] = depths[parent] + 1
    if len(depths) - 1 > most:
        raise _bad(
            f"expected at most {most} threads (the server's --max-request-threads), got {len(depths) - 1}"
        )
    if (deepest := max(depths.values())) > max_depth:
        raise _bad(f"expected at most {max_depth} threads in each other (max_depth), got {deepest}")


def given_of(tree: Tree) -> Given:
    """What each branch of ``tree`` had written. Raises BadRequestOptions where its threads make no tree."""
    numbers, paths, last = _by_thread(tree), _paths(tree), _last_segments(tree)
    forkers = {segment.forked_by for segment in tree.segments}
    stretches: dict[str, list[Stretch]] = {}
    for thread, own in numbers.items():
        of_branch, parts = list[Stretch](), list[Part]()
        for before, number in zip((None, *own), own, strict=False):
            segment = tree.segments[number]
            # what closes a thread in a stitched join is a segment, too
            is_close = number == own[-1] and segment.num_injected == len(segment.token_ids)
            if before is not None and segment.num_injected and before not in forkers and not is_close:
                raise _bad(
                    f".segments[{number}]: expected what goes on from its thread's last segment, or from a "
                    "join, got a text in its place: trees in which a dialect made its swaps can't be gone on "
                    "with"
                )
            if len(segment.token_ids) > segment.num_injected:
                parts.append(_part(segment))
            if number in forkers:
                of_branch.append(Stretch(parts, FORK))
                parts = []
        if own[-1] not in forkers:
            of_branch.append(Stretch(parts, _then(last[thread])))
        stretches[paths[thread]] = of_branch
    if stretches == {"": [BEGIN]}:
        stretches = {}  # only its prompt was read: the request begins as any
    first = tree.segments[0]
    return Given(first.token_ids[: first.num_injected], stretches)


def _part(segment: Segment) -> Part:
    start = segment.num_injected
    return Part(
        segment.token_ids[start:],
        segment.logprobs and segment.logprobs[start:],
        segment.top_logprobs and segment.top_logprobs[start:],
        segment.weight_version,
        segment.seed,
        segment.has_old_kv,
    )


def _then(last: Segment) -> str:
    """What followed the ``last`` segment of a thread."""
    end = last.finish_reason
    if last.thread == ROOT or end is None or end == CANCELLED:
        return OPEN
    if end == ThreadEnd.REQUEST_STOP:
        raise _bad(
            f"expected an answer that can go on, but thread {last.thread} has ended it with one of the "
            "request's stop tokens (request_stop)"
        )
    if end not in _ENDS:
        raise _bad(f"expected a finish_reason that threads have, got {excerpt(end)} of thread {last.thread}")
    return end


def _by_thread(tree: Tree) -> dict[int, list[int]]:
    """The numbers of the segments of each thread."""
    numbers: dict[int, list[int]] = {}
    for number, segment in enumerate(tree.segments):
        numbers.setdefault(segment.thread, []).append(number)
    return numbers


def _last_segments(tree: Tree) -> dict[int, Segment]:
    """The last segment of each thread."""
    return {segment.thread: segment for segment in tree.segments}


def _paths(tree: Tree) -> dict[int, str]:
    """The path of each thread, as ``Branch.path`` has it."""
    threads: dict[int, list[int]] = {}  # that a segment forked
    for thread, numbers in _by_thread(tree).items():
        forked_by = tree.segments[numbers[0]].forked_by
        if thread != ROOT and forked_by is None:
            raise _bad(f".segments[{numbers[0]}].forked_by: expected a segment, got null for a thread")
        if forked_by is not None:
            threads.setdefault(forked_by, []).append(thread)
    paths, num_forks = {ROOT: ""}, dict[int, int]()
    for number in sorted(threads):  # a thread begins after the segment that forks it
        parent = tree.segments[number].thread
        if parent not in paths:
            raise _bad(f".segments[{number}].thread: expected a thread that began before, got {parent}")
        fork = num_forks.get(parent, 0)
        num_forks[parent] = fork + 1
        paths |= {thread: f"{paths[parent]}/{fork}.{at}" for at, thread in enumerate(sorted(threads[number]))}
    return paths


def continued(
    value: Any, options: CompiledOptions, settings: Settings, engine: Engine, vocab_size: int
) -> CompiledOptions:
    """``options`` of a request that goes on from the tree that ``value`` is.

    Replays the whole tree. Raises BadRequestOptions unless this engine would have given it so far.
    """
    limits = options.limits(settings.limits)
    if options.forks_at_prompt:
        dialect = explicit_dialect(options, limits)
        bound_dialect = BoundDialect(dialect, engine.bound_dialect.tokenizer, None)
        engine = replace(engine, bound_dialect=bound_dialect)
    asked = [("prune", options.prune is not None), ("rounds", options.rounds is not None)]
    asked += [("enabled = false", not options.enabled)]
    asked += [("response_format", any(b.structured is not None for b in options.branches or ()))]
    if reason := unsupported(engine, asked):
        raise _bad(f"expected a request that can go on from a tree, but not with {reason}")
    tree = read_tree(value, vocab_size, engine.max_logprobs)
    check_threads(tree, settings.max_request_threads, engine.bound_dialect.dialect.max_depth)
    try:
        return _replayed(tree, options, limits, engine)
    except BadRequestOptions:
        raise
    except Exception as error:  # a tree may be anything: what goes wrong is its sender's, or else ours
        LOG.warning("a tree of forkjoin.continues_tree can't be replayed", exc_info=error)
        raise _bad(
            "expected the tree of an answer of this server, got one that it can't write again "
            f"({type(error).__name__}): send the tree as it came"
        ) from error


def _replayed(tree: Tree, options: CompiledOptions, limits: Limits, engine: Engine) -> CompiledOptions:
    """``options`` with what ``tree`` has, which was written again and compared."""
    given = given_of(tree)
    options = msgspec.structs.replace(options, given=given)
    terms = Terms(options, engine.bound_dialect, 1 << 62, prompt_len=len(given.prompt_ids))
    builder = TreeBuilder()
    builder.hear(replay_given(given, terms, Family("tree", limits), engine))
    _compare(tree, builder.tree([], None))
    return options


def check_answers(given: Given, num_answers: int, max_threads: int) -> None:
    """Raise BadRequestOptions if a tree is too much to go on from in each of so many answers."""
    num_threads = num_answers * max(len(given.stretches) - 1, 0)
    if num_threads > max_threads:
        raise _bad(
            f"expected at most {max_threads} threads over all answers (the server's --max-request-threads), "
            f"got {num_threads} in {num_answers} answers: ask for fewer answers"
        )
    num_bytes = len(msgspec.msgpack.encode(given))
    if num_bytes * num_answers > MAX_BESIDE_PROMPT_BYTES:
        raise _bad(
            f"expected at most {MAX_BESIDE_PROMPT_BYTES} bytes, for each answer again, got {num_bytes} for "
            f"{num_answers} answers: ask for fewer answers, or send the tree without its logprobs"
        )


def check_prompt(given: Given, prompt_ids: Sequence[int], max_tokens: int | None) -> None:
    """Raise BadRequestOptions unless the request has the prompt of its tree, and may write more than that."""
    if list(prompt_ids) != given.prompt_ids:
        pairs = enumerate(zip(prompt_ids, given.prompt_ids, strict=False))
        at = next((n for n, (own, of_tree) in pairs if own != of_tree), None)
        where = "another length" if at is None else f"another token at {at}"
        raise _bad(
            f"expected the prompt of the tree ({len(given.prompt_ids)} tokens), got {len(prompt_ids)} tokens "
            f"with {where}: send the messages, or the tokens, of the request that it is of"
        )
    if max_tokens is not None and given.num_tokens >= max_tokens:
        raise _bad(
            f"expected more tokens for the whole answer than the {given.num_tokens} that the tree has, got "
            f"{max_tokens}: raise max_tokens, or forkjoin.max_total_tokens"
        )


def _compare(given: Tree, made: Tree) -> None:
    """Raise BadRequestOptions naming where ``given`` is not what was ``made`` of what it sampled.

    Threads may have forked in another order. What was made may have gone on: a last join was under way.
    """
    of_given, of_made = dict(_named(given)), dict(_named(made))
    names = {number: name for name, number in of_given.items()}
    own_names = {number: name for name, number in of_made.items()}
    for number, name in sorted(names.items()):
        if name not in of_made:
            raise _bad(f".segments[{number}]: expected none there: this server would not have begun it")
        wanted = _fields(made.segments[of_made[name]], own_names)
        for field, value in _fields(given.segments[number], names).items():
            if value != wanted[field]:
                raise _bad(
                    f".segments[{number}].{field}: expected what this server writes there with the dialect "
                    "that it speaks, got another: send the tree as it came, to a server of the same model "
                    "and dialect"
                )


def _named(tree: Tree) -> Iterator[tuple[_Name, int]]:
    """The name of each segment, and its number."""
    paths = _paths(tree)
    for thread, numbers in _by_thread(tree).items():
        yield from (((paths[thread], place), number) for place, number in enumerate(numbers))


def _fields(segment: Segment, names: Mapping[int, _Name]) -> dict[str, Any]:
    """What must be the same of a segment, other segments by their names."""
    return {
        "token_ids": segment.token_ids,
        "num_injected": segment.num_injected,
        "position": segment.position,
        "parent": None if segment.parent is None else names[segment.parent],
        "fork_offset": segment.fork_offset,
        "forked_by": None if segment.forked_by is None else names[segment.forked_by],
        "joined": [(names[j.segment], j.num_tokens, j.num_skipped) for j in segment.joined],
    }


def _bad(problem: str) -> BadRequestOptions:
    return BadRequestOptions(f"{_ASKED}{problem if problem.startswith('.') else f': {problem}'}")
