from __future__ import annotations

from hypothesis import settings

# An example's time says more of the machine's other work than of ours.
settings.register_profile("forkjoin", deadline=None)
settings.load_profile("forkjoin")
