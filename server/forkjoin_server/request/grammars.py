"""What a grammar may cost that a client sends: a JSON schema, a regex, an EBNF grammar.

Libraries compile grammars inside the server, for as long as that takes, and one of them crashes on some
numbers. So what is sent is measured before, without compiling it. The bounds are far above what people
send, and keep the reading of a grammar, on the event loop, under half a second.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from forkjoin_scheduler.errors import BadRequestOptions
from forkjoin_scheduler.excerpt import cut, excerpt
from forkjoin_server.asgi import Json

#: Where a body has grammars, and how many values each may have: tools come by the hundred.
MAX_VALUES = {
    "response_format": 20_000,
    "structured_outputs": 20_000,
    "text": 20_000,
    "output_config": 20_000,
    "tools": 200_000,
}
#: Lists and objects in each other: compiling takes time by the cube of it.
MAX_DEPTH = 64
#: The sum, over all repetitions `{m,n}` of all patterns, of the square of how often each is unrolled.
MAX_UNROLLED_SQUARES = 1_000_000
MAX_PATTERN_CHARS = 65_536
#: What integers of 64 bits, with or without a sign, hold.
_NUMBERS = (-(2**63), 2**64 - 1)
#: llguidance overflows its stack on a range that ends near the least integer of 64 bits.
_LEAST_END = -9 * 10**18
_PATTERNS = ("pattern", "regex", "grammar")
#: Where a schema may be given as text.
_AS_TEXT = ("json", "structural_tag")
_QUANTIFIER = re.compile(r"\{(\d+)(?:,(\d*))?\}")
#: More than any bound; sums stop there.
_BIG = 10**18


def check_grammars(body: Json) -> None:
    """Raise BadRequestOptions, with the field, for a grammar of ``body`` that costs too much."""
    for field, grammar, max_values in _grammars(body):
        _Measure(field, max_values).take(grammar)


def _grammars(body: Json) -> Iterator[tuple[str, Any, int]]:
    for field, most in MAX_VALUES.items():
        if isinstance(body.get(field), (dict, list)):
            yield field, body[field], most
    in_params = body.get("sampling_params")  # of tokens in, tokens out
    if isinstance(in_params, dict) and isinstance(in_params.get("structured_outputs"), dict):
        yield "sampling_params", in_params["structured_outputs"], MAX_VALUES["structured_outputs"]
    options = body.get("forkjoin")
    branches = options.get("branches") if isinstance(options, dict) else None
    if isinstance(branches, list):
        formats = [b.get("response_format") for b in branches if isinstance(b, dict)]
        yield "forkjoin", formats, MAX_VALUES["response_format"]


class _Measure:
    """Adds up what one field's grammars cost."""

    def __init__(self, field: str, max_values: int) -> None:
        self._field, self._left = field, max_values
        self._max_values, self._squares = max_values, 0

    def take(self, grammar: Any) -> None:
        """Raise BadRequestOptions once ``grammar`` is too much."""
        items: list[tuple[Any, int, str]] = [(grammar, 1, "")]
        while items:  # no recursion: its depth is the client's choice
            value, depth, key = items.pop()
            self._left -= 1
            if self._left < 0:
                self._refuse(f"at most {self._max_values} values in its grammars, got more: send fewer")
            if depth > MAX_DEPTH:
                self._refuse(f"lists and objects at most {MAX_DEPTH} deep in each other, got more")
            if isinstance(value, dict):
                items += [(v, depth + 1, k) for k, v in value.items()]
                if key == "patternProperties":
                    for pattern in value:
                        self._take_pattern(pattern)
            elif isinstance(value, list):
                items += [(v, depth + 1, key) for v in value]
            elif isinstance(value, (int, float)) and not isinstance(value, bool):
                self._check_number(value, key)
            elif isinstance(value, str) and key in _PATTERNS:
                self._take_pattern(value)
            elif isinstance(value, str) and key in _AS_TEXT:
                items.append((self._read(key, value), depth + 1, ""))

    def _read(self, key: str, text: str) -> Any:
        """The JSON that ``text`` is; None if it is none, which vLLM says."""
        try:
            return json.loads(text)
        except RecursionError:
            self._refuse(f"lists and objects at most {MAX_DEPTH} deep in each other, got more in {key}")
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError):
                return None
            self._refuse(f"numbers of 64 bits in its grammars, got more digits in {key}")

    def _check_number(self, value: float, key: str) -> None:
        least, most = _NUMBERS
        is_end = key not in ("minimum", "exclusiveMinimum")
        if not (_LEAST_END if is_end else least) <= value <= most:
            self._refuse(f"numbers of 64 bits in its grammars, got {cut(key) or 'one'} = {excerpt(value)}")

    def _take_pattern(self, pattern: str) -> None:
        if len(pattern) > MAX_PATTERN_CHARS:
            self._refuse(f"patterns of at most {MAX_PATTERN_CHARS} characters, got one of {len(pattern)}")
        self._squares += unrolled_squares(pattern)
        if self._squares > MAX_UNROLLED_SQUARES:
            self._refuse(
                f"patterns whose repetitions multiply to at most {int(MAX_UNROLLED_SQUARES**0.5)}, "
                f"got {cut(pattern, 60)!r}: use * or +, or smaller counts"
            )

    def _refuse(self, expected: str) -> NoReturn:
        raise BadRequestOptions(f"{self._field}: expected {expected}", field=self._field)


def unrolled_squares(pattern: str) -> int:
    """The sum of squares of how often each repetition is unrolled, those around it multiplied in.

    Reads what regexes and EBNF have in common: groups, escapes, classes and ``{m,n}``.

    >>> unrolled_squares("(a{3}b{0,4}){10}")
    2600
    """
    #: By open group: the sum of what is in it so far.
    groups = [0]
    last = 0  # that of what a quantifier would repeat, which is in its group already
    i = 0
    while i < len(pattern):
        char = pattern[i]
        if char == "{" and (found := _QUANTIFIER.match(pattern, i)):
            square = _most_times(found[1], found[2]) ** 2
            groups[-1] -= last
            last = min((last + 1) * square, _BIG)
            groups[-1] += last
            i = found.end()
            continue
        if char == "(":
            groups.append(0)
        elif char == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif char not in "*+?":
            last = 0
        i = _behind(pattern, i)
    return sum(groups)


def _most_times(low: str, high: str | None) -> int:
    """How often ``{low}`` (``high`` None), ``{low,}`` (empty) or ``{low,high}`` is unrolled."""
    num = int(low[:10])
    if high is not None:
        num = max(num, int(high[:10])) if high else num + 1
    return max(num, 1)


def _behind(pattern: str, i: int) -> int:
    """Where what stands at ``i`` ends: an escaped character, a class, or one character."""
    if pattern[i] == "\\":
        return i + 2
    if pattern[i] == "[":
        i += 1
        while i < len(pattern) and pattern[i] != "]":
            i += 2 if pattern[i] == "\\" else 1
    return i + 1
