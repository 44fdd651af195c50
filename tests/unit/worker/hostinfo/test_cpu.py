"""Processors by affinity and quota, and instruction sets from recorded files."""

from pathlib import Path

import pytest

from gateway.worker.hostinfo.cpu import read_cpu_count, read_cpu_flags
from tests.fakes.kernel_tree import V1, V2, grow

X86 = """\
processor\t: 0
model name\t: AMD EPYC
flags\t\t: fpu vme sse sse4_2 fma avx f16c hypervisor bmi2 avx2 avx512f avx512_vnni erms

processor\t: 1
model name\t: AMD EPYC
flags\t\t: fpu vme sse sse4_2 fma avx f16c hypervisor bmi2 avx2 avx512f avx512_vnni erms
"""
BIG_LITTLE = """\
processor\t: 0
Features\t: fp asimd aes crc32 asimdhp asimddp sve i8mm bf16
CPU part\t: 0xd4d

processor\t: 1
Features\t: fp asimd aes crc32 asimdhp asimddp
CPU part\t: 0xd05
"""


def eight() -> int | None:
    return 8


def nobody_knows() -> int | None:
    return None


def test_without_a_quota_affinity_counts(tmp_path: Path) -> None:
    assert read_cpu_count(tmp_path, eight) == 8
    assert read_cpu_count(tmp_path, nobody_knows) is None


@pytest.mark.parametrize(
    ("quota", "count"),
    [("max 100000", 8), ("350000 100000", 3), ("50000 100000", 1), ("6400000 100000", 8), ("200000 0", 8), ("2", 8)],
)
def test_v2_a_quota_of_time_is_whole_processors(tmp_path: Path, quota: str, count: int) -> None:
    assert read_cpu_count(grow(tmp_path, V2, own="/a", groups={"/a": {"cpu.max": quota}}), eight) == count


@pytest.mark.parametrize(("quota", "count"), [(-1, 8), (350000, 3), (1000, 1)])
def test_v1_a_quota_of_time_is_whole_processors(tmp_path: Path, quota: int, count: int) -> None:
    group = {"cpu.cfs_quota_us": quota, "cpu.cfs_period_us": 100000}
    assert read_cpu_count(grow(tmp_path, V1, own="/a", groups={"/a": group}), eight) == count


def test_the_least_of_nested_quotas_holds(tmp_path: Path) -> None:
    groups = {"/pod": {"cpu.max": "200000 100000"}, "/pod/us": {"cpu.max": "400000 100000"}}
    root = grow(tmp_path, V2, own="/pod/us", groups=groups)
    assert read_cpu_count(root, eight) == 2
    assert read_cpu_count(root, nobody_knows) == 2


def flags_in(root: Path, cpuinfo: str) -> tuple[str, ...]:
    (root / "proc").mkdir()
    (root / "proc/cpuinfo").write_text(cpuinfo)
    return read_cpu_flags(root)


def test_flags_are_those_that_matter(tmp_path: Path) -> None:
    assert flags_in(tmp_path, X86) == (
        "avx", "avx2", "avx512_vnni", "avx512f", "bmi2", "f16c", "fma", "sse4_2",
    )  # fmt: skip


def test_flags_are_those_of_every_core(tmp_path: Path) -> None:
    assert flags_in(tmp_path, BIG_LITTLE) == ("asimd", "asimddp", "asimdhp")


def test_no_flags_are_known_without_the_file(tmp_path: Path) -> None:
    assert read_cpu_flags(tmp_path) == ()
    assert flags_in(tmp_path, "processor\t: 0\nisa\t\t: rv64imafdc\n") == ()
