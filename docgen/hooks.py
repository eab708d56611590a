"""MkDocs hooks: the repository's own pages on the site, and links that lead where the site has the target.

README and the like stay where a reader of the repository looks for them, and the site shows the same
files. A link is written for the repository. On the site, where all pages lie side by side, it leads
to the page that shows its target; a target that no page shows becomes plain text, and one that does
not exist fails the build.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]

#: Files of the repository and the pages that show them.
PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "deploy/README.md": "deployment.md",
    "docker/README.md": "images.md",
    "examples/README.md": "examples.md",
    "server/forkjoin_server/embedded/README.md": "embedded-model.md",
}

_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\((?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
#: A picture in HTML, which Markdown has no words for: one that is light or dark as the reader's system is.
_PICTURE = re.compile(r'(?P<attribute>src|srcset)="(?P<path>[^":]+)"')


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=relinked((ROOT / source).read_text(), source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Relink a page of the docs folder; those that lie elsewhere are relinked already."""
    uri = page.file.src_uri
    return markdown if uri in PAGES.values() else relinked(markdown, f"docs/{uri}")


def relinked(markdown: str, source: str) -> str:
    """``markdown`` of the repository's file ``source``, with its links as the site needs them.

    Raises PluginError if one leads nowhere.
    """

    def target_of(path: str) -> str:
        target = posixpath.normpath(f"{posixpath.dirname(source)}/{path}").lstrip("/")
        if not (ROOT / target).exists():
            raise PluginError(f"{source}: the link to {path} leads nowhere")
        return target

    def link(match: re.Match[str]) -> str:
        text, target = match["text"], target_of(match["path"])
        page = _page_of(target)
        if page is None:
            return text if target in text else f"{text} (`{target}`)"
        return f"[{text}]({page}{match['anchor'] or ''})"

    def picture(match: re.Match[str]) -> str:
        return f'{match["attribute"]}="{_page_of(target_of(match["path"]))}"'

    return _PICTURE.sub(picture, _LINK.sub(link, markdown))


def _page_of(path: str) -> str | None:
    """The page that shows a file of the repository; None if none does."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return PAGES.get(path)
