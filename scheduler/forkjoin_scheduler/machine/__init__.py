"""Families: what forks, waits, joins, ends and is shown. Pure: no vLLM, no torch; events in, effects out."""
