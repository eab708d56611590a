"""The step that a worker executes: what runner, graphs, model state and builders know of it together."""

from __future__ import annotations

from dataclasses import dataclass

from forkjoin_scheduler.tensors.two_passes import StepGroups


@dataclass
class Step:
    """The runner writes it, but for what is noted beside a field."""

    #: Of the step, and the ids of their rows.
    groups: StepGroups | None = None
    ids: tuple[str, ...] = ()
    #: Whether attention was computed in two passes; the model state writes it.
    was_grouped: bool = False
    #: Whether a graph of a whole step may run it, in two passes, if there is one of its size.
    wants_graph: bool = False
    #: Whether such a graph runs it: it reads the buffers, so they have to be filled.
    is_replayed: bool = False
    #: Whether such a graph is being captured now; the graphs' manager writes it.
    is_captured: bool = False
