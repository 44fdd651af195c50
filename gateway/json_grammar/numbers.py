"""Expressions for integers and numbers within bounds."""

import math
from dataclasses import dataclass
from typing import Final

from gateway.json_grammar.text import literal, one_of

LARGEST: Final = 10**15 - 1
"""The largest number in a grammar, if the bounds allow it. Every integer up to it is exact as a float, too."""
FRACTION: Final = '( "." [0-9]{1,9} )?'
FRACTION_NOT_ZERO: Final = '"." [0-9]{0,8} [1-9]'


@dataclass(frozen=True)
class NumberBounds:
    """The bounds of a number. An exclusive one is not reached."""

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def are_set(self) -> bool:
        """Whether there is any bound."""
        return any(bound is not None for bound in (self.least, self.most, self.above, self.below))

    def integers(self) -> tuple[int, int]:
        """Returns the least and the largest integer within the bounds; the first may be above the second."""
        low = [-LARGEST] + [math.ceil(bound) for bound in (self.least,) if bound is not None]
        low += [math.floor(bound) + 1 for bound in (self.above,) if bound is not None]
        high = [LARGEST] + [math.floor(bound) for bound in (self.most,) if bound is not None]
        high += [math.ceil(bound) - 1 for bound in (self.below,) if bound is not None]
        return max(low), min(high)

    def negated(self) -> "NumberBounds":
        """Returns the bounds of the number with the other sign."""
        least, most, above, below = (None if bound is None else -bound for bound in self._ends())
        return NumberBounds(most, least, below, above)

    def _ends(self) -> tuple[float | None, float | None, float | None, float | None]:
        return self.least, self.most, self.above, self.below


def integer_expression(bounds: NumberBounds) -> str | None:
    """Returns the expression for integers, or None if none is within the bounds."""
    low, high = bounds.integers()
    parts = [f'"-" {_whole(max(1, -high), -low)}'] if low < 0 and -low >= max(1, -high) else []
    if high >= max(0, low):
        parts.append(_whole(max(0, low), high))
    return one_of(parts) if parts else None


def number_expression(bounds: NumberBounds) -> str | None:
    """Returns the expression for numbers, or None if it finds none within the bounds.

    Between two whole numbers it admits every fraction or none. So it finds no number in 0.2 to 0.7, and leaves out a
    part of 0.5 to 3.
    """
    parts = _positive(bounds)
    parts += [f'"-" {part}' for part in _positive(bounds.negated(), with_zero=False)]
    return one_of(parts) if parts else None


def _positive(bounds: NumberBounds, *, with_zero: bool = True) -> list[str]:
    """Returns the expressions for numbers from 0, with or without 0 itself."""
    low, high = bounds.integers()
    first_inner = max(0, *(math.ceil(bound) for bound in (bounds.least, bounds.above) if bound is not None), 0)
    ends = [math.floor(bound) for bound in (bounds.most, bounds.below) if bound is not None]
    last_inner = min([LARGEST, *ends]) - 1
    first_whole = max(0 if with_zero else 1, low)
    parts = [_whole(first_whole, high)] if first_whole <= high else []
    full_from = first_inner
    if first_inner < first_whole and first_inner <= last_inner:  # The whole number itself is not admitted.
        parts.append(f"{literal(str(first_inner))} {FRACTION_NOT_ZERO}")
        full_from += 1
    if full_from <= last_inner:
        parts.append(f"{_whole(full_from, last_inner)} {FRACTION}")
    return parts


def _whole(low: int, high: int) -> str:
    """Returns the expression for the integers from `low` (at least 0) to `high`, without leading zeros."""
    parts = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        last = min(high, 10**digits - 1)
        parts.append(_same_length(str(first), str(last)))
    return one_of(parts)


def _same_length(low: str, high: str) -> str:
    if low == high:
        return literal(low)
    if set(low) == {"0"} and set(high) == {"9"}:
        return f"[0-9]{{{len(low)}}}"
    if len(low) == 1:
        return f"[{low}-{high}]"
    rest = len(low) - 1
    if low[0] == high[0]:
        return f"{literal(low[0])} {_same_length(low[1:], high[1:])}"
    first, last = int(low[0]), int(high[0])
    parts = []
    if set(low[1:]) != {"0"}:
        parts.append(f"{literal(low[0])} {_same_length(low[1:], '9' * rest)}")
        first += 1
    if set(high[1:]) != {"9"}:
        parts.append(f"{literal(high[0])} {_same_length('0' * rest, high[1:])}")
        last -= 1
    if first <= last:
        parts.append(f"[{first}-{last}] [0-9]{{{rest}}}")
    return one_of(parts)
