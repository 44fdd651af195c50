"""Each contract test runs once on each registry store."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from gateway.registry.memory import open_memory_registry
from gateway.registry.sqlite import open_sqlite_registry
from gateway.registry.store import Store
from tests.contract.samples import SettableClock


@pytest.fixture
def clock() -> SettableClock:
    return SettableClock()


@pytest.fixture(params=["memory", "sqlite"])
async def registry(request: pytest.FixtureRequest, tmp_path: Path, clock: SettableClock) -> AsyncIterator[Store]:
    async with _opened(request.param, tmp_path, clock) as store:
        yield store


def _opened(kind: str, folder: Path, clock: SettableClock) -> AbstractAsyncContextManager[Store]:
    if kind == "memory":
        return open_memory_registry(clock=clock)
    return open_sqlite_registry(f"sqlite:///{folder}/registry.db", clock=clock)
