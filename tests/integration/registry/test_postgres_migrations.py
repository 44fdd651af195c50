"""Migrations of a PostgreSQL registry: many gateways at once, beside working ones, from older and newer versions."""

import re
from collections.abc import AsyncIterator, Callable

import pytest
import trio

from gateway.bridge import Bridge, open_bridge
from gateway.registry import rows
from gateway.registry.postgres import schema as postgres_schema
from gateway.registry.postgres.pool import open_postgres_pool
from gateway.registry.postgres.registry import PostgresRegistry, open_postgres_registry
from gateway.registry.postgres.schema import Migration, check_schema, migrate, migrations
from gateway.registry.protocol import RegistryError
from tests.contract.samples import spec
from tests.fakes.postgres_server import PostgresServer

PATIENCE_SECONDS = 60.0

ADD_COLUMN = """
    ALTER TABLE events ADD COLUMN IF NOT EXISTS more text;
    SELECT pg_sleep(0.05);
    ALTER TABLE models ADD COLUMN IF NOT EXISTS more text;
"""
"""What a later version may do: without harm to gateways that do not know of it, but in the tables that they use, and in
the opposite order."""


@pytest.fixture
async def bridge() -> AsyncIterator[Bridge]:
    async with open_bridge() as bridge:
        yield bridge


async def migrate_one(bridge: Bridge, url: str, done: list[tuple[int, ...]]) -> None:
    async with open_postgres_pool(bridge, url) as pool:
        done.append(await migrate(pool))


def know(monkeypatch: pytest.MonkeyPatch, *later: Migration) -> None:
    """This gateway is a later version, with more migrations."""
    known = (*migrations(), *later)
    monkeypatch.setattr(postgres_schema, "migrations", lambda: known)


def test_migrations_are_numbered_without_a_gap() -> None:
    assert [each.number for each in migrations()] == list(range(1, len(migrations()) + 1))
    assert all(each.oldest <= each.number for each in migrations())


async def test_of_gateways_that_start_together_one_makes_the_tables(bridge: Bridge, postgres_url: str) -> None:
    done: list[tuple[int, ...]] = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(migrate_one, bridge, postgres_url, done)
    assert sorted(done) == [()] * 7 + [tuple(each.number for each in migrations())]


async def test_the_tables_have_the_columns_that_the_rows_have(
    bridge: Bridge, postgres_server: PostgresServer, postgres_url: str
) -> None:
    await migrate_one(bridge, postgres_url, [])
    for table, columns in (
        ("models", rows.MODEL_COLUMNS),
        ("nodes", rows.NODE_COLUMNS),
        ("replicas", rows.REPLICA_COLUMNS),
    ):
        asked = f"SELECT column_name FROM information_schema.columns WHERE table_name = '{table}'"
        assert sorted(postgres_server.ask(postgres_url, asked)) == sorted(columns)


