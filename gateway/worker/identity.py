"""Who this worker is to its gateways, kept over restarts: the node id it was given, and the proof that it was."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

import structlog

from gateway.domain.ids import BootId, NodeId
from gateway.private_files import narrow, try_lock, write_private

log = structlog.get_logger(__name__)

IDENTITY_FILE: Final = "node.json"
LOCK_FILE: Final = "worker.lock"


class FolderInUse(Exception):
    """Another worker runs in the folder; the message says what to change."""


@dataclass(frozen=True)
class Identity:
    """The node id that a worker keeps over restarts, with the credential that proves it."""

    node_id: NodeId
    boot_id: BootId
    """Of the agent that registered last."""
    credential: str = field(repr=False)
    """What that agent was given: to show it is to be the same node."""


def read_identity(folder: Path) -> Identity | None:
    """None: this worker has never joined, or what it has kept is not readable; it then joins as a new node."""
    path = folder / IDENTITY_FILE
    narrow(path)
    try:
        kept = json.loads(path.read_text("utf-8"))
        return Identity(NodeId(kept["node_id"]), BootId(kept["boot_id"]), str(kept["credential"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("worker.identity_unreadable", path=str(path), error=str(error))
        return None


def keep_identity(folder: Path, identity: Identity) -> None:
    """Readable by its owner only, whole or not there at all."""
    write_private(folder / IDENTITY_FILE, json.dumps(asdict(identity)) + "\n")


@contextmanager
def holding_folder(folder: Path) -> Iterator[None]:
    """One gateway or worker per folder: a second one would take the first one's processes for leftovers.

    Raises `FolderInUse`."""
    lock = try_lock(folder / LOCK_FILE)
    if lock is None:
        raise FolderInUse(
            f"another gateway or worker runs in {folder}; "
            "give each its own server.data_dir, or start them in different folders"
        )
    try:
        yield
    finally:
        os.close(lock)
