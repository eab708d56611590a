"""The kinds of joins, by the name that dialect files give them. A new one is added here."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, TypeAdapter

from forkjoin_scheduler.joins.finish import Finish
from forkjoin_scheduler.joins.in_place import InPlace
from forkjoin_scheduler.joins.join import Join
from forkjoin_scheduler.joins.on_demand import OnDemand
from forkjoin_scheduler.joins.reprefill import Reprefill
from forkjoin_scheduler.joins.rewrite import Rewrite
from forkjoin_scheduler.joins.rounds import Rounds
from forkjoin_scheduler.joins.splice import Splice
from forkjoin_scheduler.joins.stitch import Stitch
from forkjoin_scheduler.joins.sync import Sync
from forkjoin_scheduler.joins.vote import VoteJoin

KINDS: dict[str, type[Join]] = {
    "reprefill": Reprefill,
    "stitch": Stitch,
    "rewrite": Rewrite,
    "splice": Splice,
    "on_demand": OnDemand,
    "sync": Sync,
    "in_place": InPlace,
    "rounds": Rounds,
    "finish": Finish,
    "vote": VoteJoin,
}


def _named(value: Any) -> Any:
    """A join that does not say its kind is a re-prefill. Raises ValueError for keys of others."""
    if not isinstance(value, dict):
        return value
    fields = {"kind": "reprefill"} | value
    own = KINDS.get(str(fields["kind"]))
    if own is None:
        return fields
    for join in KINDS.values():
        for name in join.model_fields.keys() - Join.model_fields:
            is_wanted = join is own and join.model_fields[name].is_required()
            if (is_wanted and name not in fields) or (name in fields and name not in own.model_fields):
                kinds = " or ".join(kind for kind, other in KINDS.items() if name in other.model_fields)
                raise ValueError(f"expected join.{name} with the kind {kinds}, and with no other")
    return fields


if TYPE_CHECKING:
    AnyJoin = Join
else:
    _OneOf = reduce(or_, KINDS.values())
    AnyJoin = Annotated[Annotated[_OneOf, Field(discriminator="kind")], BeforeValidator(_named)]

_ANY: TypeAdapter[Join] = TypeAdapter(AnyJoin)


def make_join(**fields: Any) -> Join:
    """The join with these fields, of the kind that ``kind`` names. Raises pydantic's ValidationError."""
    return _ANY.validate_python(fields)
