"""A simulator of the scheduler, in virtual time (``docs/simulator.md``).

Requests (``shapes.py``, ``workload.py``) reach replicas through a router (``cluster.py``). A replica
(``replica.py``) does step by step what vLLM's scheduler and ours do: it starts, grows, forks, joins,
preempts and ends sequences (``sequence.py``) on KV blocks (``blocks.py``), and asks the policies of
``forkjoin_scheduler.policy`` themselves who starts (``gates.py``) and which threads run. What a step
takes, a cost model says (``costs.py``). ``results/`` sums up and shows.

A sequence that only decodes costs nothing while nothing happens to it: its next block and its end are
booked for the steps in which they come. So a step costs what happens in it, not what runs in it.
"""
