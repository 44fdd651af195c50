"""Fixtures for tests of more than one folder, and what bounds every test.

tests/fakes/postgres_server.py says how the fixtures of PostgreSQL are used, tests/programs.py which tests need more
programs. Property tests try the same examples each time, so that only a change of the code turns them red; `make test
ARGS=--hypothesis-profile=explore` tries new ones and prints how to repeat one that fails.
"""

import faulthandler
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import pytest
import trio
from hypothesis import HealthCheck, settings

from gateway.bridge import open_bridge
from gateway.registry.postgres.pool import open_postgres_pool
from gateway.registry.postgres.schema import migrate
from tests.amounts import examples_to_run
from tests.fakes.postgres_server import PostgresServer, open_postgres_server
from tests.order import pytest_collection_modifyitems
from tests.process_logs import pytest_runtest_makereport
from tests.programs import need_marked_programs, pytest_terminal_summary

__all__ = ["pytest_collection_modifyitems", "pytest_runtest_makereport", "pytest_terminal_summary"]

TEST_SECONDS_MAX: Final = float(os.environ.get("TEST_SECONDS_MAX", "900"))
"""Of one test, of what prepares it, and of what follows it: far above what any takes beside a busy neighbour."""

# No test talks to a server of the internet. To load the authorities that vouch for those takes 50 ms of processor time,
# for each HTTP client that a test or one of its processes makes; to load this one, whose key nobody has, takes none.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("fakes") / "authority.pem")

# A busy machine makes everything slow; what an earlier run has found belongs into the code as an example.
settings.register_profile(
    "explore",
    max_examples=examples_to_run(100),
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("same", settings.get_profile("explore"), derandomize=True)
settings.load_profile("same")


class Hangs(Exception):
    """A test did not end."""


@contextmanager
def _bounded(item: pytest.Item, doing: str) -> Iterator[None]:
    """Interrupts the main thread as Ctrl-C does, which Trio takes to its main task, and tells on stderr where each
    thread is."""
    if threading.current_thread() is not threading.main_thread() or item.get_closest_marker("slow"):
        yield
        return
    rung: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        rung.append(number)
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        handler = signal.getsignal(signal.SIGINT)
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, TEST_SECONDS_MAX)
    try:
        yield
    except BaseException as error:
        if rung:
            raise Hangs(f"{item.nodeid}: {doing} took more than {TEST_SECONDS_MAX:g} s") from error
        raise
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item: pytest.Item) -> Iterator[None]:
    need_marked_programs(item)
    with _bounded(item, "what prepares it"):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    with _bounded(item, "the test"):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    with _bounded(item, "what follows it"):
        yield


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


@pytest.fixture(scope="session")
def _shared(_postgres: PostgresServer, _migrated: str) -> Iterator[str]:
    """Url of a database that many tests use, one after the other."""
    with _postgres.open_database(_migrated) as url:
        yield url


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


@pytest.fixture
def emptied_postgres_url(postgres_server: PostgresServer, _shared: str) -> str:
    """A database that has a registry's tables, for a test that changes nothing but their rows."""
    postgres_server.empty(_shared)
    return _shared
