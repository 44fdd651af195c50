"""What one replica of a model takes of the machine that it runs on. Pure."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Requirement:
    """Bytes; None is unknown, which is no constraint (P3)."""

    vram_bytes: int | None = None
    """GPU memory on a machine with GPUs, as far as its layers go there."""
    ram_bytes: int | None = None
    """Main memory on a machine without."""
    disk_bytes: int | None = None
    """Size of its artifact, where that has to be fetched."""
    measured: bool = False
    """From a replica that was loaded, and not from the file's header."""


UNKNOWN_REQUIREMENT: Final = Requirement()