async def test_a_migration_beside_working_gateways_meets_no_deadlock(
    bridge: Bridge, postgres_server: PostgresServer, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(registry: PostgresRegistry, lane: int) -> None:
        number = 0
        while not done:
            await registry.put_model(spec(f"m{lane}"))
            await registry.remove_model(spec(f"m{lane}").name)
            await registry.read_state()
            number += 1

    done: list[tuple[int, ...]] = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_postgres_registry(bridge, postgres_url) as registry, trio.open_nursery() as nursery:
            for lane in range(4):
                nursery.start_soon(work, registry, lane)
            await registry.wait_newer(10)
            first = len(migrations())
            know(monkeypatch, *(Migration(first + number, 1, ADD_COLUMN) for number in range(1, 11)))
            await migrate_one(bridge, postgres_url, done)
            await registry.read_state()
    assert done == [tuple(range(first + 1, first + 11))]
    assert "deadlock" not in postgres_server.log()


async def test_a_gateway_works_on_with_the_tables_of_a_newer_one_that_allows_it(
    bridge: Bridge, postgres_url: str
) -> None:
    known = len(migrations())
    with pytest.MonkeyPatch.context() as newer:
        know(newer, Migration(known + 1, known, ADD_COLUMN))
        await migrate_one(bridge, postgres_url, [])
    async with open_postgres_registry(bridge, postgres_url) as registry:
        assert await registry.put_model(spec())
        assert len((await registry.read_state()).models) == 1


async def test_a_gateway_refuses_the_tables_of_a_newer_one_that_forbids_it(bridge: Bridge, postgres_url: str) -> None:
    known = len(migrations())
    with pytest.MonkeyPatch.context() as newer:
        know(newer, Migration(known + 1, known + 1, ADD_COLUMN))
        await migrate_one(bridge, postgres_url, [])
    said = f"its schema {known + 1} needs gateways that know schema {known + 1}, and this one knows {known}"
    for apply_migrations in (True, False):
        with pytest.raises(RegistryError, match=said):
            async with open_postgres_registry(bridge, postgres_url, apply_migrations=apply_migrations):
                pass


async def test_a_migration_that_fails_leaves_what_was_there(
    bridge: Bridge, postgres_server: PostgresServer, postgres_url: str
) -> None:
    known = len(migrations())
    with pytest.MonkeyPatch.context() as newer:
        know(newer, Migration(known + 1, known, f"{ADD_COLUMN}; SELECT 1 / 0"))
        with pytest.raises(RegistryError, match="division by zero"):
            await migrate_one(bridge, postgres_url, [])
    assert postgres_server.ask(postgres_url, "SELECT version, oldest FROM schema_version") == [f"{known}|1"]
    added = "SELECT count(*) FROM information_schema.columns WHERE column_name = 'more'"
    assert postgres_server.ask(postgres_url, added) == ["0"]
    async with open_postgres_registry(bridge, postgres_url) as registry:
        assert await registry.put_model(spec())


# What a person is told

Prepare = Callable[[PostgresServer, str], str]
"""Does something to a server with an empty database, and returns the url to open."""


def no_rights(server: PostgresServer, url: str) -> str:
    role = server.make_role(url)
    server.ask(url, "REVOKE ALL ON SCHEMA public FROM PUBLIC")
    server.ask(url, f"REVOKE ALL ON SCHEMA public FROM {role.partition('//')[2].partition('@')[0]}")
    server.ask(url, "ALTER SCHEMA public OWNER TO postgres")
    return role


def may_not_create(server: PostgresServer, url: str) -> str:
    role = no_rights(server, url)
    server.ask(url, "GRANT USAGE ON SCHEMA public TO PUBLIC")
    return role


def no_schema(server: PostgresServer, url: str) -> str:
    return server.make_role(url, search_path="nowhere")


def read_only(server: PostgresServer, url: str) -> str:
    return server.make_role(url, default_transaction_read_only="on")


def no_database(server: PostgresServer, url: str) -> str:
    return server.url("nothing")


def no_user(server: PostgresServer, url: str) -> str:
    return url.replace("postgres@", "nobody:s3cret@")


def no_server(server: PostgresServer, url: str) -> str:
    return url.replace("postgres@", "postgres:s3cret@").replace(f":{server.port}/", ":1/")


def no_port(server: PostgresServer, url: str) -> str:
    return "postgresql://postgres:s3cret@127.0.0.1:s3cret/x"


def no_tls(server: PostgresServer, url: str) -> str:
    return f"{url}?sslmode=require"


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (no_rights, "grant it USAGE and CREATE on one"),
        (may_not_create, "permission denied for schema public; grant the user of registry.url the right"),
        (no_schema, "set its search_path"),
        (read_only, "read-only.*let registry.url name the primary"),
        (no_database, "create that database"),
        (no_user, 'role "nobody" does not exist.*check the user'),
        (no_server, "is it running, and does registry.url name the right host and port"),
        (no_port, "write postgresql://USER:PASSWORD@HOST:PORT/DATABASE"),
        (no_tls, "TLS|SSL"),
    ],
)
async def test_what_keeps_a_registry_from_opening_is_said_with_its_remedy(
    bridge: Bridge, postgres_server: PostgresServer, postgres_url: str, prepare: Prepare, said: str
) -> None:
    url = prepare(postgres_server, postgres_url)
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RegistryError) as refused:
        async with open_postgres_registry(bridge, url):
            pass
    assert re.search(said, str(refused.value)), refused.value
    assert "s3cret" not in str(refused.value)


async def test_tables_that_are_missing_or_old_are_not_touched_when_migration_is_off(
    bridge: Bridge, postgres_server: PostgresServer, postgres_url: str
) -> None:
    with pytest.raises(
        RegistryError, match=f"has schema 0, this gateway needs {len(migrations())}: run `gateway migrate`"
    ):
        async with open_postgres_registry(bridge, postgres_url, apply_migrations=False):
            pass
    assert postgres_server.ask(postgres_url, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == ["0"]
    await migrate_one(bridge, postgres_url, [])
    async with open_postgres_pool(bridge, postgres_url) as pool:
        await check_schema(pool)


async def test_a_server_that_is_too_old_is_refused(
    bridge: Bridge, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_schema, "SERVER_VERSION_MIN", 99)
    with pytest.raises(RegistryError, match=r"is version \d+; version 99 or newer is needed"):
        await migrate_one(bridge, postgres_url, [])
