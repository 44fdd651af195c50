"""Long tests come first in each process, and no test is lost or run twice."""

from collections import Counter
from dataclasses import dataclass

import pytest

from tests.order import spread


@dataclass(frozen=True)
class Item:
    nodeid: str

    @property
    def is_long(self) -> bool:
        return not self.nodeid.startswith("tests/unit")


def items(folder: str, files: int, tests: int) -> list[Item]:
    return [Item(f"tests/{folder}/test_{file}.py::test_{number}") for file in range(files) for number in range(tests)]


def test_each_process_begins_with_its_share_of_the_long_tests() -> None:
    found = spread([*items("contract", 4, 5), *items("simulation", 4, 3), *items("unit", 10, 20)], processes=4)
    portions = [found[start : start + 58] for start in range(0, 232, 58)]
    for number, portion in enumerate(portions):
        assert [item for item in portion if item.is_long] == portion[: 3 + 5]
        assert {item.nodeid.partition("::")[0] for item in portion[:3]} == {f"tests/simulation/test_{number}.py"}


@pytest.mark.parametrize("processes", [2, 3, 4, 7])
@pytest.mark.parametrize(("files", "short"), [(0, 40), (1, 0), (5, 1), (9, 400)])
def test_every_test_is_there_once(processes: int, files: int, short: int) -> None:
    given = [*items("unit", 1, short), *items("integration", files, 11)]
    assert Counter(spread(given, processes)) == Counter(given)
