"""The end of ``tests/engine/file_transfer.py`` that is in the worker of a server."""

from __future__ import annotations

from tests.engine import file_transfer

file_transfer.register()


class TakesFiles:
    """Adds nothing to vLLM's worker, which imports this module for it."""


FLAGS = (
    *("--worker-extension-cls", f"{__name__}.{TakesFiles.__name__}"),
    *("--weight-transfer-config", f'{{"backend": "{file_transfer.NAME}"}}'),
)
