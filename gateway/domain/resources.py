"""The resources of a machine, as its worker found them, and the resources that models need. None or empty means
unknown. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
_UNITS: Final = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


@dataclass(frozen=True)
class Gpu:
    """One GPU of a machine, or one MIG device of it; sizes are in bytes."""

    vendor: str
    """The vendor in lower case, such as `nvidia`."""
    name: str
    uuid: str
    vram_bytes: int | None = None
    """The memory in bytes. None means unknown, which is no constraint (P3)."""
    vram_free_bytes: int | None = None
    unified: bool = False
    """Whether it shares the machine's memory. The two numbers are then those of the machine."""


@dataclass(frozen=True)
class Capacity:
    """The hardware of a machine as far as its worker may use it, and how much of it is free."""

    gpus: tuple[Gpu, ...] = ()
    ram_bytes: int | None = None
    """The memory that the worker may use: the machine's, or its control group's limit, whichever is less."""
    ram_free_bytes: int | None = None
    disk_bytes: int | None = None
    """The size of the file system that holds the models folder."""
    disk_free_bytes: int | None = None
    cpu_count: int | None = None
    cpu_flags: tuple[str, ...] = ()

    @property
    def vram_bytes(self) -> int | None:
        """The memory of all GPUs together. Returns None if there is no GPU, or if one does not say."""
        return _sum_known([gpu.vram_bytes for gpu in self._memories])

    @property
    def vram_free_bytes(self) -> int | None:
        """The free memory of all GPUs together. Returns None if there is no GPU, or if one does not say."""
        return _sum_known([gpu.vram_free_bytes for gpu in self._memories])

    @property
    def _memories(self) -> tuple[Gpu, ...]:
        """One GPU for each memory: the unified ones share a single memory, which must not count twice."""
        unified = tuple(gpu for gpu in self.gpus if gpu.unified)
        return tuple(gpu for gpu in self.gpus if not gpu.unified) + unified[:1]


UNKNOWN: Final = Capacity()


@dataclass(frozen=True)
class VramBudget:
    """The GPU memory that models may use: a number of bytes, or a share of the total."""

    amount: int | None = None
    share: float | None = None
    """The share, above 0 and up to 1."""

    def of(self, total_bytes: int) -> int:
        """Returns how many bytes models may use of `total_bytes`; never more than that."""
        allowed = total_bytes if self.share is None else int(total_bytes * self.share)
        return min(allowed, total_bytes if self.amount is None else self.amount)


ALL_VRAM: Final = VramBudget()


def free_vram_bytes(capacity: Capacity, budget: VramBudget) -> int | None:
    """Returns the GPU memory that a new model may take now, or None if it is unknown. A budget is applied nowhere else.

    Memory that is already in use by any program counts against the budget.
    """
    total, free = capacity.vram_bytes, capacity.vram_free_bytes
    if total is None or free is None:
        return None
    return max(0, min(free, budget.of(total) - (total - free)))


def automatic_labels(capacity: Capacity, node_name: str) -> Mapping[str, str]:
    """Returns the labels that every node has without configuration. Labels of the configuration replace them."""
    labels = {"node.name": node_name}
    if capacity.gpus:
        labels["gpu.vendor"] = capacity.gpus[0].vendor
        labels["gpu.count"] = str(len(capacity.gpus))
    if (vram := capacity.vram_bytes) is not None:
        labels["gpu.vram"] = f"{vram // GIB}GiB"
    return MappingProxyType(labels)


def format_bytes(amount: int, *, round_up: bool = False) -> str:
    """Writes an amount for people, with at most one digit after the point: `1.5 GiB`, `200 MiB`, `17 bytes`.

    It is rounded down. A need is rounded up, so that it reads as more than what is free if it is more.
    """
    for unit, name in _UNITS:
        if amount >= unit:
            tenths = -(-amount * 10 // unit) if round_up else amount * 10 // unit
            return f"{tenths / 10:.10g} {name}"
    return f"{amount} bytes"


def _sum_known(amounts: list[int | None]) -> int | None:
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known and len(known) == len(amounts) else None


DISK_HEADROOM_SHARE: Final = 0.05
DISK_HEADROOM_BYTES_MIN: Final = GIB


def disk_headroom_bytes(disk_bytes: int | None) -> int:
    """Returns the bytes that always stay free on a disk of that size (P1). The planner and the workers use this same
    rule.

    On a disk of unknown size the least amount stays free.
    """
    return max(int((disk_bytes or 0) * DISK_HEADROOM_SHARE), DISK_HEADROOM_BYTES_MIN)


@dataclass(frozen=True)
class Requirement:
    """The memory and disk that a replica needs, in bytes. None means unknown, which is no constraint (P3)."""

    vram_bytes: int | None = None
    """The GPU memory on a machine with GPUs, as far as its layers go there."""
    ram_bytes: int | None = None
    """The main memory on a machine without GPUs."""
    disk_bytes: int | None = None
    """The size of its artifact, if that has to be fetched."""
    measured: bool = False
    """Whether it was measured at a loaded replica, and not estimated from the file's header."""


UNKNOWN_REQUIREMENT: Final = Requirement()
