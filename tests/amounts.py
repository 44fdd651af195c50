"""How much of the same check is run: a part among all tests, the rest among the slow ones.

Seeds of a simulation, rounds, crashes: each finds by chance what the last one did not. `make test` runs as many as find
what is badly broken, `make test-slow` the rest, and a variable of the environment as many as one likes:

    SEED=123 pytest tests/simulation/test_simulation.py        # this one alone
    SEEDS=2000 pytest tests/simulation -n auto                 # the first 2,000
    EXAMPLES=1000 pytest -m hypothesis -n auto                 # properties, with ten times their examples

Examples of properties are a part in each run of the tests, and all in `make properties`.
"""

import os
from typing import Final

import pytest
from _pytest.mark import ParameterSet

SEED: Final = "SEED"
"""The variable that names the only seed to run."""

EXAMPLES: Final = "EXAMPLES"
"""The variable that says with how many percent of its examples a property is tried."""
QUICK_PERCENT: Final = "40"


def seeds_to_run(count: int, quick: int, *, variable: str = "SEEDS") -> list[int | ParameterSet]:
    """Returns the seed of `SEED`, or as many as `variable` says, or `count`, of which only the first `quick` are not
    slow."""
    if SEED in os.environ:
        return [int(os.environ[SEED])]
    if variable in os.environ:
        return list(range(int(os.environ[variable])))
    return [*range(quick), *(_slow(seed) for seed in range(quick, count))]


def amounts_to_run(count: int, quick: int, *, variable: str) -> list[int | ParameterSet]:
    """Returns how often the test repeats what it tries: as `variable` says, or `quick` times, and `count` times among
    the slow ones."""
    return [int(os.environ[variable])] if variable in os.environ else [quick, _slow(count)]


def examples_to_run(count: int) -> int:
    """Returns with how many examples a property is tried that has `count` of them."""
    return max(1, count * int(os.environ.get(EXAMPLES, QUICK_PERCENT)) // 100)


def _slow(value: int) -> ParameterSet:
    return pytest.param(value, marks=pytest.mark.slow)
