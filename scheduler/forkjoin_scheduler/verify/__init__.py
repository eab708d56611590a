"""Runs the tensor operations of forks and joins on a device, and compares them with plain ones on the CPU.

``python -m forkjoin_scheduler.verify`` needs torch and numpy, and no vLLM. ``forkjoin verify`` runs it first.

Each file checks one thing and gives results. A reference shares no code with what it judges: numpy on the
host, one token after the other. What a check looked at is in its results, also where it could not run.
"""
