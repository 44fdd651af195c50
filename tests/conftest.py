"""Fixtures for tests of more than one folder. tests/fakes/postgres_server.py says how those of PostgreSQL are used."""

from collections.abc import Iterator

import pytest
import trio

from gateway.bridge import open_bridge
from gateway.registry.postgres_pool import open_postgres_pool
from gateway.registry.postgres_schema import migrate
from tests.fakes.postgres_server import PostgresServer, open_postgres_server


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    with open_postgres_server() as server:
        yield server


@pytest.fixture(scope="session")
def _migrated(_postgres: PostgresServer) -> str:
    """Name of a database to copy."""
    url = _postgres.create_database()
    trio.run(_migrate, url)
    return _postgres.name_of(url)


async def _migrate(url: str) -> None:
    async with open_bridge() as bridge, open_postgres_pool(bridge, url) as pool:
        await migrate(pool)


@pytest.fixture
def postgres_server(_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """Running; what a test does to it is undone at its end."""
    yield _postgres
    _postgres.resume()
    _postgres.start()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of this test's own."""
    with postgres_server.open_database() as url:
        yield url


@pytest.fixture
def migrated_postgres_url(postgres_server: PostgresServer, _migrated: str) -> Iterator[str]:
    """A database of this test's own that has a registry's tables."""
    with postgres_server.open_database(_migrated) as url:
        yield url
