"""The arithmetic of rounds: medians with their range, differences and ratios within one round."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Summary:
    """One figure over all rounds."""

    median: float
    low: float
    high: float

    def show(self, digits: int) -> str:
        """Returns the median, and the range behind it in brackets."""
        return f"{self.median:,.{digits}f} ({self.low:,.{digits}f}-{self.high:,.{digits}f})"


def summarize(values: Sequence[float]) -> Summary:
    """Raises `ValueError` if there is no value."""
    return Summary(median(values), min(values), max(values))


def differences(values: Sequence[float | None], base: Sequence[float | None]) -> list[float]:
    """Returns by how much each round's value is above that of the base, for the rounds that have both."""
    return [one - other for one, other in zip(values, base, strict=True) if one is not None and other is not None]


def ratios(values: Sequence[float | None], base: Sequence[float | None]) -> list[float]:
    """Returns each round's value as a multiple of that of the base, for the rounds that have both."""
    return [one / other for one, other in zip(values, base, strict=True) if one is not None and other]
