"""The README as PyPI shows it, away from the repository: each relative link leads to the release's tag.

hatchling runs this when it builds the wheel (``[tool.hatch.metadata.hooks.custom]`` in pyproject.toml).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

#: What stands before a relative link: of a picture in Markdown or HTML, or of anything else.
_PICTURE = re.compile(r'(!\[[^\]]*\]\(|\b(?:src|srcset)=")(?!\w+:|#)')
_LINK = re.compile(r"(?<=\]\()(?!\w+:|#)")


def absolute(markdown: str, repository: str, tag: str) -> str:
    """``markdown`` with links that work anywhere; ``repository`` is an address on GitHub."""
    markdown = _PICTURE.sub(rf"\g<1>{repository}/raw/{tag}/", markdown)
    return _LINK.sub(f"{repository}/blob/{tag}/", markdown)


class Readme(MetadataHookInterface):
    """Gives the project's metadata its README."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Add the README to ``metadata``."""
        text = (Path(self.root) / "README.md").read_text()
        readme = absolute(text, metadata["urls"]["Repository"], f"v{metadata['version']}")
        metadata["readme"] = {"content-type": "text/markdown", "text": readme}
