"""Reads what this machine has for models: GPUs, memory, disk, processor. Nothing is cached.

In reading order: `readings` (what several sources share), `memory` over `control_groups` (the limits of a container or
service), `cpu`, `nvidia` behind `nvidia_driver`. There is one module per source. A source that can't be read leaves
its part unknown and stops nothing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway.domain.resources import Capacity, Gpu
from gateway.worker.hostinfo import nvidia_driver
from gateway.worker.hostinfo.cpu import read_cpu_count, read_cpu_flags
from gateway.worker.hostinfo.memory import read_memory
from gateway.worker.hostinfo.readings import Amounts, read_disk

GpuReader = Callable[[Amounts], tuple[Gpu, ...]]
"""Reads GPUs. It takes the machine's memory, which is the memory of a unified GPU."""
GPU_READERS: Final[tuple[GpuReader, ...]] = (nvidia_driver.read_gpus,)
"""One reader per vendor or interface. Two of them must not find the same GPU."""


def read_capacity(models_dir: Path) -> Capacity:
    """Returns the capacity of this machine. It blocks for as long as a broken driver or a network disk takes, so call
    it in a thread.

    Free amounts are rounded down, so that a machine at rest yields equal values: each change is a registry write.
    """
    memory, disk = read_memory(), read_disk(models_dir)
    return Capacity(
        gpus=tuple(gpu for read_gpus in GPU_READERS for gpu in read_gpus(memory)),
        ram_bytes=memory.total_bytes,
        ram_free_bytes=memory.free_bytes,
        disk_bytes=disk.total_bytes,
        disk_free_bytes=disk.free_bytes,
        cpu_count=read_cpu_count(),
        cpu_flags=read_cpu_flags(),
    )
