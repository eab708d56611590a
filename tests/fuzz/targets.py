"""What is fuzzed: functions that take any bytes and raise where the code under test is wrong."""

from __future__ import annotations

from collections.abc import Callable

from tests.fuzz import dialect_file, field, sequences, wire

Target = Callable[[bytes], None]

TARGETS: dict[str, Target] = {
    "field": field.target,
    "sequences": sequences.target,
    "dialects": dialect_file.target,
    "wire": wire.target,
}

#: Inputs of ``make fuzz``, a million in all; those of a field are read ten times as fast as a file.
NUM_INPUTS = {"field": 580_000, "sequences": 200_000, "dialects": 120_000, "wire": 100_000}
