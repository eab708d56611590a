"""``python -m tests.fuzz``: so many random inputs for each target, or guided by coverage (atheris).

    python -m tests.fuzz                          # a million random inputs, from --seed on
    python -m tests.fuzz --guided sequences --runs 100000   # needs atheris, of the extra ``fuzz``

Prints a line a target: inputs, seconds, inputs that failed. An input that fails is printed as the command that
runs it again.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

#: How long inputs are, in bytes: most choices that one makes are one each.
LENGTHS = (4, 16, 64, 64, 128, 256)
#: Failures of one target after which it is left.
MAX_FAILURES = 5


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="fuzz what clients and models write"
    )
    parser.add_argument("--targets", nargs="+", help="default: all")
    parser.add_argument("--runs", type=int, help="inputs for each target (a million in all)")
    parser.add_argument("--seed", type=int, default=0, help="the first input's (0)")
    parser.add_argument("--guided", metavar="TARGET", help="let coverage guide the inputs of one target")
    parser.add_argument("--input", nargs=2, metavar=("TARGET", "HEX"), help="run one input again")
    given = parser.parse_args()
    if given.guided:
        return guided(given.guided, given.runs or 100_000, given.seed)
    from tests.fuzz.targets import NUM_INPUTS, TARGETS

    if given.input:
        TARGETS[given.input[0]](bytes.fromhex(given.input[1]))
        return 0
    failures = [run(name, given.runs or NUM_INPUTS[name], given.seed) for name in given.targets or TARGETS]
    return 1 if any(failures) else 0


def run(name: str, num_runs: int, seed: int) -> int:
    """Run a target on random inputs; how many of them failed."""
    from tests.fuzz.targets import TARGETS

    begin, failed, done = time.process_time(), 0, 0
    for number in range(seed, seed + num_runs):
        data = random_input(number)
        done += 1
        if done % 10_000 == 0:
            print(f"{name}: {done} of {num_runs} inputs, {failed} failed", file=sys.stderr, flush=True)
        try:
            TARGETS[name](data)
        except Exception:
            failed += 1
            print(
                f"{name}: python -m tests.fuzz --input {name} {data.hex()}\n{traceback.format_exc()}",
                flush=True,
            )
            if failed >= MAX_FAILURES:
                break
    seconds = time.process_time() - begin
    print(f"{name}: {done} inputs, {failed} failed, {seconds:.0f} CPU s", flush=True)
    return failed


def random_input(number: int) -> bytes:
    rng = random.Random(number)
    return rng.randbytes(rng.choice(LENGTHS))


def guided(name: str, num_runs: int, seed: int) -> int:
    """Hand a target to atheris, which ends the process itself; a failed input is in the file that it names."""
    try:
        import atheris
    except ImportError:
        print(
            "--guided needs atheris: .venv/bin/pip install --requirement requirements/fuzz.lock",
            file=sys.stderr,
        )
        return 2
    with atheris.instrument_imports(include=["forkjoin_scheduler", "forkjoin_server", "tests.fuzz"]):
        from tests.fuzz.targets import TARGETS

    atheris.Setup(
        [sys.argv[0], f"-runs={num_runs}", f"-seed={seed + 1}", "-max_len=256", "-print_final_stats=1"],
        TARGETS[name],
    )
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
