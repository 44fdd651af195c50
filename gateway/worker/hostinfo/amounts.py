"""How much there is of something and how much of it is free, as every source reports it. Pure."""

from dataclasses import dataclass
from typing import Final

MIB: Final = 2**20
MEMORY_STEP_BYTES: Final = 64 * MIB
"""Free memory, of the machine or a GPU, is rounded down to this."""
DISK_STEP_BYTES: Final = 256 * MIB


@dataclass(frozen=True)
class Amounts:
    """None: unknown."""

    total_bytes: int | None = None
    free_bytes: int | None = None


UNKNOWN: Final = Amounts()


def round_down(amount: int, step: int) -> int:
    """The multiple of `step` below `amount`; 0 for what is below 0, too."""
    return max(0, amount) // step * step
