"""The machine that runs the tests, and a machine whose files are garbage."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from hypothesis import example, given
from hypothesis import strategies as st

from gateway.worker.hostinfo import GPU_READERS, read_capacity
from gateway.worker.hostinfo.cpu import read_cpu_count, read_cpu_flags
from gateway.worker.hostinfo.memory import read_memory
from tests.fakes.kernel_tree import HYBRID, Layout, grow


def test_this_machine_is_plausible(tmp_path: Path) -> None:
    capacity = read_capacity(tmp_path / "models")
    assert capacity.ram_bytes is not None
    assert capacity.ram_free_bytes is not None
    assert capacity.disk_bytes is not None
    assert capacity.disk_free_bytes is not None
    assert capacity.cpu_count is not None
    assert 0 <= capacity.ram_free_bytes <= capacity.ram_bytes <= psutil.virtual_memory().total
    assert 0 <= capacity.disk_free_bytes <= capacity.disk_bytes
    assert capacity.ram_bytes >= 2**28
    assert 1 <= capacity.cpu_count <= (os.cpu_count() or 1)
    assert all(gpu.vendor and gpu.vram_bytes != 0 for gpu in capacity.gpus)
    assert GPU_READERS


# Words that lead further into the parsers than chance would.
words = st.sampled_from(
    ("0::", "9:memory:", ":", "/a", "/..", "/", "cgroup2", "rw,memory", "max", "-1", "0", "9" * 5000, "inactive_file")
) | st.sampled_from(("flags\t:", "\0", "\u0663", " ", "\n", " - ", "1 2 3:4 / /sys/fs/cgroup rw - cgroup2 x rw\n"))
garbage = st.binary() | st.lists(words, max_size=12).map(lambda parts: "".join(parts).encode())
FILES = ("memory.max", "memory.current", "memory.stat", "cpu.max", "cpu.cfs_quota_us", "cpu.cfs_period_us")


def check_readers(root: Path) -> None:
    memory = read_memory(root)
    assert memory.total_bytes is None or memory.total_bytes >= 0
    assert memory.free_bytes is None or memory.free_bytes >= 0
    assert (read_cpu_count(root) or 0) >= 1
    assert read_cpu_flags(root) == tuple(sorted(read_cpu_flags(root)))


@given(garbage, garbage, garbage)
@example(b"0::/a\0b\n", b"30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", b"")
@example(b"0::/\n", b"30 23 0:26 / /\0 rw - cgroup2 cgroup2 rw\n", b"")
@example(b"0::/\n", b"30 - cgroup2 cgroup2 rw\n", b"")
@example(b"0::/\n", b"30 23 0:26 / /sys/fs/cgroup rw - \n", b"")
def test_garbage_in_proc_stops_no_reader(cgroup: bytes, mountinfo: bytes, cpuinfo: bytes) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "proc/self").mkdir(parents=True)
        (root / "proc/self/cgroup").write_bytes(cgroup)
        (root / "proc/self/mountinfo").write_bytes(mountinfo)
        (root / "proc/cpuinfo").write_bytes(cpuinfo)
        check_readers(root)


def test_garbage_in_a_group_stops_no_reader(tmp_path: Path) -> None:
    root = grow(tmp_path, Layout(HYBRID.membership, HYBRID.mounts, ()), own="/a", groups={})
    groups = [root / "sys/fs/cgroup" / place / "a" for place in ("memory", "cpu,cpuacct", "unified")]
    for group in groups:
        group.mkdir(parents=True)

    @given(st.lists(garbage, min_size=len(FILES), max_size=len(FILES)))
    def check(contents: list[bytes]) -> None:
        for group in groups:
            for name, content in zip(FILES, contents, strict=True):
                (group / name).write_bytes(content)
        check_readers(root)

    check()


def test_folders_in_the_place_of_files_stop_no_reader(tmp_path: Path) -> None:
    for name in ("proc/self/cgroup", "proc/self/mountinfo", "proc/cpuinfo"):
        (tmp_path / name).mkdir(parents=True)
    check_readers(tmp_path)
