"""``forkjoin bench overload``: far more at once than the KV cache holds, and clients that never read.

Every request forks. Some clients hang up in the middle, some never read. What must hold: each request
is accounted for, ``/health`` answers throughout, memory is bounded in every process, and nothing is left
after. ``--stock`` then puts the same to ``vllm serve``, which answers without forking.
"""
