"""How many requests wait for a model at this gateway."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Waiting:
    waiting: int
    oldest_seconds: float
    """How long the oldest has been waiting."""
