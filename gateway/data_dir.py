"""What one gateway keeps in its data folder beside the registry: the cluster secret and the embedded node's id."""

import os
import secrets
from pathlib import Path
from typing import Final

from gateway.domain.ids import NodeId, new_id
from gateway.private_files import narrow, write_private

SECRET_FILE: Final = "cluster_secret"  # noqa: S105 - the name of a file
NODE_ID_FILE: Final = "node_id"


class StartupError(Exception):
    """The gateway can't start; the message says why and what to change."""


def prepare_data_dir(folder: Path) -> None:
    """Makes the folder, for this user only. Raises `StartupError` when nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        probe = folder / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise StartupError(
            f"the data folder {folder} can't be written ({error.strerror}); set server.data_dir to one that can"
        ) from error


def keep_cluster_secret(folder: Path) -> bytes:
    """The secret that replica tokens are derived from: made at first start, kept afterwards."""
    return _keep(folder / SECRET_FILE, secrets.token_hex(32)).encode()


def keep_node_id(folder: Path) -> NodeId:
    """The embedded worker's node keeps its id over restarts."""
    return NodeId(_keep(folder / NODE_ID_FILE, new_id()))


def _keep(path: Path, fresh: str) -> str:
    """The file's content; the file is written with `fresh` if there is none. Readable by its owner only, whole or not
    there at all."""
    narrow(path)
    try:
        if kept := path.read_text("utf-8").strip():
            return kept
    except FileNotFoundError:
        pass
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{path} can't be read ({error}); remove it to have a new one made") from error
    write_private(path, fresh + "\n")
    return fresh
