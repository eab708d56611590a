"""``forkjoin bench run``: systems under one traffic, measured and told."""
