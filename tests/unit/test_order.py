"""Long files come first, those that wait beside those that compute, and no test is lost or run twice."""

from collections import Counter
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import pytest

from tests.order import COMPUTING, LONGEST, WAITING, in_order

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Item:
    nodeid: str


def items(folder: str, files: int, tests: int = 2) -> list[Item]:
    return [Item(f"{folder}test_{file}.py::test_{number}") for file in range(files) for number in range(tests)]


def files_in_order(given: list[Item]) -> list[str]:
    """Fails if the tests of a file are apart."""
    found = [file for file, _ in groupby(in_order(given), key=lambda item: item.nodeid.partition("::")[0])]
    assert len(found) == len(set(found))
    return found


def test_files_that_wait_and_files_that_compute_are_in_turns() -> None:
    given = [*items("tests/unit/", 3), *items("tests/integration/", 2), *items("tests/simulation/", 1)]
    assert files_in_order(given) == [
        "tests/integration/test_0.py",
        "tests/simulation/test_0.py",
        "tests/integration/test_1.py",
        "tests/unit/test_0.py",
        "tests/unit/test_1.py",
        "tests/unit/test_2.py",
    ]


def test_the_longest_files_come_first_and_unit_tests_last() -> None:
    given = [*items("tests/integration/", 1), *(Item(f"{file}::test") for file in reversed(LONGEST))]
    assert files_in_order(given) == [*LONGEST, "tests/integration/test_0.py"]
    folders = ["tests/unit/", *reversed(COMPUTING)]
    assert files_in_order([item for folder in folders for item in items(folder, 1)])[-1] == "tests/unit/test_0.py"


@pytest.mark.parametrize(("files", "short"), [(0, 40), (1, 0), (5, 1), (9, 400)])
def test_every_test_is_there_once(files: int, short: int) -> None:
    given = [*items("tests/unit/", 1, short), *items("tests/integration/", files, 11)]
    assert Counter(in_order(given)) == Counter(given)


@pytest.mark.parametrize("file", LONGEST)
def test_the_longest_files_exist(file: str) -> None:
    assert file.startswith(WAITING)
    assert (ROOT / file).is_file()
