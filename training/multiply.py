"""Long multiplication, written so that a model of two million weights does it almost without error.

Every token is *one hop* from its inputs: a digit is found by a label that is unique in its thread, a carry at
a fixed distance. Digits are labelled from the most significant (p q r s t, x y z); the places A, B, C … of
the accumulator are 10^0, 10^1, 10^2 …: the work of ``48*36`` is

    p4q8*x3y6
    y6A:q8*6=48+0=48A8;p4*6=24+4=28B8;C2
    x3B:q8*3=24+0=24+B8=32B2;p4*3=12+3=15+C2=17C7;D1
    D1C7B2A8
"""

from __future__ import annotations

MULTIPLICAND_LABELS = "pqrst"
MULTIPLIER_LABELS = "xyz"
PLACES = "ABCDEFG"


def long_multiplication(m: int, n: int) -> str:
    """The lines of ``m*n``, each ended; raises ValueError if the labels do not suffice."""
    digits_of_m, digits_of_n = len(str(m)), len(str(n))
    if (
        digits_of_m > len(MULTIPLICAND_LABELS)
        or digits_of_n > len(MULTIPLIER_LABELS)
        or digits_of_m + digits_of_n > len(PLACES)
    ):
        raise ValueError(
            f"expected factors of up to {len(MULTIPLICAND_LABELS)} and {len(MULTIPLIER_LABELS)} digits, "
            f"together up to {len(PLACES)}, got {m}*{n}"
        )
    multiplicand = list(zip(MULTIPLICAND_LABELS, str(m), strict=False))
    multiplier = list(zip(MULTIPLIER_LABELS, str(n), strict=False))
    lines = ["".join(a + b for a, b in multiplicand) + "*" + "".join(a + b for a, b in multiplier)]
    places: dict[str, int] = {}
    for shift, (row_label, row_digit) in enumerate(reversed(multiplier)):
        line, carry = f"{row_label}{row_digit}{PLACES[shift]}:", 0
        for i, (label, digit) in enumerate(reversed(multiplicand)):
            place = PLACES[shift + i]
            product = int(digit) * int(row_digit)
            total = product + carry
            line += f"{label}{digit}*{row_digit}={product:02d}+{carry}={total:02d}"
            if shift:
                line += f"+{place}{places[place]}"
                total += places[place]
                line += f"={total:02d}"
            carry, places[place] = divmod(total, 10)
            line += f"{place}{places[place]};"
        top = PLACES[shift + len(multiplicand)]
        places[top] = carry
        lines.append(f"{line}{top}{carry}")
    digits = sorted(places.items(), reverse=True)
    if digits[0][1] == 0:
        digits = digits[1:]
    lines.append("".join(f"{place}{digit}" for place, digit in digits))
    return "\n".join(lines) + "\n"
