"""The identity of this worker, kept over restarts: the node id that it was given, and the proof for it."""

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
    """Another worker uses the folder. The message says what to change."""


@dataclass(frozen=True)
class Identity:
    """The node id that a worker keeps over restarts, with the credential that proves it."""

    node_id: NodeId
    boot_id: BootId
    """The boot id of the agent that registered last."""
    credential: str = field(repr=False)
    """The credential that this agent was given. Showing it proves that the worker is the same node."""


def read_identity(folder: Path) -> Identity | None:
    """Returns the identity, or None if this worker has never joined or the file cannot be read. The worker then joins
    as a new node."""
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
    """Writes the identity as a whole. Only its owner may read the file."""
    write_private(folder / IDENTITY_FILE, json.dumps(asdict(identity)) + "\n")


@contextmanager
def holding_folder(folder: Path) -> Iterator[None]:
    """Holds the folder for one gateway or worker. A second one would take the processes of the first for leftovers.

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
