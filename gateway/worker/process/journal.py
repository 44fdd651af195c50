"""Records on disk which processes a worker has started, so that its successor can end what was left behind (H13).

A record has the start time of its process. If the process id now belongs to another process, that one is recognised and
spared.
"""

import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import structlog
import trio

from gateway.domain.ids import ReplicaId
from gateway.private_files import write_private
from gateway.worker.process.spawn import kill_group, wait_exit

log = structlog.get_logger(__name__)

LEFTOVER_SECONDS_MAX: Final = 10.0
"""How long a killed leftover may take to disappear before the worker starts without waiting for it."""


@dataclass(frozen=True)
class ProcessRecord:
    """A backend process that the worker has started, as it is kept on disk."""

    pid: int
    started: str | None
    """The mark of the process: see `start_mark`. A process with an unknown mark (None) is never killed."""
    replica_id: ReplicaId
    port: int


class ProcessJournal:
    """The running processes of one worker, in `processes.json` in its folder. Each worker has its own folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "processes.json"
        self._records = {record.pid: record for record in _read(self._path)}

    @contextmanager
    def recording(self, pid: int, replica_id: ReplicaId, port: int) -> Iterator[None]:
        """Keeps a record of the process during this context, which has to last until the process was reaped."""
        self._records[pid] = ProcessRecord(pid, start_mark(pid), replica_id, port)
        self._write()
        try:
            yield
        finally:
            del self._records[pid]
            self._write()

    async def reap_leftovers(self) -> tuple[ProcessRecord, ...]:
        """Kills the groups of recorded processes that still run, deletes all records, and returns what was killed.

        It has to be called once, before any process is started.
        """
        leftovers = tuple(record for record in self._records.values() if _still_runs(record) or _group_remains(record))
        for record in leftovers:
            log.warning("worker.orphan_killed", pid=record.pid, replica_id=record.replica_id, port=record.port)
            kill_group(record.pid, signal.SIGKILL)
        with trio.move_on_after(LEFTOVER_SECONDS_MAX) as scope:
            for record in leftovers:
                await wait_exit(record.pid)
        if scope.cancelled_caught:
            log.error("worker.orphan_kill_failed", pids=[record.pid for record in leftovers if _still_runs(record)])
        self._records.clear()
        self._write()
        return leftovers

    def _write(self) -> None:
        """Replaces the file as a whole. Not forced to the disk: no process survives what loses it (a power cut)."""
        records = [asdict(record) for record in self._records.values()]
        write_private(self._path, json.dumps({"processes": records}, indent=1))


def start_mark(pid: int) -> str | None:
    """Returns what distinguishes a process from a later one with the same id: the machine's boot id and the start in
    clock ticks since the boot. Returns None if there is no such process, for a zombie, and without /proc."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        boot = _boot_id()
    except OSError:
        return None
    # The second field is the program's name in parentheses and may hold anything, also spaces and parentheses.
    state, *following = status.rpartition(")")[2].split()
    return None if state in "ZX" else f"{boot}/{following[18]}"


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _still_runs(record: ProcessRecord) -> bool:
    return record.started is not None and start_mark(record.pid) == record.started


def _group_remains(record: ProcessRecord) -> bool:
    """Returns whether processes that a start script has left behind still run. The kernel ended the script with the
    worker, but not its children. The id of an existing group is never given to another one, so a group without a leader
    is the recorded one."""
    try:
        if record.started is None or not record.started.startswith(_boot_id()) or start_mark(record.pid) is not None:
            return False
        os.killpg(record.pid, 0)
    except OSError:
        return False
    return True


def _read(path: Path) -> list[ProcessRecord]:
    try:
        return [ProcessRecord(**record) for record in json.loads(path.read_text())["processes"]]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("worker.journal_unreadable", path=str(path), error=str(error))
        return []
