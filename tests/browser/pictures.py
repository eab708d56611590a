"""Take the pictures of the docs, and measure the frames that fifty threads cost.

python -m tests.browser.pictures docs
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

from tests.browser.serving import KEY, playground_server

HERE = Path(__file__).parent
MS_A_PICTURE, MS_OF_THE_LAST = 100, 3000


def installed(folder: Path) -> Path:
    """``folder`` with the scripts of this one in it, and what they import."""
    for path in (*HERE.glob("*.mjs"), *HERE.glob("package*.json")):
        shutil.copy(path, folder)
    subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True, timeout=300)
    return folder


def main() -> None:
    """Write the pictures into the folder that is named, and print the frames."""
    into = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as name:
        folder = installed(Path(name))
        with playground_server(folder) as address:
            env = os.environ | {"BASE_URL": address, "API_KEY": KEY}
            subprocess.run(["node", "pictures.mjs", str(into)], cwd=folder, env=env, check=True, timeout=900)
        animate(sorted(folder.glob("moment-*.png")), into / "playground.gif")


def animate(pictures: list[Path], into: Path) -> None:
    """Put ``pictures`` together; the last one stays for a while."""
    first, *others = [
        Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=32) for path in pictures
    ]
    durations = [MS_A_PICTURE] * len(others) + [MS_OF_THE_LAST]
    first.save(into, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)


if __name__ == "__main__":
    main()
