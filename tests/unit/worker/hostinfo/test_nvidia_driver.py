"""The reader of NVIDIA's GPUs is used where the driver's library is, and not imported elsewhere."""

from collections.abc import Collection

import pytest
from structlog.testing import capture_logs

from gateway.domain.resources import Gpu
from gateway.worker.hostinfo import nvidia
from gateway.worker.hostinfo.nvidia_driver import read_gpus, read_process_memory
from gateway.worker.hostinfo.readings import Amounts

MACHINE = Amounts(64, 32)
PRESENT, ABSENT = "libc.so.6", "libnothing.so.1"


def test_without_the_library_there_is_no_gpu_and_one_line() -> None:
    with capture_logs() as logs:
        assert read_gpus(MACHINE, ABSENT) == ()
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [("worker.no_nvidia_driver", "debug")]
    assert read_process_memory([1], ABSENT) is None


def test_with_the_library_the_gpus_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus = (Gpu("nvidia", "L4", "GPU-a", 24),)

    def read_these(memory: Amounts) -> tuple[Gpu, ...]:
        return gpus if memory is MACHINE else ()

    def held_by(pids: Collection[int]) -> int:
        return len(pids)

    monkeypatch.setattr(nvidia, "read_gpus", read_these)
    monkeypatch.setattr(nvidia, "read_process_memory", held_by)
    assert read_gpus(MACHINE, PRESENT) == gpus
    assert read_process_memory([1, 2], PRESENT) == 2
