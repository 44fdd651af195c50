"""What a worker remembers of its processes; those in these tests are real, as only real ones have a start time."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import trio

from gateway.domain.ids import ReplicaId
from gateway.worker.process.journal import ProcessJournal, ProcessRecord, start_mark
from gateway.worker.process.spawn import wait_exit


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        yield process
        process.kill()


def remember(folder: Path, record: ProcessRecord) -> None:
    (folder / "processes.json").write_text(json.dumps({"processes": [asdict(record)]}))


def recorded(folder: Path) -> list[dict[str, object]]:
    records: list[dict[str, object]] = json.loads((folder / "processes.json").read_text())["processes"]
    return records


def test_a_process_is_recorded_from_spawn_to_reaping(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    records = ProcessJournal(tmp_path)
    with records.recording(sleeper.pid, ReplicaId("a"), 20100):
        assert recorded(tmp_path) == [
            {"pid": sleeper.pid, "started": start_mark(sleeper.pid), "replica_id": "a", "port": 20100}
        ]
    assert recorded(tmp_path) == []
    assert [path.name for path in tmp_path.iterdir()] == ["processes.json"]


async def test_h13_a_leftover_is_killed_and_forgotten(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    remember(tmp_path, ProcessRecord(sleeper.pid, start_mark(sleeper.pid), ReplicaId("a"), 20100))
    reaped = await ProcessJournal(tmp_path).reap_leftovers()
    assert [record.replica_id for record in reaped] == ["a"]
    assert sleeper.poll() == -9
    assert recorded(tmp_path) == []


@pytest.fixture
def start_script() -> Iterator[subprocess.Popen[bytes]]:
    """Leads a group, has started a sleeper and printed its pid."""
    script = "sleep 600 & echo $!; wait"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True, stdout=subprocess.PIPE) as leader:
        yield leader
        leader.kill()


async def test_h13_what_a_killed_start_script_has_left_behind_is_killed_too(
    tmp_path: Path, start_script: subprocess.Popen[bytes]
) -> None:
    """The kernel ends the recorded leader together with its worker, and not what the leader had started."""
    assert start_script.stdout is not None
    child = int(start_script.stdout.readline())
    remember(tmp_path, ProcessRecord(start_script.pid, start_mark(start_script.pid), ReplicaId("a"), 20100))
    start_script.kill()
    start_script.wait()
    assert start_mark(child) is not None
    assert [record.replica_id for record in await ProcessJournal(tmp_path).reap_leftovers()] == ["a"]
    with trio.fail_after(5):
        await wait_exit(child)


@pytest.mark.parametrize("mark", ["another-boot/123", None])
async def test_h13_a_recycled_number_is_spared(
    tmp_path: Path, sleeper: subprocess.Popen[bytes], mark: str | None
) -> None:
    remember(tmp_path, ProcessRecord(sleeper.pid, mark, ReplicaId("a"), 20100))
    assert await ProcessJournal(tmp_path).reap_leftovers() == ()
    assert sleeper.poll() is None
    assert recorded(tmp_path) == []


async def test_a_leftover_that_has_ended_is_forgotten(tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    mark = start_mark(sleeper.pid)
    sleeper.kill()
    sleeper.wait()
    remember(tmp_path, ProcessRecord(sleeper.pid, mark, ReplicaId("a"), 20100))
    assert await ProcessJournal(tmp_path).reap_leftovers() == ()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"processes": [{"pid": 1}]}'])
async def test_an_unreadable_file_is_no_reason_not_to_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "processes.json").write_text(text)
    assert await ProcessJournal(tmp_path).reap_leftovers() == ()
    assert recorded(tmp_path) == []
