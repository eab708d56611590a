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

#: Inputs of ``make fuzz``, a million in all; one of a field takes a tenth of the time of a file.
NUM_INPUTS = {"field": 350_000, "sequences": 350_000, "dialects": 150_000, "wire": 150_000}
