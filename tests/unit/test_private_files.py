"""What is kept on disk and may hold a secret is its owner's alone, whatever the umask and whoever made it."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.data_dir import keep_cluster_secret, keep_node_id, prepare_data_dir
from gateway.domain.ids import BootId, NodeId
from gateway.private_files import make_private, narrow, try_lock, write_private, write_whole
from gateway.registry.embedded.sqlite_file import SqliteFile
from gateway.worker.identity import Identity, holding_folder, keep_identity, read_identity

IDENTITY = Identity(NodeId("n"), BootId("b"), "credential")


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """The worst one: nothing is taken away from what a program asks for."""
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


def opened(path: Path) -> SqliteFile:
    """With something written, so that all its files are there."""
    file = SqliteFile.open(path)
    with file.transaction() as transaction:
        transaction.write("CREATE TABLE some (value)", [{}])
    return file


def test_every_file_of_a_registry_is_private_wherever_it_lies(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    file = opened(folder / "r.db")
    assert modes(folder) == dict.fromkeys(("r.db", "r.db-wal", "r.db-shm", "r.db.lock"), 0o600)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    file.close()


def test_a_registry_that_is_open_to_others_is_narrowed_and_the_log_says_so(tmp_path: Path) -> None:
    opened(tmp_path / "r.db").close()
    for name in ("r.db", "r.db-wal", "r.db-shm", "r.db.lock"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o664)
    with capture_logs() as logs:
        file = SqliteFile.open(tmp_path / "r.db")
    assert set(modes(tmp_path).values()) == {0o600}
    narrowed = {(Path(entry["path"]).name, entry["mode"]) for entry in logs if entry["event"] == "file.narrowed"}
    assert narrowed == {(name, "0664") for name in ("r.db", "r.db-wal", "r.db-shm", "r.db.lock")}
    file.close()


def test_the_folder_of_a_registry_is_left_as_it_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    opened(tmp_path / "r.db").close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_secrets_are_made_private_and_narrowed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    prepare_data_dir(data)
    secret, node_id = keep_cluster_secret(data), keep_node_id(data)
    assert stat.S_IMODE(data.stat().st_mode) == 0o700
    assert modes(data) == {"cluster_secret": 0o600, "node_id": 0o600}
    for name in modes(data):
        (data / name).chmod(0o644)
    assert (keep_cluster_secret(data), keep_node_id(data)) == (secret, node_id)
    assert modes(data) == {"cluster_secret": 0o600, "node_id": 0o600}


def test_a_workers_credential_is_private_and_narrowed(tmp_path: Path) -> None:
    (tmp_path / f".node.json-{os.getpid()}").touch(0o644)  # of a predecessor that was killed amid its work
    keep_identity(tmp_path, IDENTITY)
    assert modes(tmp_path)["node.json"] == 0o600
    (tmp_path / "node.json").chmod(0o640)
    assert read_identity(tmp_path) == IDENTITY
    assert modes(tmp_path)["node.json"] == 0o600
    with holding_folder(tmp_path):
        assert modes(tmp_path)["worker.lock"] == 0o600


def test_a_file_that_is_read_only_for_its_owner_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "a"
    make_private(path)
    path.chmod(0o444)
    narrow(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    narrow(tmp_path / "none")


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_private(tmp_path / "taken", "secret")
    assert modes(tmp_path).keys() == {"taken"}


def test_a_file_stays_as_it_was_if_its_writer_fails_half_way(tmp_path: Path) -> None:
    def write_half(path: Path) -> None:
        path.write_text("ha")
        raise ValueError("no more")

    write_private(tmp_path / "a", "old")
    with pytest.raises(ValueError, match="no more"):
        write_whole(tmp_path / "a", write_half)
    assert (tmp_path / "a").read_text() == "old"
    assert modes(tmp_path) == {"a": 0o600}


def test_a_lock_is_held_by_one_and_free_once_it_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    held = try_lock(path)
    assert held is not None
    assert try_lock(path) is None
    assert modes(tmp_path) == {"lock": 0o600}
    os.close(held)
    again = try_lock(path)
    assert again is not None
    os.close(again)
