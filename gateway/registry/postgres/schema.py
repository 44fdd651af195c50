"""Migrates the tables of a PostgreSQL registry to the schema of this gateway while other gateways work with them.

Theory of operation. Migrations are numbered files. Each is one transaction that holds an advisory lock of its own. The
lock ends with the transaction, so it works behind a pooler and nobody has to release it. Gateways that start together
take turns, and the second one finds the work done.

A migration cannot deadlock with a working gateway: every transaction of a gateway touches `state_version` before any
other table, and a migration locks `state_version` exclusively before any other table. So `state_version` is a gate.
Behind it a migration meets nobody, and a gateway that waits at it holds nothing. The waits are short and repeated,
because every later transaction waits behind a waiting migration.

A schema also has a number `oldest`: gateways that know that schema, or a later one, can work with it. So the gateways
of a fleet may be upgraded one by one. A migration that breaks the version before has to be split into two releases.
"""

import re
from dataclasses import dataclass
from functools import cache, partial
from importlib import resources
from typing import Final

from gateway.registry.postgres.pool import Bounds, Mode, PostgresPool, PostgresTransaction
from gateway.registry.protocol import RegistryError

SERVER_VERSION_MIN: Final = 12
LOCK_KEY: Final = int.from_bytes(b"gtwymigr", "big")
METHOD: Final = "migrate"
BOUNDS: Final = Bounds(
    lock_seconds=2.0, statement_seconds=600.0, idle_seconds=10.0, attempt_seconds=660.0, call_seconds=900.0, attempts=30
)
OLDEST_LINE: Final = re.compile(r"-- oldest: (\d+)\n")


@dataclass(frozen=True)
class Migration:
    """A numbered SQL script that brings the tables from the schema before it to its own number."""

    number: int
    oldest: int
    """The number of the migration whose gateways can still work once this one is applied."""
    sql: str


@dataclass(frozen=True)
class Schema:
    """The schema of a database."""

    version: int = 0
    """The number of the newest migration, or 0 if there is none."""
    oldest: int = 0


@cache
def migrations() -> tuple[Migration, ...]:
    """Returns the migrations in order. The first line of each file says which gateways can still work: `-- oldest:
    NUMBER`."""
    folder = resources.files("gateway.registry") / "migrations" / "postgres"
    scripts = sorted((file for file in folder.iterdir() if file.name.endswith(".sql")), key=lambda file: file.name)
    return tuple(_migration(number, script.read_text(encoding="utf-8")) for number, script in enumerate(scripts, 1))


def _migration(number: int, sql: str) -> Migration:
    line = OLDEST_LINE.match(sql)
    assert line is not None  # noqa: S101 - our own files
    return Migration(number, int(line[1]), sql)


async def migrate(pool: PostgresPool) -> tuple[int, ...]:
    """Applies the missing migrations. Returns the numbers of those that this call applied, oldest first.

    Raises `RegistryError` if the server is too old, the tables are too new, or a right is missing.
    """
    found = await pool.transaction(METHOD, Mode.PLAIN, partial(_load_version_aio, server=pool.server))
    missing = migrations()[found.version :]
    done = [await pool.transaction(METHOD, Mode.PLAIN, partial(_apply_aio, each), BOUNDS) for each in missing]
    return tuple(each.number for each, applied in zip(missing, done, strict=True) if applied)


async def check_schema(pool: PostgresPool) -> None:
    """Raises `RegistryError` unless this gateway can work with the tables as they are."""
    found = await pool.transaction(METHOD, Mode.PLAIN, partial(_load_version_aio, server=pool.server))
    if found.version < len(migrations()):
        known = len(migrations())
        raise RegistryError(
            f"{pool.server} has schema {found.version}, this gateway needs {known}: run `gateway migrate`"
        )


async def _load_version_aio(transaction: PostgresTransaction, server: str) -> Schema:
    row = await transaction.row_aio(
        "SELECT current_setting('server_version_num')::int / 10000 AS server, current_schema() AS schema"
    )
    if row["server"] < SERVER_VERSION_MIN:
        raise RegistryError(f"{server} is version {row['server']}; version {SERVER_VERSION_MIN} or newer is needed")
    if row["schema"] is None:
        raise RegistryError(
            f"{server} has no schema for the user of registry.url: grant it USAGE and CREATE on one, and set its "
            "search_path if it is not public"
        )
    found = await _schema_aio(transaction)
    if found.oldest > (known := len(migrations())):
        raise RegistryError(
            f"{server} was migrated by a newer gateway: its schema {found.version} needs gateways that know schema "
            f"{found.oldest}, and this one knows {known}; run a newer version"
        )
    return found


async def _schema_aio(transaction: PostgresTransaction) -> Schema:
    # Asked like this the answer is new; to_regclass may repeat one from before this transaction waited for a lock.
    if not await transaction.rows_aio(
        "SELECT FROM pg_tables WHERE schemaname = current_schema() AND tablename = 'schema_version'"
    ):
        return Schema()
    return Schema(*await transaction.row_aio("SELECT version, oldest FROM schema_version"))


async def _apply_aio(migration: Migration, transaction: PostgresTransaction) -> bool:
    """Applies one migration. Returns False if another gateway has done it meanwhile."""
    await transaction.script_aio(f"SELECT pg_advisory_xact_lock({LOCK_KEY})")
    found = await _schema_aio(transaction)
    if found.version >= migration.number:
        return False
    if found.version:
        await transaction.script_aio("LOCK TABLE state_version IN ACCESS EXCLUSIVE MODE")
    await transaction.script_aio(migration.sql)
    await transaction.rows_aio(
        "UPDATE schema_version SET version = $1, oldest = greatest(oldest, $2)", migration.number, migration.oldest
    )
    return True
