from __future__ import annotations

import os

from hypothesis import settings

# Each engine computes on one core, whichever is free. By default vLLM binds all engines of a machine to the
# same cores: two that run side by side would share one.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")

# An example's time says more of the machine's other work than of ours.
settings.register_profile("forkjoin", deadline=None)
settings.load_profile("forkjoin")
