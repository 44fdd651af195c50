"""How much room the file system of the models folder has."""

import shutil
from pathlib import Path

from gateway.worker.hostinfo.amounts import DISK_STEP_BYTES, UNKNOWN, Amounts, round_down


def read_disk(models_dir: Path) -> Amounts:
    """Of the nearest folder above that exists, while `models_dir` has not been made yet (P1)."""
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
