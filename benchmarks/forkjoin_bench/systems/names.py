"""What the systems are called, in the order in which tables have them."""

from __future__ import annotations

#: Ours: joined by prefilling, threads ahead of the join; by stitching; all at once when the last has ended.
FORKJOIN, STITCH, AT_ONCE = "forkjoin", "forkjoin-stitch", "forkjoin-at-once"
#: With other thread policies: at most two threads of a family in a step; as many as an SLO allows.
CAPPED, SLACK = "forkjoin-capped2", "forkjoin-slack"
CLIENT_HTTP, CLIENT_IN_PROCESS, SEQUENTIAL = "client-http", "client-inproc", "sequential"
#: The same servers, asked once for all samples of a prompt: the API's ``n``.
FORKJOIN_N, SEQUENTIAL_N = f"{FORKJOIN}-n", f"{SEQUENTIAL}-n"
#: A second stock server: what two engines of one kind differ by.
AGAIN = "sequential-again"
#: ``client-inproc-gate4``: at most four families at a time.
GATE = f"{CLIENT_IN_PROCESS}-gate"
SYSTEMS = (
    FORKJOIN,
    FORKJOIN_N,
    STITCH,
    AT_ONCE,
    CAPPED,
    SLACK,
    CLIENT_HTTP,
    CLIENT_IN_PROCESS,
    SEQUENTIAL,
    SEQUENTIAL_N,
    AGAIN,
)


def rank(system: str) -> tuple[int, str]:
    """Where ``system`` stands in a table."""
    return (SYSTEMS.index(system) if system in SYSTEMS else len(SYSTEMS), system)
