"""Each contract test runs once on each registry store."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from gateway.bridge import open_bridge
from gateway.registry.embedded.memory import open_memory_registry
from gateway.registry.embedded.sqlite import open_sqlite_registry
from gateway.registry.postgres.registry import open_postgres_registry
from gateway.registry.store import Store
from tests.contract.samples import SettableClock


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgres":
        return str(request.getfixturevalue("emptied_postgres_url"))
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/registry.db"


@pytest.fixture
async def registry(store_url: str, clock: SettableClock) -> AsyncIterator[Store]:
    async with AsyncExitStack() as opened:
        if store_url == "memory:":
            yield await opened.enter_async_context(open_memory_registry(clock=clock))
        elif store_url.startswith("sqlite:"):
            yield await opened.enter_async_context(open_sqlite_registry(store_url, clock=clock))
        else:
            bridge = await opened.enter_async_context(open_bridge())
            yield await opened.enter_async_context(open_postgres_registry(bridge, store_url, clock=clock))
