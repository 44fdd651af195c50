"""Hundreds of events on a fleet of two or three gateways, many seeds, and what must hold at every rest.

SEED=123 pytest tests/simulation/test_fleet_simulation.py       one run again
SEEDS=500 pytest tests/simulation/test_fleet_simulation.py -n auto
"""

from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.amounts import seeds_to_run
from tests.simulation.faults import LAST_CALLER
from tests.simulation.fleet import Fleet, open_fleet
from tests.simulation.fleet_faults import FleetEvents
from tests.simulation.fleet_invariants import FleetWatch
from tests.simulation.installation import MODELS
from tests.simulation.test_simulation import SETTLE_SECONDS
from tests.simulation.world import Violation, World, run_seeded, step

EVENTS: Final = 250
LAST_SECONDS: Final = 60.0
"""For the last requests, when nothing is wrong any more."""
CUT_OFF: Final = "peers.cut_off"
SEEDS: Final = seeds_to_run(8, quick=3)


def simulate(seed: int, folder: Path, events: int = EVENTS) -> World:
    """Raises `Violation`."""
    world = World(seed, expected_alarms=frozenset({CUT_OFF}))

    async def main() -> None:
        async with open_fleet(world, folder, 2 + seed % 2) as fleet, trio.open_nursery() as happenings:
            await _live(fleet, FleetWatch(fleet), FleetEvents(fleet, happenings), events)

    run_seeded(world, main)
    return world


async def _live(fleet: Fleet, watch: FleetWatch, events: FleetEvents, number: int) -> None:
    for _ in range(number):
        await _pass_time(fleet, watch, events.next_at)
        events.happen()
    events.stop_faults()
    await _pass_time(fleet, watch, trio.current_time() + SETTLE_SECONDS)
    watch.check_end()
    for _ in range(fleet.places):
        for spec in MODELS:
            events.send_request(spec.name, LAST_CALLER)
    await _pass_time(fleet, watch, trio.current_time() + LAST_SECONDS)
    watch.check_end()
    for request in fleet.ended.values():
        if request.caller == LAST_CALLER and request.outcome != "answered":
            raise Violation(f"{request} ended as {request.outcome} though all is well again")


async def _pass_time(fleet: Fleet, watch: FleetWatch, until: float) -> None:
    while True:
        await wait_all_tasks_blocked()
        watch.check()
        if await step(fleet.world, until):
            return


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_of_gateways(seed: int, tmp_path: Path) -> None:
    simulate(seed, tmp_path)


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    """Wherever in memory things lie."""
    first = simulate(7, tmp_path / "first", events=60)
    ballast = [object() for _ in range(50_000)]
    again = simulate(7, tmp_path / f"again-{len(ballast)}", events=60)
    assert again.trace.digest == first.trace.digest
