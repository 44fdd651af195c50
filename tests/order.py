"""The order in which the processes of pytest-xdist run the tests: long ones come first, spread over all of them.

xdist hands each process one portion of the list, and a process that has done its own takes tests from the end of
another portion. So each portion begins with its share of the long tests, and only short ones are left when the first
process is done. Without xdist the tests run in the order of their files.
"""

from collections.abc import Iterator, Sequence
from itertools import chain, groupby, islice
from typing import Final, Protocol, TypeVar

import pytest

LONG: Final = ("tests/simulation/", "tests/properties/", "tests/integration/", "tests/golden/", "tests/contract/")
"""Folders whose tests take long, those first that take the most processor time."""


class Named(Protocol):
    """What is put in order: a test, named `FILE::TEST`."""

    @property
    def nodeid(self) -> str: ...


T = TypeVar("T", bound=Named)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    processes = getattr(config, "workerinput", {}).get("workercount", 1)
    if processes > 1:
        items[:] = spread(items, processes)


def spread(items: Sequence[T], processes: int) -> list[T]:
    """Returns the items so that each of `processes` equal portions begins with its share of the long tests. Those of
    one file stay together, since they may share what is made for them."""
    long = sorted((item for item in items if _rank(item) < len(LONG)), key=_rank)
    short = iter([item for item in items if _rank(item) == len(LONG)])
    shares: list[list[T]] = [[] for _ in range(processes)]
    for number, (_, of_file) in enumerate(groupby(long, key=lambda item: item.nodeid.partition("::")[0])):
        shares[number % processes].extend(of_file)
    return list(chain.from_iterable(_portions(shares, short, len(items)))) + list(short)


def _portions(shares: Sequence[list[T]], short: Iterator[T], count: int) -> Iterator[list[T]]:
    """Yields each share, filled up with short tests to the length of a portion."""
    given = 0
    for number, share in enumerate(shares):
        length = (count - given) // (len(shares) - number)  # as xdist divides them
        portion = [*share, *islice(short, max(0, length - len(share)))]
        given += len(portion)
        yield portion


def _rank(item: Named) -> int:
    return next((rank for rank, folder in enumerate(LONG) if item.nodeid.startswith(folder)), len(LONG))
