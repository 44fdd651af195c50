"""Small readings that several sources share: amounts, the kernel's files, the disk. Pure but for the reading itself."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from gateway.domain.resources import MIB

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


def read_text(path: Path) -> str:
    """Empty when there is none to be had."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):  # the latter: a path with a NUL in it, put together from another such file
        return ""


def read_number(path: Path) -> int | None:
    """Reads a non-negative whole number. Returns None if the file can't be read or holds anything else."""
    return to_number(read_text(path))


def to_number(text: str) -> int | None:
    """None for whatever is no whole number from 0 on, such as the "max" and the -1 that mean no limit."""
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
        # Some network file systems do not know and say 0.
        return Amounts(usage.total, round_down(usage.free, DISK_STEP_BYTES)) if usage.total else UNKNOWN
    return UNKNOWN
