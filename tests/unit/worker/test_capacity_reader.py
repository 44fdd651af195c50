"""What a worker tells of its machine changes seldom."""

from dataclasses import replace
from pathlib import Path

from gateway.domain.resources import Capacity, Gpu
from gateway.worker.capacity_reader import CapacityReader, steadied

GIB = 2**30
GPU = Gpu("nvidia", "card", "GPU-1", 24 * GIB, 20 * GIB)
BEFORE = Capacity((GPU,), 64 * GIB, 40 * GIB, 1000 * GIB, 500 * GIB)


def test_a_small_difference_is_none() -> None:
    now = replace(
        BEFORE,
        gpus=(replace(GPU, vram_free_bytes=20 * GIB - 2**28),),
        ram_free_bytes=40 * GIB + 2**29,
        disk_free_bytes=499 * GIB,
    )
    assert steadied(BEFORE, now) == BEFORE


def test_a_noticeable_difference_and_any_other_fact_is_reported() -> None:
    loaded = replace(BEFORE, gpus=(replace(GPU, vram_free_bytes=12 * GIB),), ram_free_bytes=39 * GIB, cpu_count=4)
    assert steadied(BEFORE, loaded) == loaded
    swapped = replace(BEFORE, gpus=(replace(GPU, uuid="GPU-2", vram_free_bytes=20 * GIB - 1),))
    assert steadied(BEFORE, swapped) == swapped


def test_what_becomes_unknown_or_known_is_reported() -> None:
    unknown = replace(BEFORE, ram_free_bytes=None)
    assert steadied(BEFORE, unknown) == unknown
    assert steadied(unknown, BEFORE) == BEFORE


async def test_two_reads_in_a_row_are_one(tmp_path: Path) -> None:
    read = CapacityReader(tmp_path)
    first = await read()
    assert first.ram_bytes
    assert await read() is first
