"""NVIDIA's management library on a made-up machine: the calls and the errors of `pynvml`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, TypeVar

import pynvml

GIB: Final = 2**30
_T = TypeVar("_T")


@dataclass(frozen=True)
class FakeMemory:
    total: int
    free: int


@dataclass(frozen=True)
class FakeUser:
    """A process on a GPU."""

    pid: int
    usedGpuMemory: int | None  # noqa: N815 - the library's name


@dataclass(frozen=True)
class FakeDevice:
    """A GPU or a MIG device; it is its own handle. An error in the place of a value is raised for it."""

    uuid: str | Exception = "GPU-1"
    name: str | Exception = "NVIDIA L4"
    memory: FakeMemory | Exception = field(default_factory=lambda: FakeMemory(24 * GIB, 20 * GIB))
    running: "Sequence[FakeUser] | Exception" = ()
    parts: "Sequence[FakeDevice | Exception] | Exception | None" = field(default_factory=pynvml.NVMLError_NotSupported)
    """MIG devices by place; None: MIG is off. The default, an error: it has no such mode."""


class FakeNvml:
    """`driver` is raised at start when there is one; `opened` counts the calls of start that were not ended."""

    def __init__(self, devices: Sequence[FakeDevice | Exception] = (), *, driver: Exception | None = None) -> None:
        self._devices = devices
        self._driver = driver
        self.opened = 0

    def nvmlInit(self) -> None:  # noqa: N802 - the library's names
        if self._driver is not None:
            raise self._driver
        self.opened += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self._check_open()
        self.opened -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._check_open()
        return len(self._devices)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> FakeDevice:  # noqa: N802
        self._check_open()
        return _value(self._devices[index])

    def nvmlDeviceGetName(self, handle: FakeDevice) -> str:  # noqa: N802
        return _value(handle.name)

    def nvmlDeviceGetUUID(self, handle: FakeDevice) -> str:  # noqa: N802
        return _value(handle.uuid)

    def nvmlDeviceGetMemoryInfo(self, handle: FakeDevice) -> FakeMemory:  # noqa: N802
        return _value(handle.memory)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: FakeDevice) -> Sequence[FakeUser]:  # noqa: N802
        self._check_open()
        return _value(handle.running)

    def nvmlDeviceGetMigMode(self, device: FakeDevice) -> list[int]:  # noqa: N802
        is_on = _value(device.parts) is not None
        return [pynvml.NVML_DEVICE_MIG_ENABLE if is_on else pynvml.NVML_DEVICE_MIG_DISABLE] * 2

    def nvmlDeviceGetMaxMigDeviceCount(self, device: FakeDevice) -> int:  # noqa: N802
        return len(_value(device.parts) or ())

    def nvmlDeviceGetMigDeviceHandleByIndex(self, device: FakeDevice, index: int) -> FakeDevice:  # noqa: N802
        return _value((_value(device.parts) or ())[index])

    def _check_open(self) -> None:
        if not self.opened:
            raise pynvml.NVMLError_Uninitialized


def _value(of: _T | Exception) -> _T:
    if isinstance(of, Exception):
        raise of
    return of
