"""What a step brought a branch: its tokens go into the transcript, in outline order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from forkjoin_scheduler.dialects.bound import WINDOW_TOKENS
from forkjoin_scheduler.families.family import Branch, BranchState
from forkjoin_scheduler.families.thread_end import ThreadEnd
from forkjoin_scheduler.joins.joined import is_by_eos
from forkjoin_scheduler.machine import ending, forking
from forkjoin_scheduler.machine.effects import Effects, SampleAgain
from forkjoin_scheduler.machine.forking import Fork
from forkjoin_scheduler.machine.machine import Machine
from forkjoin_scheduler.machine.output_token import OutputToken, injected
from forkjoin_scheduler.publish.events import Tokens
from forkjoin_scheduler.request.given import Stretch

#: What is asked of each token. Looked up here: in an enum that takes as long as a call.
_DECODING = BranchState.DECODING
#: How threads of a vote end that are stopped from outside: what they wrote is no answer.
_WITHOUT_VOTE = (ThreadEnd.CLIENT_CANCELLED, ThreadEnd.PRUNED, ThreadEnd.CUT)


def thread_wrote(
    machine: Machine,
    thread: Branch,
    token_ids: list[int],
    end: ThreadEnd | None = None,
    *,
    stop_reason: int | str | None = None,
    rows: Sequence[Any] | None = None,
    likely: Sequence[Sequence[float]] = (),
    forks: Sequence[Fork] = (),
) -> Effects | None:
    """A thread wrote ``token_ids`` in a step, and ended if ``end`` says so; None where nothing follows.

    The tokens are booked by the call itself; what follows from them, by the effects.

    This is called for each token of each thread: what few of them need is asked of few.

    ``rows``: of each token its row of logprobs, as the engine has it; None: nobody wants those.
    ``likely``: of each token the log-probabilities of the most likely ones, for a policy that prunes.
    ``forks``: where in them the thread forks and goes on.
    """
    if thread.state is not _DECODING:
        return None
    # Several threads end a step together: what is over the budget was never generated.
    family = machine.family
    if len(token_ids) > family.remaining:
        token_ids = token_ids[: family.remaining]
        machine.is_overdrawn = True
        end = None if end is None else ThreadEnd.LENGTH
    family.generated(thread, token_ids)
    if machine.recording is not None:
        machine.recording.wrote(thread.index, token_ids, rows)
    if machine.clocks:
        machine.clock_token(thread)
    if machine.pruner is not None:
        machine.pruner.wrote(thread, likely)
    if end is not None and is_by_eos(thread, end):
        token_ids = token_ids[:-1]
    if family.include_threads and token_ids:
        machine.emit(Tokens(index=thread.index, token_ids=token_ids))
    pieces = list(map(OutputToken, token_ids) if rows is None else map(OutputToken, token_ids, rows))
    if end is not None and end is ThreadEnd.REQUEST_STOP:
        # The answer may end later than this thread; its stop token leaves with the end.
        machine.stop_reason = stop_reason
        machine.stop_piece = pieces.pop() if pieces else None
    if forks:
        return _run(machine, thread, pieces, forks, end)
    if machine.newlines:
        pieces = _behind_newlines(machine, thread, pieces)
    machine.transcripts[thread].push(pieces)
    return None if end is None else ending.end_thread(machine, thread, end)


def _run(
    machine: Machine, thread: Branch, pieces: list[OutputToken], forks: Sequence[Fork], end: ThreadEnd | None
) -> Effects:
    yield from _push_run(machine, thread, pieces, forks)
    if end is not None:
        yield from ending.end_thread(machine, thread, end)


def root_wrote(
    machine: Machine,
    pieces: list[OutputToken],
    finish: str | None = None,
    *,
    stop_reason: int | str | None = None,
    num_led: int = 0,
    forks: Sequence[Fork] = (),
) -> Effects:
    """The root wrote ``pieces`` where threads run beside it, and ended if ``finish`` says how.

    Its tokens wait for their turn too, but for the first ``num_led``: they have left as any request's, for
    until its first call nobody could know that it would fork.
    """
    root = machine.family.root
    if finish == "stop":
        # It leaves with the end of the answer, if no limit is in its way.
        machine.own_stop_piece = pieces.pop() if pieces else None
    yield from _push_run(machine, root, pieces, forks, num_led)
    if finish is not None:
        machine.own_finish, machine.stop_reason = finish, stop_reason
        # What was to be had on demand nobody will ask for any more; spliced threads go on.
        cancels = machine.dialect.join.threads_end_with_parent
        cancelled = machine.family.end(root, ThreadEnd.STOP, cancels=cancels)
        yield from ending.forget(machine, cancelled)


def _push_run(
    machine: Machine, branch: Branch, pieces: list[OutputToken], forks: Sequence[Fork], num_led: int = 0
) -> Effects:
    """Append what ``branch`` has written in a step, from token ``num_led`` on, and fork it on the way."""
    at = num_led
    for fork in forks:
        if fork.num_in_run > len(pieces):
            break  # the budget ended before it
        _push(machine, branch, pieces[at : fork.num_in_run])
        yield from forking.fork(machine, branch, fork)
        at = fork.num_in_run
    _push(machine, branch, pieces[at:])


def _push(machine: Machine, branch: Branch, pieces: list[OutputToken]) -> None:
    """Append what ``branch`` has written to its transcript, after the newlines that it should have."""
    if machine.newlines:
        pieces = _behind_newlines(machine, branch, pieces)
    machine.transcripts[branch].push(pieces)


def _behind_newlines(machine: Machine, branch: Branch, pieces: list[OutputToken]) -> list[OutputToken]:
    """The same ``pieces``, with those newlines that ``branch`` should have before them and has not."""
    tokenizer, missing = machine.world.tokenizer, machine.newlines.pop(branch, 0)
    for at, piece in enumerate(pieces if missing else []):
        text = tokenizer.decode([piece.token_id])
        behind = text.lstrip("\n")
        missing = max(missing - (len(text) - len(behind)), 0)
        if behind:
            # the last token of it: some tokenizers begin every text with a space
            newline = tokenizer.encode("\n")[-1:]
            pieces = [*pieces[:at], *injected(newline * missing), *pieces[at:]]
            missing = 0
            break
    if missing:
        machine.newlines[branch] = missing
    return pieces


# ---- what an earlier answer had written (``request/given.py``) -----------------------------------


def give(machine: Machine, branch: Branch, stretch: Stretch) -> Effects:
    """Book ``stretch`` as written by ``branch``, and end it if it had ended.

    Its tokens count as generated: the limits are those of the whole answer.
    """
    token_ids, end = stretch.token_ids, stretch.end
    if branch is machine.family.root and machine.dialect.max_turns is not None:
        machine.num_turns += sum(1 for _ in _refused(machine, machine.world.context(branch), stretch))
    machine.family.generated(branch, token_ids)
    if machine.recording is not None:
        for part in stretch.parts:
            machine.recording.given(branch.index, part)
    shown = token_ids[:-1] if end is not None and is_by_eos(branch, end) else token_ids
    if machine.family.include_threads and branch.plan is not None and shown:
        machine.emit(Tokens(index=branch.index, token_ids=shown))
    machine.transcripts[branch].push(injected(shown))
    if end is None:
        return
    if machine.vote is not None and end in _WITHOUT_VOTE:
        yield from ending.cancel(machine, branch, end)
        machine.vote.lose_one()
    else:
        yield from ending.stop(machine, branch, end)


def go_on(machine: Machine, branch: Branch) -> Effects:
    """``branch`` had been cut off after what it was given, and writes its next token now."""
    yield SampleAgain(branch)


def since(machine: Machine, branch: Branch, stretch: Stretch) -> int:
    """After which token of its context a ``branch`` reads the next call for a fork, once it has ``stretch``.

    After its last call that was refused, for it goes on after one; else where it began to write.
    """
    context = machine.world.context(branch)
    return max((len(context), *_refused(machine, context, stretch)))


def calls(machine: Machine, branch: Branch, since: int) -> bool:
    """Whether ``branch`` was cut off right behind a call, past ``since``, that nobody had heard yet."""
    context = machine.world.context(branch)
    return len(context) > since and _is_call(machine, context, since, len(context))


def _refused(machine: Machine, context: Sequence[int], stretch: Stretch) -> Iterator[int]:
    """Up to which token of a branch's context each call in ``stretch``, behind ``context``, was refused.

    Not the last: that forked, or nobody has heard it.
    """
    token_ids, begin = [*context, *stretch.token_ids], len(context)
    for end in range(len(context) + 1, len(token_ids)):
        if _is_call(machine, token_ids, begin, end):
            begin = end
            yield end


def _is_call(machine: Machine, token_ids: Sequence[int], begin: int, end: int) -> bool:
    """Whether what a branch wrote of its context from ``begin`` on calls for a fork up to ``end``."""
    bound_dialect = machine.terms.bound_dialect
    may_call = bound_dialect.calls is None or token_ids[end - 1] in bound_dialect.calls
    return may_call and bound_dialect.triggers(token_ids[max(begin, end - WINDOW_TOKENS) : end])
