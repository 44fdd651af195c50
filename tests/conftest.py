"""Fixtures for tests of more than one folder."""

from collections.abc import Iterator

import pytest

from tests.fakes.postgres_server import PostgresServer, open_postgres_server


@pytest.fixture(scope="session")
def _postgres() -> Iterator[PostgresServer]:
    with open_postgres_server() as server:
        yield server


@pytest.fixture
def postgres_server(_postgres: PostgresServer) -> Iterator[PostgresServer]:
    """Running; what a test does to it is undone at its end."""
    yield _postgres
    _postgres.resume()
    _postgres.start()


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """An empty database of this test's own."""
    url = postgres_server.create_database()
    yield url
    postgres_server.resume()
    postgres_server.start()
    postgres_server.drop_database(url)
