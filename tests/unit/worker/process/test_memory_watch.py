"""Memory of real process groups: only real ones share pages."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from gateway.worker.process.memory_watch import describe_excess, group_memory_bytes

KIB: Final = 2**10
MIB: Final = 2**20
GIB: Final = 2**30
MEMBERS: Final = 3
SLACK_BYTES: Final = 24 * MIB
"""By how much processes without any load may differ."""
MEMBER: Final = """
import mmap, subprocess, sys
program, members, held_bytes, weights = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
held = b"x" * held_bytes
if weights:
    with open(weights, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    touched = sum(mapped[::4096])
if members > 1:
    subprocess.Popen([sys.executable, "-c", program, program, str(members - 1), str(held_bytes), weights])
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def group(held_bytes: int = 0, weights: Path | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Its leader. Each member holds memory of its own, and all map the same file."""
    command = [sys.executable, "-c", MEMBER, MEMBER, str(MEMBERS), str(held_bytes), str(weights or "")]
    with subprocess.Popen(
        command, start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as leader:  # the end of the pipe ends all members
        assert leader.stdout is not None
        assert [leader.stdout.readline() for _ in range(MEMBERS)] == [b"ready\n"] * MEMBERS
        yield leader


def used_by(held_bytes: int = 0, weights: Path | None = None) -> int:
    with group(held_bytes, weights) as leader:
        used = group_memory_bytes(leader.pid)
        assert used is not None
        return used


def test_what_each_process_has_for_itself_is_added_up() -> None:
    added = used_by(64 * MIB) - used_by()
    assert abs(added - MEMBERS * 64 * MIB) < SLACK_BYTES


def test_weights_that_all_processes_of_a_group_map_count_once(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"w" * (96 * MIB))
    added = used_by(weights=weights) - used_by()
    assert abs(added - 96 * MIB) < SLACK_BYTES


def test_what_a_leader_has_left_behind_counts_and_nothing_else_does() -> None:
    with group(64 * MIB) as leader, group(64 * MIB):
        leader.kill()
        leader.wait()
        used = group_memory_bytes(leader.pid)
    assert used is not None
    assert (MEMBERS - 1) * 64 * MIB < used < MEMBERS * 64 * MIB


def test_a_group_that_is_gone_has_none() -> None:
    process = subprocess.Popen(["true"], start_new_session=True)
    process.wait()
    assert group_memory_bytes(process.pid) is None


def test_a_zombie_holds_nothing() -> None:
    with subprocess.Popen(["true"], start_new_session=True) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert os.getpgid(process.pid) == process.pid
        assert group_memory_bytes(process.pid) is None


@pytest.mark.parametrize(
    ("used", "limit", "sizes"),
    [
        (5 * GIB + GIB // 5, 4 * GIB, ("5.2 GiB", "4 GiB")),
        (4 * GIB + 1, 4 * GIB, ("4.1 GiB", "4 GiB")),
        (600 * MIB, 512 * MIB, ("600 MiB", "512 MiB")),
        (2 * GIB, 500_000_000, ("2 GiB", "476.8 MiB")),
        (1, 0, ("1 bytes", "0 bytes")),
        (20 * KIB, KIB, ("20 KiB", "1 KiB")),
        (3000 * GIB, 2999 * GIB, ("3000 GiB", "2999 GiB")),
    ],
)
def test_an_excess_is_worded_such_that_more_reads_as_more(used: int, limit: int, sizes: tuple[str, str]) -> None:
    sentence = f"the backend uses {sizes[0]} of memory, more than watchdog.memory_limit, {sizes[1]}"
    assert describe_excess(used, limit) == sentence
