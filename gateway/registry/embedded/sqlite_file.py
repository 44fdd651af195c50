"""Holds the file of an embedded registry: its URL, lock, schema, transactions, and errors that name the remedy.

Theory of operation. A gateway owns its file from open to close through `flock` on `FILE.lock`. The kernel releases the
lock when the process ends, however it ends, so there is nothing to repair and nothing to wait for. The lock file stays,
because removing it would let two processes lock two files of one name. Write-ahead logging with synchronous = NORMAL
passes each commit to the operating system before it returns. A commit survives kill -9 of the process. The file stays
consistent through a power loss, which may cost the last moments before it. Only the owner of the file may read it,
because signed URLs are in it.
"""

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Final

from gateway.private_files import make_private, narrow, try_lock
from gateway.registry.protocol import RegistryError, RegistryLocked, WritesRefused
from gateway.registry.rows import SqlValue

URL_PREFIX: Final = "sqlite:///"
APPLICATION_ID: Final = int.from_bytes(b"gtwy", "big")
"""The mark in the file's header (PRAGMA application_id) that tells our files from those of other programs."""
_BESIDE: Final = ("-wal", "-shm", "-journal", ".lock")
BUSY_SECONDS: Final = 5.0
"""How long a statement waits for a user who reads the file with another program."""


def database_path(url: str) -> Path:
    """Returns the path of a URL: `sqlite:///data/x.db` is relative to the working folder, `sqlite:////var/x.db` is
    absolute (as in SQLAlchemy).

    The path is everything after the third slash, verbatim. Raises `RegistryError` if there is none.
    """
    name = url.removeprefix(URL_PREFIX)
    if not url.startswith(URL_PREFIX) or name in ("", ":memory:"):
        raise RegistryError(
            f"registry.url {url!r} names no file: write sqlite:///data/registry.db (relative) or "
            "sqlite:////var/lib/gateway/registry.db (absolute); memory: keeps nothing"
        )
    return Path(name).resolve()


def migrations() -> tuple[str, ...]:
    """Returns the SQL of each schema version, in order."""
    folder = resources.files("gateway.registry") / "migrations" / "sqlite"
    scripts = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return tuple(script.read_text(encoding="utf-8") for script in scripts)


class SqliteTransaction:
    """The operations between BEGIN and COMMIT. It counts its statements."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.statements = 0

    def rows(self, sql: str, *parameters: SqlValue) -> list[sqlite3.Row]:
        """Executes one statement and returns all its rows; an empty list if it returns none."""
        self.statements += 1
        return self._connection.execute(sql, parameters).fetchall()

    def write(self, sql: str, rows: Sequence[Mapping[str, SqlValue]]) -> None:
        """Executes `sql` once for each row."""
        self.statements += len(rows)
        if rows:
            self._connection.executemany(sql, rows)


class SqliteFile:
    """An open, locked, migrated registry file. It may be used on any thread, but on one at a time."""

    def __init__(self, path: Path, lock: int, connection: sqlite3.Connection) -> None:
        self.path = path
        self._lock = lock
        self._connection = connection

    @classmethod
    def open(cls, path: Path) -> "SqliteFile":
        """Opens, locks and migrates the file. Raises `RegistryLocked` if another gateway has it, `RegistryError` if it
        cannot be used."""
        lock = _lock(path)
        try:
            _keep_private(path)
            with _named_by_link(path):
                return cls(path, lock, _connect(path))
        except BaseException:
            os.close(lock)
            raise

    def close(self) -> None:
        """Closes the database and releases the lock on its file. Raises `RegistryError` if SQLite can't close it."""
        try:
            with _named_by_link(self.path):
                self._connection.close()
        finally:
            os.close(self._lock)

    @contextmanager
    def transaction(self, mode: str = "IMMEDIATE") -> Iterator[SqliteTransaction]:
        """Runs a transaction, all or nothing: an exception inside rolls it back. Raises `RegistryError` for what SQLite
        cannot do, and `WritesRefused` if that is a write."""
        with _named_by_link(self.path, writes=mode != "DEFERRED"):
            self._connection.execute(f"BEGIN {mode}")
            try:
                yield SqliteTransaction(self._connection)
                self._connection.execute("COMMIT")
            except BaseException:
                # Some errors, such as a full disk, have rolled back already.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise


def _lock(path: Path) -> int:
    """Locks the file and returns the descriptor that holds the lock. Closing it releases the lock. The processes that
    this one starts do not inherit it."""
    lock_path = path.with_name(f"{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = try_lock(lock_path)
        if lock is None:
            raise RegistryLocked(
                f"registry {path} is in use by another gateway process (pid {_holder(lock_path)}); "
                "one embedded registry serves one gateway; use a PostgreSQL registry for several"
            )
    except OSError as error:
        raise _unusable_folder(path, error) from error
    try:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    except OSError as error:
        os.close(lock)
        raise _unusable_folder(path, error) from error
    return lock


def _holder(lock_path: Path) -> str:
    return lock_path.read_text(errors="replace") or "unknown"


def _keep_private(path: Path) -> None:
    """Makes the file private, wherever it lies. SQLite gives the files that it creates beside its database the mode of
    the database, which therefore has to exist first. A file of an older gateway may be open to others."""
    with suppress(OSError):  # SQLite's own message is better.
        make_private(path)
    for suffix in _BESIDE:
        narrow(path.with_name(path.name + suffix))


def _unusable_folder(path: Path, error: OSError) -> RegistryError:
    return RegistryError(
        f"registry {path} can't be opened: {error.strerror or error}; "
        "set registry.url to a file in a local folder that this user may write"
    )


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.row_factory = sqlite3.Row
        _refuse_unknown_file(path, connection)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        _migrate(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_unknown_file(path: Path, connection: sqlite3.Connection) -> None:
    """Raises `RegistryError` unless the file is whole, is a registry, and has a known schema. It comes before any
    write."""
    (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise _damaged(path, answer)
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    if tables and application_id != APPLICATION_ID:
        raise RegistryError(f"registry {path} is another program's database; set registry.url to another file")
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if schema > (known := len(migrations())):
        raise RegistryError(
            f"registry {path} was written by a newer gateway (schema {schema}, this one knows {known}); "
            "run that version, or set registry.url to another file"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Applies the missing migrations. Each migration and its mark are one transaction, so a process that is killed in
    between has done both or neither."""
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    for number, script in enumerate(migrations()[schema:], start=schema + 1):
        marks = f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {number};"
        connection.executescript(f"BEGIN IMMEDIATE; {script} {marks} COMMIT;")


@contextmanager
def _named_by_link(path: Path, *, writes: bool = False) -> Iterator[None]:
    """Translates SQLite's errors to `RegistryError`, with the file and, if there is one, the remedy. `writes` says that
    an error means a refused write."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explained(path, error, writes=writes) from error
    except (OverflowError, UnicodeError) as error:
        raise RegistryError(f"registry {path} can't store a value: {error}") from error


def _explained(path: Path, error: sqlite3.Error, *, writes: bool) -> RegistryError:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:  # The upper bits say where the error happened.
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return _damaged(path, str(error))
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            remedy = "; the file and its folder must be writable by this user"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            remedy = "; close the program that has it open"
        case sqlite3.SQLITE_FULL:
            remedy = "; free some disk space"
        case sqlite3.SQLITE_IOERR:
            remedy = "; see whether its disk works and has space"
        case _:
            remedy = ""
    message = f"registry {path} can't be used: {error}{remedy}"
    return WritesRefused(message, f"{error}{remedy}") if writes else RegistryError(message)


def _damaged(path: Path, what: str) -> RegistryError:
    return RegistryError(
        f"registry {path} is damaged ({what}); restore a backup, or move {path.name}, {path.name}-wal and "
        f"{path.name}-shm away and start with an empty registry"
    )
