"""``forkjoin verify``: whether forks and joins compute what plain requests do, here and with your model.

Tensor operations first (``forkjoin_scheduler.verify``), then engines, each in a process of its own: a device
that fails in one of them is reported, and has its memory back for the next.
"""
