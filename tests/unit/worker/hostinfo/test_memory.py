"""The memory that a worker may use, read from recorded trees of control groups."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from gateway.worker.hostinfo.memory import MachineMemory, read_memory
from gateway.worker.hostinfo.readings import Amounts
from tests.fakes.kernel_tree import HYBRID, V1, V2, grow

MIB: Final = 2**20
GIB: Final = 2**30
V1_NO_LIMIT: Final = 9223372036854771712


@dataclass(frozen=True)
class Machine:
    total: int = 64 * GIB
    available: int = 48 * GIB


def machine() -> MachineMemory:
    return Machine()


def broken() -> MachineMemory:
    raise KeyError(b"MemTotal:")


def amounts(root: Path) -> tuple[float | None, float | None]:
    """In GiB."""
    read = read_memory(root, machine)
    assert read.total_bytes is not None
    assert read.free_bytes is not None
    return read.total_bytes / GIB, read.free_bytes / GIB


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert amounts(tmp_path) == (64, 48)


def test_what_is_free_is_rounded_down(tmp_path: Path) -> None:
    read = read_memory(tmp_path, lambda: Machine(available=3 * 64 * MIB - 1))
    assert read == Amounts(64 * GIB, 2 * 64 * MIB)


def test_v2_the_limit_of_our_group_less_what_it_uses(tmp_path: Path) -> None:
    group = {"memory.max": 8 * GIB, "memory.current": 5 * GIB, "memory.stat": f"anon 3\ninactive_file {2 * GIB}\n"}
    root = grow(tmp_path, V2, own="/system.slice/gateway.service", groups={"/system.slice/gateway.service": group})
    assert amounts(root) == (8, 5)


def test_v2_no_limit_is_the_machine(tmp_path: Path) -> None:
    group = {"memory.max": "max", "memory.high": "max", "memory.current": 5 * GIB}
    assert amounts(grow(tmp_path, V2, own="/a", groups={"/a": group})) == (64, 48)


def test_v2_a_group_that_would_be_throttled_has_no_room_either(tmp_path: Path) -> None:
    group = {"memory.max": 8 * GIB, "memory.high": 6 * GIB, "memory.current": GIB}
    assert amounts(grow(tmp_path, V2, own="/a", groups={"/a": group})) == (6, 5)


def test_nested_limits_all_hold(tmp_path: Path) -> None:
    """The least limit is one group's, the least room another's: our siblings have filled that one."""
    groups: dict[str, dict[str, object]] = {
        "/pod": {"memory.max": 16 * GIB, "memory.current": 15 * GIB},
        "/pod/box": {"memory.max": "max", "memory.current": 3 * GIB},
        "/pod/box/us": {"memory.max": 4 * GIB, "memory.current": 2 * GIB},
    }
    assert amounts(grow(tmp_path, V2, own="/pod/box/us", groups=groups)) == (4, 1)


def test_a_group_beyond_its_limit_has_nothing_free(tmp_path: Path) -> None:
    group = {"memory.max": GIB, "memory.current": 2 * GIB}
    assert amounts(grow(tmp_path, V2, own="/a", groups={"/a": group})) == (1, 0)


def test_groups_of_others_do_not_count(tmp_path: Path) -> None:
    groups: dict[str, dict[str, object]] = {"/a": {}, "/b": {"memory.max": GIB}, "/a/below": {"memory.max": GIB}}
    assert amounts(grow(tmp_path, V2, own="/a", groups=groups)) == (64, 48)


def test_v2_in_a_container_we_are_the_root(tmp_path: Path) -> None:
    group = {"memory.max": 2 * GIB, "memory.current": GIB}
    assert amounts(grow(tmp_path, V2, own="/", groups={"/": group})) == (2, 1)


def test_v1_in_a_container_that_sees_the_hosts_names(tmp_path: Path) -> None:
    """The mount shows the container's group only, and calls it by the name that /proc uses."""
    group = {"memory.limit_in_bytes": 2 * GIB, "memory.usage_in_bytes": GIB}
    assert amounts(grow(tmp_path, V1, own="/docker/abc", top="/docker/abc", groups={"/": group})) == (2, 1)


