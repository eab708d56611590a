"""A simulator of the scheduler, in virtual time (``docs/simulator.md``).

Requests (``shapes.py``, ``workload.py``) reach replicas through a router (``cluster.py``). A replica
(``replica/``) does step by step what vLLM's scheduler does: it starts, grows, preempts and ends sequences on
KV blocks. What forks, waits and joins, the scheduler's own machines say (``forkjoin_scheduler.machine``), and
its policies who starts (``gates.py``), which threads run and which family gives way. What a step takes, a
cost model says (``costs.py``). ``results/`` sums up and shows.

A sequence that only decodes costs nothing while nothing happens to it: its next block and its end are
booked for the steps in which they come. So a step costs what happens in it, not what runs in it.
"""
