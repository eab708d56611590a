"""``python -m scripts.release_check TAG``: check that a tag may be released, and print its release notes.

The tag is ``v`` and the version that every package, chart and image of the repository names. The changelog
has a section for it. On GitHub, the URLs of the packages lead to the repository that runs this. Exits with 1
and one sentence a fault otherwise.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

#: Where the version stands, and how: the first match of each line's group.
VERSIONS = {
    "pyproject.toml": r'^version = "(.+)"$',
    "client/pyproject.toml": r'^version = "(.+)"$',
    "client-ts/package.json": r'^  "version": "(.+)",$',
    "deploy/helm/vllm-forkjoin/Chart.yaml": r'^appVersion: "(.+)"$',
    "deploy/kustomize/base/kustomization.yaml": r"^    newTag: (.+)$",
    "deploy/kustomize/gpu/kustomization.yaml": r"^    newTag: (.+)$",
    "docker/Dockerfile.cpu": r"^ARG VERSION=(.+)$",
    "docker/Dockerfile.cuda": r"^ARG VERSION=(.+)$",
    "docker/Dockerfile.ray": r"^ARG FORKJOIN=.+:(.+)$",
    "docker/Dockerfile.router": r"^ARG VERSION=(.+)$",
    "deploy/kuberay/rayservice.yaml": r"^ +image: vllm-forkjoin-ray:(.+)$",
}


#: What PyPI shows beside the packages, and what the links of their READMEs begin with.
URLS = re.compile(r'^\w+ = "https://github\.com/([^/"]+/[^/"]+)', flags=re.M)


def faults(tag: str, root: Path, repository: str | None = None) -> list[str]:
    """What keeps the checkout at ``root`` from being released as ``tag``, a sentence each.

    ``repository``: the owner and name on GitHub, where it is released from there.
    """
    if not re.fullmatch(r"v\d+\.\d+\.\d+((a|b|rc)\d+)?", tag):
        return [f"the tag: expected one like v1.2.3 or v1.2.3rc1, got {tag}"]
    version, found = tag.removeprefix("v"), []
    for name, pattern in VERSIONS.items():
        seen = set(re.findall(pattern, (root / name).read_text(), flags=re.M))
        if seen != {version}:
            found.append(f"{name}: expected the version {version}, got {', '.join(sorted(seen)) or 'none'}")
    for name in ("pyproject.toml", "client/pyproject.toml"):
        seen = set(URLS.findall((root / name).read_text()))
        if repository and seen != {repository}:
            found.append(f"{name}: expected URLs of {repository}, got {', '.join(sorted(seen)) or 'none'}")
    if not notes(version, root):
        found.append(f"CHANGELOG.md: expected a section '## {version}' with a line of text, found none")
    return found


def notes(version: str, root: Path) -> str:
    """The changelog's section of ``version``; empty if there is none."""
    text = (root / "CHANGELOG.md").read_text()
    section = re.search(rf"^## {re.escape(version)}\b[^\n]*\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S)
    return section[1].strip() if section else ""


def main(tag: str) -> None:
    """Print the notes of ``tag``, or what is wrong with it."""
    if found := faults(tag, ROOT, os.environ.get("GITHUB_REPOSITORY")):
        sys.exit("\n".join(found))
    print(notes(tag.removeprefix("v"), ROOT))


if __name__ == "__main__":
    main(sys.argv[1])
