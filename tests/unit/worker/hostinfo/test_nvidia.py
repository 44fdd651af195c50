"""GPUs as read from a fake management library that raises the real one's errors."""

import pynvml
import pytest
from structlog.testing import capture_logs

from gateway.domain.resources import Gpu
from gateway.worker.hostinfo.nvidia import read_gpus
from gateway.worker.hostinfo.readings import UNKNOWN, Amounts
from tests.fakes.nvml import GIB, FakeDevice, FakeMemory, FakeNvml

MIB = 2**20
MACHINE = Amounts(128 * GIB, 100 * GIB)
LOST = pynvml.NVMLError_GpuIsLost()
UNSUPPORTED = pynvml.NVMLError_NotSupported()
NO_DEVICE = pynvml.NVMLError_NotFound()


def uuids(gpus: tuple[Gpu, ...]) -> list[str]:
    return [gpu.uuid for gpu in gpus]


def test_two_gpus_with_what_each_has() -> None:
    nvml = FakeNvml(
        [
            FakeDevice("GPU-a", "NVIDIA A100", FakeMemory(80 * GIB, 79 * GIB)),
            FakeDevice("GPU-b", memory=FakeMemory(9, 0)),
        ]
    )
    assert read_gpus(MACHINE, nvml) == (
        Gpu("nvidia", "NVIDIA A100", "GPU-a", 80 * GIB, 79 * GIB),
        Gpu("nvidia", "NVIDIA L4", "GPU-b", 9, 0),
    )
    assert nvml.opened == 0


def test_free_memory_is_rounded_down_so_that_a_machine_at_rest_tells_the_same() -> None:
    readings = {
        read_gpus(MACHINE, FakeNvml([FakeDevice(memory=FakeMemory(GIB, 640 * MIB + wobble))]))
        for wobble in (0, 4096, 64 * MIB - 1)
    }
    assert [gpu.vram_free_bytes for gpus in readings for gpu in gpus] == [640 * MIB]


@pytest.mark.parametrize("reason", [pynvml.NVMLError_LibraryNotFound(), pynvml.NVMLError_DriverNotLoaded()])
def test_no_driver_is_no_gpu_and_one_line(reason: pynvml.NVMLError) -> None:
    with capture_logs() as logs:
        assert read_gpus(MACHINE, FakeNvml([FakeDevice()], driver=reason)) == ()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("worker.no_nvidia_driver", "debug")]


def test_mig_devices_count_in_the_place_of_their_gpu() -> None:
    part = FakeMemory(10 * GIB, 10 * GIB)
    gpu = FakeDevice(
        "GPU-a",
        memory=pynvml.NVMLError_NoPermission(),
        parts=[FakeDevice("MIG-1", memory=part), NO_DEVICE, FakeDevice("MIG-2", memory=part), NO_DEVICE],
    )
    gpus = read_gpus(MACHINE, FakeNvml([gpu, FakeDevice("GPU-b", parts=None)]))
    assert uuids(gpus) == ["MIG-1", "MIG-2", "GPU-b"]
    assert [gpu.vram_bytes for gpu in gpus] == [10 * GIB, 10 * GIB, 24 * GIB]


def test_a_gpu_in_mig_mode_without_parts_runs_nothing() -> None:
    assert read_gpus(MACHINE, FakeNvml([FakeDevice(parts=[NO_DEVICE] * 7)])) == ()


@pytest.mark.parametrize("memory", [UNSUPPORTED, FakeMemory(0, 0)])
def test_unified_memory_is_the_machines(memory: FakeMemory | Exception) -> None:
    nvml = FakeNvml([FakeDevice("GPU-a", "NVIDIA GB10", memory)])
    assert read_gpus(MACHINE, nvml) == (Gpu("nvidia", "NVIDIA GB10", "GPU-a", 128 * GIB, 100 * GIB, unified=True),)
    (gpu,) = read_gpus(UNKNOWN, nvml)
    assert (gpu.vram_bytes, gpu.vram_free_bytes, gpu.unified) == (None, None, True)


@pytest.mark.parametrize(
    "broken",
    [
        LOST,
        FakeDevice(name=LOST),
        FakeDevice(uuid=UnicodeDecodeError("utf-8", b"\xff", 0, 1, "garbled")),
        FakeDevice(memory=pynvml.NVMLError_Unknown()),
        FakeDevice(parts=LOST),
        FakeDevice(parts=[LOST, FakeDevice(memory=LOST)]),
    ],
)
def test_a_broken_gpu_does_not_hide_the_others(broken: FakeDevice | Exception) -> None:
    nvml = FakeNvml([FakeDevice("GPU-a"), broken, FakeDevice("GPU-c")])
    assert uuids(read_gpus(MACHINE, nvml)) == ["GPU-a", "GPU-c"]
    assert nvml.opened == 0


def test_a_broken_part_does_not_hide_the_others() -> None:
    gpu = FakeDevice(parts=[LOST, FakeDevice("MIG-2"), FakeDevice(memory=LOST), FakeDevice("MIG-4")])
    assert uuids(read_gpus(MACHINE, FakeNvml([gpu]))) == ["MIG-2", "MIG-4"]


def test_what_a_small_device_can_not_tell_is_left_empty() -> None:
    (gpu,) = read_gpus(MACHINE, FakeNvml([FakeDevice(uuid=UNSUPPORTED, name=UNSUPPORTED)]))
    assert (gpu.name, gpu.uuid, gpu.vram_bytes) == ("", "", 24 * GIB)


def test_the_real_library_is_called_by_names_that_it_has() -> None:
    called = [name for name in dir(FakeNvml) if name.startswith("nvml")]
    assert called
    assert [name for name in called if not callable(getattr(pynvml, name, None))] == []
