"""Votes of many threads that end early, against the same votes that wait for all: ``forkjoin bench votes``.

One engine in this process. Each vote has a seed of its own, so whatever way it is run its threads write the
same, as far as they come. ``questions``: what is asked; ``measure``: running votes; ``command``: the flags,
and what is printed and written.
"""
