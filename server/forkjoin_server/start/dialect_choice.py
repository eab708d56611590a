"""Which dialect is served where none is named: the one that fits the model's files, if one alone does."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from forkjoin_scheduler.dialects.files import builtin_names, load
from forkjoin_scheduler.dialects.fitting import candidates_of_model, fitting
from forkjoin_server.flag_values import dest_of
from forkjoin_server.start.model_files import read

#: The embedded model's, and what is served where the files do not say.
DEFAULT = "threadweaver"


@dataclass(frozen=True)
class Choice:
    """A dialect that nobody named."""

    name: str
    #: Why this one, in words that follow its name.
    reason: str
    #: Where it comes from, as the effective configuration says it.
    origin: str

    def __str__(self) -> str:
        return f"dialect {self.name}, {self.reason}"


def choose(args: argparse.Namespace) -> Choice | None:
    """The dialect for the model of ``args``, and set there; None where they name one."""
    if getattr(args, dest_of("dialect")) is not None:
        return None
    choice = _choice(args)
    setattr(args, dest_of("dialect"), choice.name)
    return choice


def _choice(args: argparse.Namespace) -> Choice:
    model = args.model_tag or args.model
    facts = read(
        model,
        tokenizer=args.tokenizer,
        revision=args.revision,
        tokenizer_revision=args.tokenizer_revision,
        chat_template=args.chat_template,
    )
    if facts is None:
        return Choice(
            DEFAULT, f"the default: there are no tokenizer's files of {model} to tell by", "default"
        )
    fit = fitting(candidates_of_model([load(name) for name in builtin_names()], facts))
    if len(fit) == 1:
        seen = "; ".join(fit[0].speaks_for)
        return Choice(fit[0].dialect.name, f"the only one that fits the model ({seen})", "the model's files")
    if not fit:
        return Choice(DEFAULT, "the default: no dialect fits the model", "default")
    names = ", ".join(candidate.dialect.name for candidate in fit)
    return Choice(DEFAULT, f"the default: {names} fit the model, choose one with --dialect", "default")
