"""How far a load is, as its worker last said. Pure."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """Of the artifact that is being fetched; None is unknown."""

    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_second: float | None = None
    """As observed so far."""

    @property
    def fraction(self) -> float | None:
        """0 to 1."""
        if self.done_bytes is None or not self.total_bytes:
            return None
        return min(1.0, self.done_bytes / self.total_bytes)

    @property
    def eta_seconds(self) -> float | None:
        """Until all is here, at the observed rate."""
        if self.done_bytes is None or self.total_bytes is None or not self.bytes_per_second:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.bytes_per_second
