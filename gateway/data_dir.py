"""The files in a gateway's data folder beside the registry: the cluster secret and the embedded node's id."""

import os
import secrets
from pathlib import Path
from typing import Final

from gateway.domain.ids import NodeId, new_id
from gateway.private_files import narrow, write_private

SECRET_FILE: Final = "cluster_secret"  # noqa: S105 - the name of a file
NODE_ID_FILE: Final = "node_id"


class StartupError(Exception):
    """The gateway cannot start. The message says why and what to change."""


def prepare_data_dir(folder: Path) -> None:
    """Makes the folder, for this user only. Raises `StartupError` if nothing can be written there."""
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
    """Returns the secret from which replica tokens derive. It is made at the first start and kept afterwards."""
    return _keep(folder / SECRET_FILE, secrets.token_hex(32)).encode()


def keep_node_id(folder: Path) -> NodeId:
    """Returns the id of the embedded worker's node, which it keeps over restarts."""
    return NodeId(_keep(folder / NODE_ID_FILE, new_id()))


def _keep(path: Path, fresh: str) -> str:
    """Returns the content of the file, and writes `fresh` as a whole if there is none. Only its owner may read the
    file."""
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
