"""Reads how many processors this process may use, and which instruction sets make inference fast."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from gateway.worker.hostinfo.control_groups import own_groups
from gateway.worker.hostinfo.readings import read_number, read_text, to_number

INFERENCE_FLAGS: Final = frozenset(
    {"sse4_2", "avx", "avx2", "avx_vnni", "bmi2", "f16c", "fma"}
    | {"avx512f", "avx512bw", "avx512vbmi", "avx512_vnni", "avx512_bf16", "avx512_fp16"}
    | {"amx_tile", "amx_int8", "amx_bf16", "amx_fp16"}
    | {"neon", "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"}
)
"""The flags for which inference engines have special code, as the kernel spells them (asimd is ARM's NEON)."""

_FLAG_KEYS: Final = frozenset({"flags", "Features"})
"""The keys of the flags on x86 and on ARM."""


def usable_cpus() -> int | None:
    """Returns the number of processors that the scheduler may give this process."""
    if sys.platform != "linux":
        return os.cpu_count()
    return len(os.sched_getaffinity(0))


def read_cpu_count(root: Path = Path("/"), usable: Callable[[], int | None] = usable_cpus) -> int | None:
    """Returns the number of whole processors, at least one. A group with more threads than its quota pays for is
    stopped again and again.

    `root` is the folder of the machine's files, "/" except in tests.
    """
    shares = (_quota(folder) for folder in own_groups("cpu", root))
    counts = [count for count in (usable(), *shares) if count is not None]
    return max(1, min(counts)) if counts else None


def _quota(folder: Path) -> int | None:
    """Returns the whole processors of time that the group gets, or None if it has no quota."""
    quota, period = _version_2(folder) or _version_1(folder)
    return quota // period if quota and period else None


def _version_2(folder: Path) -> tuple[int | None, int | None] | None:
    """Reads the quota of version 2. Returns None if there is no such file."""
    match read_text(folder / "cpu.max").split():
        case [quota, period]:
            return to_number(quota), to_number(period)
        case _:
            return None


def _version_1(folder: Path) -> tuple[int | None, int | None]:
    return read_number(folder / "cpu.cfs_quota_us"), read_number(folder / "cpu.cfs_period_us")


def read_cpu_flags(root: Path = Path("/")) -> tuple[str, ...]:
    """Returns the flags that every processor has, sorted. The cores of one machine may differ, and a thread runs on any
    of them."""
    each = list(_flags_of_each(read_text(root / "proc/cpuinfo")))
    return tuple(sorted(INFERENCE_FLAGS.intersection(*each))) if each else ()


def _flags_of_each(cpuinfo: str) -> Iterator[set[str]]:
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in _FLAG_KEYS:
            yield set(value.split())
