"""Small readings that several sources share: amounts, the kernel's files, the disk. Pure except for the reading
itself."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.domain.resources import MIB

MEMORY_STEP_BYTES: Final = 64 * MIB
"""The step to which free memory of the machine or of a GPU is rounded down."""
DISK_STEP_BYTES: Final = 256 * MIB


@dataclass(frozen=True)
class Amounts:
    """A total and a free amount in bytes. None means unknown."""

    total_bytes: int | None = None
    free_bytes: int | None = None


UNKNOWN: Final = Amounts()


def round_down(amount: int, step: int) -> int:
    """Returns the multiple of `step` below `amount`, and 0 for a negative amount."""
    return max(0, amount) // step * step


def read_text(path: Path) -> str:
    """Returns the text of a file, or an empty text if it cannot be read."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):  # The latter is raised for a path with a NUL, made from another such file.
        return ""


def read_number(path: Path) -> int | None:
    """Reads a non-negative whole number. Returns None if the file can't be read or holds anything else."""
    return to_number(read_text(path))


def to_number(text: str) -> int | None:
    """Returns a whole number from 0 on, or None for anything else, such as the "max" and the -1 that mean no limit."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number >= 0 else None


def read_disk(models_dir: Path) -> Amounts:
    """Reads how large and how free the disk of `models_dir`, or of the nearest folder above that exists, is (P1)."""
    folder = models_dir.absolute()
    for existing in (folder, *folder.parents):
        try:
            usage = shutil.disk_usage(existing)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError:
            return UNKNOWN
        # Some network file systems do not know their size and report 0.
        return Amounts(usage.total, round_down(usage.free, DISK_STEP_BYTES)) if usage.total else UNKNOWN
    return UNKNOWN
