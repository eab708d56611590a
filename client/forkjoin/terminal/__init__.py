"""What a person sees in a terminal: ``forkjoin chat``, ``trace`` and ``top``. Needs the package rich."""
