"""What the doctor says of the options that were given: each of them is in one line."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from forkjoin_server.doctor.check import Check, fail, ok, warn
from forkjoin_server.doctor.verdicts.others import OTHERS
from forkjoin_server.doctor.verdicts.table import RULES
from forkjoin_server.doctor.verdicts.verdict import Rule, Verdict, flag

_TO_DO = "compare answers with those of --dialect none"

_RULES = {name: rule for rule in RULES for name in rule.names}
_OTHERS = {name: others.verdict for others in OTHERS for name in others.names}


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of the environment that are in the table, of those that are set."""
    return {name: environ[name] for name in _RULES if name.isupper() and name in environ}


def options(given: Mapping[str, Any], refusals: Collection[str]) -> Iterator[Check]:
    """What each option of vLLM's that was given means for forks.

    ``given``: their values, by names without dashes. ``refusals``: the sentences of ``compat.refusals``.
    """
    named: dict[Verdict, list[str]] = defaultdict(list)
    for name in sorted(given):
        rule = _RULES.get(name)
        if rule is None:
            named[_OTHERS.get(name, Verdict.UNTESTED)].append(flag(name))
        elif rule.verdict is Verdict.WORKS:
            named[Verdict.WORKS].append(flag(name))
        else:
            yield _of_rule(name, str(given[name]), rule, refusals)
    for verdict in (Verdict.WORKS, Verdict.BESIDE):
        if flags := named[verdict]:
            yield ok("options", f"{verdict.value}: {', '.join(flags)}")
    if flags := named[Verdict.UNTESTED]:
        yield warn("options", f"{Verdict.UNTESTED.value}: {', '.join(flags)}", _TO_DO)


def _of_rule(name: str, value: str, rule: Rule, refusals: Collection[str]) -> Check:
    """What is said of an option that works with limits, or that may be refused."""
    refused = next((sentence for sentence in refusals if rule.refusal and rule.refusal in sentence), None)
    if refused is not None:
        return fail("options", f"{flag(name)}, refused: {refused}", "drop it, or serve with --dialect none")
    if rule.values and value not in rule.values:
        return warn("options", f"{flag(name)} {value}, {Verdict.UNTESTED.value}: {rule.sentence}", _TO_DO)
    if rule.verdict is Verdict.REFUSED and rule.refusal:
        return ok("options", f"{flag(name)}, works as it is given: {rule.sentence}")
    return ok("options", f"{flag(name)}, {rule.verdict.value}: {rule.sentence}")