def test_v1_a_group_within_a_container_that_sees_the_hosts_names(tmp_path: Path) -> None:
    groups = {"/": {"memory.limit_in_bytes": 4 * GIB}, "/us": {"memory.limit_in_bytes": 2 * GIB}}
    assert amounts(grow(tmp_path, V1, own="/docker/abc/us", top="/docker/abc", groups=groups)) == (2, 2)


def test_a_mount_made_outside_of_our_name_space_shows_a_group_above_us(tmp_path: Path) -> None:
    assert amounts(grow(tmp_path, V2, own="/", top="/../..", groups={"/": {"memory.max": 2 * GIB}})) == (2, 2)


def test_a_mount_of_another_group_tells_nothing(tmp_path: Path) -> None:
    assert amounts(grow(tmp_path, V2, own="/a", top="/b", groups={"/": {"memory.max": GIB}})) == (64, 48)


def test_a_group_outside_of_our_name_space_is_not_looked_for_among_other_files(tmp_path: Path) -> None:
    (tmp_path / "sys/fs/a").mkdir(parents=True)
    (tmp_path / "sys/fs/a/memory.max").write_text(str(GIB))
    assert amounts(grow(tmp_path, V2, own="/../a", groups={"/": {"memory.max": GIB}})) == (64, 48)


def test_a_disk_of_an_undecodable_name_does_not_hide_a_limit(tmp_path: Path) -> None:
    root = grow(tmp_path, V2, own="/a", groups={"/a": {"memory.max": 2 * GIB}})
    with (root / "proc/self/mountinfo").open("ab") as file:
        file.write(b"50 23 8:1 / /media/caf\xe9 rw,relatime - vfat /dev/sda1 rw\n")
    assert amounts(root) == (2, 2)


def test_v1_the_cache_counts_with_the_groups_below(tmp_path: Path) -> None:
    group = {
        "memory.limit_in_bytes": 8 * GIB,
        "memory.usage_in_bytes": 6 * GIB,
        "memory.stat": f"inactive_file 0\ntotal_inactive_file {3 * GIB}\n",
    }
    assert amounts(grow(tmp_path, V1, own="/a", groups={"/a": group})) == (8, 5)


def test_v1_no_limit_is_a_very_large_one(tmp_path: Path) -> None:
    group = {"memory.limit_in_bytes": V1_NO_LIMIT, "memory.usage_in_bytes": 60 * GIB}
    root = grow(tmp_path, V1, own="/a", groups={"/a": group})
    assert amounts(root) == (64, 48)
    assert read_memory(root, broken) == Amounts(None, None)


def test_where_both_versions_are_mounted_v1_has_the_memory(tmp_path: Path) -> None:
    group = {"memory.limit_in_bytes": 8 * GIB, "memory.usage_in_bytes": GIB}
    assert amounts(grow(tmp_path, HYBRID, own="/a", groups={"/a": group})) == (8, 7)


def test_a_limit_above_what_the_machine_has_is_none(tmp_path: Path) -> None:
    group = {"memory.max": 1024 * GIB, "memory.current": 60 * GIB}
    assert amounts(grow(tmp_path, V2, own="/a", groups={"/a": group})) == (64, 48)


def test_a_machine_that_does_not_tell_leaves_the_groups_limit(tmp_path: Path) -> None:
    assert read_memory(tmp_path, broken) == Amounts(None, None)
    group = {"memory.max": 8 * GIB, "memory.current": GIB}
    assert read_memory(grow(tmp_path, V2, own="/a", groups={"/a": group}), broken) == Amounts(8 * GIB, 7 * GIB)


@pytest.mark.parametrize("usage", ["", "many"])
def test_unknown_usage_leaves_what_the_limit_allows(tmp_path: Path, usage: str) -> None:
    group = {"memory.max": 8 * GIB, "memory.current": usage}
    assert amounts(grow(tmp_path, V2, own="/a", groups={"/a": group})) == (8, 8)
