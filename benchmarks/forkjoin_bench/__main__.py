"""``python -m forkjoin_bench``: what ``forkjoin bench`` runs."""

import sys

from forkjoin_bench.cli import main

if __name__ == "__main__":
    main(sys.argv[1:])
