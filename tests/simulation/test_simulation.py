"""Hundreds of events on one gateway, many seeds, and what must hold at every rest."""

from pathlib import Path
from typing import Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from tests.amounts import seeds_to_run
from tests.simulation.faults import LAST_CALLER, Events
from tests.simulation.installation import MODELS, Installation, open_installation
from tests.simulation.invariants import Watch
from tests.simulation.world import Violation, World, run_seeded, step

EVENTS: Final = 300
SETTLE_SECONDS: Final = 400.0
"""After the last event: longer than the longest pause after a failed load, and than anybody waits for anything."""
SEEDS: Final = seeds_to_run(30, quick=6)


def simulate(seed: int, folder: Path, events: int = EVENTS) -> World:
    """Raises `Violation`."""
    world = World(seed)

    async def main() -> None:
        async with open_installation(world, folder) as installation, trio.open_nursery() as happenings:
            await _live(installation, Events(installation, happenings), events)

    run_seeded(world, main)
    return world


async def _live(installation: Installation, events: Events, number: int) -> None:
    watch = Watch(installation)
    for _ in range(number):
        await _pass_time(installation, watch, events.next_at)
        events.happen()
    events.stop_faults()
    await _pass_time(installation, watch, trio.current_time() + SETTLE_SECONDS)
    watch.check_end()
    for spec in MODELS:
        events.send_request(spec.name, LAST_CALLER)
    await _pass_time(installation, watch, trio.current_time() + SETTLE_SECONDS)
    watch.check_end()
    for request in installation.clients.ended.values():
        if request.caller == LAST_CALLER and request.outcome != "answered":
            raise Violation(f"{request} ended as {request.outcome} though all is well again")


async def _pass_time(installation: Installation, watch: Watch, until: float) -> None:
    while True:
        await wait_all_tasks_blocked()
        watch.check()
        if await step(installation.world, until):
            return


@pytest.mark.parametrize("seed", SEEDS)
def test_faults(seed: int, tmp_path: Path) -> None:
    simulate(seed, tmp_path)


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    """Wherever in memory things lie."""
    first = simulate(7, tmp_path / "first", events=60)
    for number in range(1, 3):
        ballast = [object() for _ in range(number * 50_000)]
        again = simulate(7, tmp_path / f"again-{len(ballast)}", events=60)
        assert again.trace.digest == first.trace.digest
