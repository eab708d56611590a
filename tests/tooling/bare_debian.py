"""The barest Debian that debootstrap makes, in a folder, and commands that run in it as root.

It shares the machine's network and processors, and sees neither its files nor its environment. Three things
are lent: apt's mirror, the variables that name a proxy, and pip's settings with the files and folders that
they name (as variables, so that it does not matter in which file a machine has them).
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

CHECKOUT = "/root/checkout"

#: Run in namespaces of its own, which end with its last process, and all mounts with them: the root, each
#: path that is lent, an empty argument, and the command that is run in the root.
INSIDE = """
set -e
root=$1; shift
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --rbind -o ro /sys "$root/sys"
while [ -n "$1" ]; do
    mkdir -p "$root/lent$(dirname "$1")"
    if [ -d "$1" ]; then mkdir -p "$root/lent$1"; else touch "$root/lent$1"; fi
    mount --bind -o ro "$1" "$root/lent$1"
    shift
done
shift
exec chroot "$root" "$@"
"""


@cache
def why_not() -> str | None:
    """Why there can be none on this machine."""
    if os.geteuid():
        return "needs root, for debootstrap and chroot"
    if not shutil.which("debootstrap"):
        return "needs debootstrap: apt-get install debootstrap"
    trial = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"needs namespaces: {trial.stderr.strip()}" if trial.returncode else None


@dataclass(frozen=True)
class BareDebian:
    """A root folder, in which commands run in a checkout."""

    root: Path

    @classmethod
    def made(cls, root: Path) -> BareDebian:
        """Debian's essential packages and apt; of this machine's release if it is a Debian."""
        # debootstrap mounts things in the root, which an interruption would leave there.
        alone = ["unshare", "--mount"]
        done = subprocess.run(
            [*alone, "debootstrap", "--variant=minbase", *_release(), str(root), *_mirror()],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"debootstrap:\n{done.stdout[-3000:]}{done.stderr[-1000:]}"
        # Who reads the README says yes.
        (root / "etc/apt/apt.conf.d/yes").write_text('APT::Get::Assume-Yes "true";\n')
        shutil.copy("/etc/hosts", root / "etc/hosts")
        (root / CHECKOUT[1:]).mkdir()
        return cls(root)

    def check_out(self, repository: Path) -> None:
        """Put in what is committed in ``repository``, and none of its other files."""
        committed = subprocess.run(
            ["git", "archive", "HEAD"], cwd=repository, check=True, capture_output=True
        )
        into = ["tar", "--extract", "--directory", str(self.root / CHECKOUT[1:])]
        subprocess.run(into, input=committed.stdout, check=True)

    def run(self, command: str, *, timeout: float = 300) -> str:
        """What ``command`` prints; fails unless it ends with 0."""
        done = subprocess.run(
            self._inside(command),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-5000:]}"
        return done.stdout

    def start(self, command: str, log: Path) -> subprocess.Popen[bytes]:
        """``command`` in the background, in a group of its own; what it prints goes to ``log``."""
        with log.open("wb") as out:
            return subprocess.Popen(
                self._inside(command), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def _inside(self, command: str) -> list[str]:
        variables, lent = _lent()
        variables |= {"HOME": "/root", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        variables |= {"LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        return [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child"),
            *("sh", "-c", INSIDE, "sh", str(self.root), *lent, ""),
            *("env", "--ignore-environment", *(f"{name}={value}" for name, value in variables.items())),
            *("sh", "-c", f"cd {CHECKOUT} && {command}"),
        ]


def _release() -> list[str]:
    about = dict(re.findall(r'^(\w+)="?([^"\n]*)', Path("/etc/os-release").read_text(), flags=re.M))
    return [about["VERSION_CODENAME"] if about.get("ID") == "debian" else "stable"]


def _mirror() -> list[str]:
    """Where apt takes this release from; nothing: debootstrap knows a mirror itself."""
    if not shutil.which("apt-get"):
        return []
    told = ["apt-get", "indextargets", "--format", "$(RELEASE) $(COMPONENT) $(SITE)", "Created-By: Packages"]
    rows = subprocess.run(told, check=True, capture_output=True, text=True).stdout.splitlines()
    return [site for release, part, site in map(str.split, rows) if [release, part] == [*_release(), "main"]][
        :1
    ]


@cache
def _lent() -> tuple[dict[str, str], list[str]]:
    """Variables with the network's settings and pip's, and the paths in them, which lie below ``/lent``."""
    variables = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    listed = [sys.executable, "-m", "pip", "config", "list"]
    settings = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    for name, value in re.findall(r"^[^.\n]+\.([a-z-]+)=(.*)$", settings, flags=re.M):
        # Those of the environment stand first, and count most.
        variables.setdefault(f"PIP_{name.upper().replace('-', '_')}", ast.literal_eval(value))
    lent: dict[str, None] = {}

    def moved(found: re.Match[str]) -> str:
        scheme, path = found.groups()
        if not Path(path).exists():
            return found[0]
        # An index links to packages that lie beside it.
        lent[str(Path(path).parent) if scheme else path] = None
        return f"{scheme}/lent{path}"

    variables = {name: re.sub(r"(?<!\S)(file://|)(/\S+)", moved, value) for name, value in variables.items()}
    return variables, list(lent)
