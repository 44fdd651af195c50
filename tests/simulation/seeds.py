"""Which seeds a simulation runs."""

import os
from typing import Final

import pytest
from _pytest.mark import ParameterSet

SEED: Final = "SEED"
"""The variable that names the only seed to run."""


def seeds_to_run(variable: str, count: int, quick: int) -> list[int | ParameterSet]:
    """Returns the seed of `SEED`, or as many as `variable` says, or `count`, of which only the first `quick` are not
    slow."""
    if SEED in os.environ:
        return [int(os.environ[SEED])]
    if variable in os.environ:
        return list(range(int(os.environ[variable])))
    return [*range(quick), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(quick, count))]
