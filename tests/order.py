"""The order in which the processes of pytest-xdist run the tests: long files come first, short ones fill the rest.

Each process takes the next file when it is done with its last one (`--dist loadfile --no-loadscope-reorder`), so what a
file's tests share is made once, and the processes end together if the last files are short. Without xdist the tests run
in the order of their files.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, groupby, zip_longest
from typing import Final, Protocol, TypeVar

import pytest

WAITING: Final = ("tests/integration/",)
"""Folders whose tests mostly wait for other processes."""
COMPUTING: Final = ("tests/simulation/", "tests/properties/", "tests/contract/", "tests/golden/", "tests/test_")
"""The other folders, those first whose files take longest. `tests/unit` comes last."""
LONGEST: Final = (
    "tests/integration/processes/test_lifetimes.py",
    "tests/integration/peers/test_gateways_faults.py",
    "tests/integration/workers/test_workers.py",
    "tests/integration/workers/test_faults.py",
    "tests/integration/peers/test_gateways.py",
    "tests/integration/backends/test_localai_backend.py",
    "tests/integration/routing/test_backend_death.py",
    "tests/integration/routing/test_faults.py",
    "tests/integration/workers/test_fleet_loads.py",
    "tests/integration/registry/test_postgres_registry.py",
    "tests/integration/workers/test_processes.py",
    "tests/integration/engines/test_gguf_estimate.py",
    "tests/integration/peers/test_gateways_rounds.py",
    "tests/integration/registry/test_sqlite_processes.py",
    "tests/integration/test_bench.py",
    "tests/integration/workers/test_placement.py",
    "tests/integration/routing/test_frozen_replicas.py",
    "tests/integration/backends/test_planned_ends.py",
    "tests/integration/workers/test_robustness.py",
    "tests/integration/processes/test_shared_port.py",
    "tests/integration/workers/test_crash_loop.py",
    "tests/integration/registry/test_postgres_migrations.py",
    "tests/integration/transport/test_sessions.py",
    "tests/integration/api/test_http_edge.py",
    "tests/integration/gateway/test_cold_load.py",
    "tests/integration/engines/test_cancel.py",
    "tests/integration/gateway/test_restart.py",
    "tests/integration/api/test_auth.py",
)
"""Files of `tests/integration` that take more than ten seconds, the longest one first."""


class Named(Protocol):
    """What is put in order: a test, named `FILE::TEST`."""

    @property
    def nodeid(self) -> str: ...


T = TypeVar("T", bound=Named)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items[:] = in_order(items)


def in_order(items: Sequence[T]) -> list[T]:
    """Returns the items with the files that wait and those that compute in turns, so that no processor is idle while
    all processes wait."""
    files = [list(of_file) for _, of_file in groupby(items, key=_file)]
    waiting = sorted((file for file in files if _waits(file)), key=_length_rank)
    computing = sorted((file for file in files if not _waits(file)), key=_folder_rank)
    return list(chain.from_iterable(_in_turns(waiting, computing)))


def _in_turns(waiting: Iterable[list[T]], computing: Iterable[list[T]]) -> Iterator[list[T]]:
    nothing: list[T] = []
    for waits, computes in zip_longest(waiting, computing, fillvalue=nothing):
        yield waits
        yield computes


def _file(item: Named) -> str:
    return item.nodeid.partition("::")[0]


def _waits(file: Sequence[Named]) -> bool:
    return _file(file[0]).startswith(WAITING)


def _length_rank(file: Sequence[Named]) -> int:
    name = _file(file[0])
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def _folder_rank(file: Sequence[Named]) -> int:
    name = _file(file[0])
    return next((rank for rank, folder in enumerate(COMPUTING) if name.startswith(folder)), len(COMPUTING))
