"""Reads NVIDIA's GPUs through the management library of the driver (NVML).

The library is opened and closed at each reading. An open library would show the devices of the time at which it was
opened, block updates and resets of the driver, and stop answering once the driver was reloaded.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, Protocol

import pynvml
import structlog

from gateway.domain.resources import Gpu
from gateway.worker.hostinfo.readings import MEMORY_STEP_BYTES, Amounts, round_down

log = structlog.get_logger(__name__)

VENDOR: Final = "nvidia"

_FAILURES: Final = (pynvml.NVMLError, UnicodeDecodeError)
"""The errors of a GPU. The latter is raised for the garbled name of a damaged device."""
_UNSUPPORTED: Final = (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound)
"""The errors for functions that the device, or its older driver, does not support."""

Device = Any
"""A handle of NVML."""


class MemoryInfo(Protocol):
    """The memory of one GPU or MIG device as NVML reports it, in bytes."""

    @property
    def total(self) -> int:
        """The memory of the device, in bytes."""

    @property
    def free(self) -> int:
        """The free memory of the device, in bytes."""


class ProcessInfo(Protocol):
    """A process that computes on a GPU, as NVML reports it."""

    @property
    def pid(self) -> int:
        """The process id."""

    @property
    def usedGpuMemory(self) -> int | None:  # noqa: N802 - the library's name
        """The memory that the process uses, or None if the driver does not say."""


class Nvml(Protocol):
    """The part of `pynvml` that is used. Every function raises `pynvml.NVMLError`."""

    def nvmlInit(self) -> None:  # noqa: N802 - the library's names
        """Opens the library."""

    def nvmlShutdown(self) -> None:  # noqa: N802
        """Closes the library, once for each `nvmlInit`."""

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        """Returns the number of GPUs."""

    def nvmlDeviceGetHandleByIndex(self, index: int) -> Device:  # noqa: N802
        """Returns the handle of the GPU with this index, from 0."""

    def nvmlDeviceGetName(self, handle: Device) -> str:  # noqa: N802
        """Returns the product name of the device."""

    def nvmlDeviceGetUUID(self, handle: Device) -> str:  # noqa: N802
        """Returns the UUID of the device."""

    def nvmlDeviceGetMemoryInfo(self, handle: Device) -> MemoryInfo:  # noqa: N802
        """Returns the memory of the device. Raises `NVMLError_NotSupported` if it has none of its own."""

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Device) -> Sequence[ProcessInfo]:  # noqa: N802
        """Returns the processes that compute on the device."""

    def nvmlDeviceGetMigMode(self, device: Device) -> list[int]:  # noqa: N802
        """Returns the current and the pending MIG mode of a GPU."""

    def nvmlDeviceGetMaxMigDeviceCount(self, device: Device) -> int:  # noqa: N802
        """Returns how many MIG devices a GPU can be split into."""

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: Device, index: int) -> Device:  # noqa: N802
        """Returns the handle of a MIG device of a GPU. Raises `NVMLError_NotFound` if there is none at `index`."""


def read_gpus(machine_memory: Amounts, nvml: Nvml = pynvml) -> tuple[Gpu, ...]:
    """Returns the GPUs, none without a driver. A GPU that fails is left out, because it serves no model, and it hides
    no other GPU."""
    gpus: list[Gpu] = []
    with _opened(nvml) as count:
        for index in range(count):
            gpus += _describe_parts(nvml, index, machine_memory)
    return tuple(gpus)


def read_process_memory(pids: Collection[int], nvml: Nvml = pynvml) -> int | None:
    """Returns what these processes hold of all GPUs, or None if the driver does not say it of any of them.

    It blocks for as long as a broken driver takes.
    """
    used: list[int] = []
    with _opened(nvml) as count:
        for index in range(count):
            with _tolerating(f"processes of GPU {index}"):
                used += _used_on(nvml, nvml.nvmlDeviceGetHandleByIndex(index), pids)
    return sum(used) if used else None


def _used_on(nvml: Nvml, gpu: Device, pids: Collection[int]) -> list[int]:
    running = [each for part in _parts(nvml, gpu) for each in nvml.nvmlDeviceGetComputeRunningProcesses(part)]
    return [each.usedGpuMemory for each in running if each.pid in pids and each.usedGpuMemory is not None]


@contextmanager
def _opened(nvml: Nvml) -> Iterator[int]:
    """Opens the library and yields the number of GPUs: 0 without a driver, or with one that fails."""
    try:
        nvml.nvmlInit()
    except pynvml.NVMLError as error:
        log.debug("worker.no_nvidia_driver", reason=str(error))
        yield 0
        return
    count = 0
    with _tolerating("all"):
        count = nvml.nvmlDeviceGetCount()
    try:
        yield count
    finally:
        with _tolerating("shutdown"):
            nvml.nvmlShutdown()


def _describe_parts(nvml: Nvml, index: int, machine_memory: Amounts) -> list[Gpu]:
    gpus: list[Gpu] = []
    with _tolerating(f"GPU {index}"):
        for device in _parts(nvml, nvml.nvmlDeviceGetHandleByIndex(index)):
            with _tolerating(f"GPU {index} or a part of it"):
                gpus.append(_describe(nvml, device, machine_memory))
    return gpus


def _parts(nvml: Nvml, device: Device) -> list[Device]:
    """Returns the GPU itself, or its MIG devices: a GPU in parts runs nothing as a whole."""
    if not _is_parted(nvml, device):
        return [device]
    parts: list[Device] = []
    for place in range(nvml.nvmlDeviceGetMaxMigDeviceCount(device)):
        with _tolerating(f"part {place}"):
            parts.append(nvml.nvmlDeviceGetMigDeviceHandleByIndex(device, place))
    return parts


def _is_parted(nvml: Nvml, device: Device) -> bool:
    try:
        current, _pending = nvml.nvmlDeviceGetMigMode(device)
    except _UNSUPPORTED:
        return False
    return bool(current == pynvml.NVML_DEVICE_MIG_ENABLE)


def _describe(nvml: Nvml, device: Device, machine_memory: Amounts) -> Gpu:
    own = _own_memory(nvml, device)
    memory = machine_memory if own is None else own
    return Gpu(
        vendor=VENDOR,
        name=_text(nvml.nvmlDeviceGetName, device),
        uuid=_text(nvml.nvmlDeviceGetUUID, device),
        vram_bytes=memory.total_bytes,
        vram_free_bytes=memory.free_bytes,
        unified=own is None,
    )


def _own_memory(nvml: Nvml, device: Device) -> Amounts | None:
    """Returns the device's own memory, or None if it has none and uses the machine's (Jetson, GB10)."""
    try:
        info = nvml.nvmlDeviceGetMemoryInfo(device)
    except _UNSUPPORTED:
        return None
    return Amounts(info.total, round_down(info.free, MEMORY_STEP_BYTES)) if info.total else None


def _text(read: Callable[[Device], str], device: Device) -> str:
    try:
        return read(device)
    except _UNSUPPORTED:
        return ""


@contextmanager
def _tolerating(what: str) -> Iterator[None]:
    try:
        yield
    except pynvml.NVMLError_NotFound:
        pass  # No MIG device has this index.
    except _FAILURES as error:
        log.debug("worker.nvidia_failed", what=what, error=str(error))
