"""Speculative decoding and forks: neither, each, and both (``forkjoin bench drafted``)."""
