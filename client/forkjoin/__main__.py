"""``python -m forkjoin``: the commands for a terminal."""

from forkjoin.terminal.commands import main

main(prog="python -m forkjoin")
