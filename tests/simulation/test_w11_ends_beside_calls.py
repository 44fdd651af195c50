"""W11: one gateway lets replicas go, because nobody uses them or for another model, while others route to them.

Requests come at the moments around each decision, through any gateway; none of them is cut. As many ends as one likes:

    W11_ENDS=1000 pytest tests/simulation/test_w11_ends_beside_calls.py
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from math import inf
from pathlib import Path
from typing import Final

import pytest
import trio

from gateway.domain.ids import ModelName, RequestId
from gateway.domain.model_spec import ModelSpec
from gateway.planner.preemption import MIN_RESIDENCE_SECONDS
from tests.amounts import amounts_to_run
from tests.simulation.backend import Mood
from tests.simulation.clients import Request
from tests.simulation.fleet import FLEET_CONFIG, Fleet, open_fleet
from tests.simulation.fleet_invariants import FleetWatch
from tests.simulation.machine import FOREIGN, OURS
from tests.simulation.world import World, run_seeded

GATEWAYS: Final = 2
ENDS: Final = amounts_to_run(150, quick=50, variable="W11_ENDS")
"""Replicas that are let go because nobody uses them. Evictions take longer, and are fewer."""
SCALE_DOWN_SECONDS: Final = 1.0
SPARE: Final = tuple(
    ModelSpec(ModelName(f"{backend}{number}"), backend, "", parallel=2, max_replicas=1)
    for backend in (OURS, FOREIGN)
    for number in range(3)
)
"""Each goes when nobody has used it for a second."""
EXCLUSIVE_MODELS: Final = tuple(
    ModelSpec(
        ModelName(f"{backend}{group}{number}"),
        backend,
        "",
        parallel=2,
        max_replicas=1,
        exclusive_group=f"{backend}{group}",
    )
    for backend in (OURS, FOREIGN)
    for group in "ab"
    for number in range(4)
)
"""Four of each group, which share three machines."""
ALLOWED: Final = frozenset({"answered", "ModelLoading"})


@dataclass
class Callers:
    fleet: Fleet
    pause_seconds: Callable[[], float]
    requests: list[Request] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    async def run(self, spec: ModelSpec) -> None:
        """Whenever a replica may be about to go somebody wants it, and perhaps somebody else a moment later."""
        random = self.fleet.world.random
        while True:
            async with trio.open_nursery() as nursery:
                for _ in range(random.choice([1, 1, 2])):
                    nursery.start_soon(self._ask, spec)
                    await trio.sleep(random.uniform(0.0, 0.3))
            await trio.sleep(self.pause_seconds())

    async def _ask(self, spec: ModelSpec) -> None:
        random = self.fleet.world.random
        request = Request(
            RequestId(f"q{next(self._numbers)}"),
            spec.name,
            "ann",
            random.choice(["stream", "unary", "embedding"]),
            random.randint(1, 3),
            timeout_seconds=3600,
            pause_seconds=0,
        )
        self.requests.append(request)
        await self.fleet.send(request)


async def _vary_pace(fleet: Fleet) -> None:
    """A call may take from a moment to several seconds: longer than it takes to be thought to have ended."""
    while True:
        for backend in fleet.backends():
            backend.be(fleet.world.random.choice([Mood.WELL, Mood.SLOW]), inf)
        await trio.sleep(1.0)


def _run(folder: Path, specs: Sequence[ModelSpec], config: str, pause: Callable[[World], float], ends: int) -> None:
    world = World(1)

    async def main() -> None:
        async with open_fleet(world, folder, GATEWAYS, FleetWatch, specs=specs, config=config) as fleet:
            world.clock.autojump_threshold = 0
            callers = Callers(fleet, lambda: pause(world))
            async with trio.open_nursery() as nursery:
                await trio.sleep(SCALE_DOWN_SECONDS)  # until gateways and machines are there
                nursery.start_soon(_vary_pace, fleet)
                for spec in specs:
                    nursery.start_soon(callers.run, spec)
                while len(fleet.registry.unwanted_at) < ends:
                    await trio.sleep(1.0)
                    world.raise_violations()
                nursery.cancel_scope.cancel()
            outcomes = {request.outcome for request in callers.requests if request.outcome is not None}
            assert outcomes - {"left"} <= ALLOWED, outcomes
            assert sum(request.outcome == "answered" for request in callers.requests) > ends

    run_seeded(world, main)


@pytest.mark.parametrize("ends", ENDS)
def test_w11_no_request_is_cut_when_replicas_are_scaled_down_beside_it(tmp_path: Path, ends: int) -> None:
    _run(
        tmp_path,
        SPARE,
        FLEET_CONFIG + f'[reconciler]\nscale_down_delay = "{SCALE_DOWN_SECONDS:g}s"\n',
        lambda world: SCALE_DOWN_SECONDS + world.random.uniform(-0.3, 1.5),
        ends,
    )


@pytest.mark.parametrize("ends", ENDS)
def test_w11_no_request_is_cut_when_replicas_are_evicted_beside_it(tmp_path: Path, ends: int) -> None:
    _run(
        tmp_path,
        EXCLUSIVE_MODELS,
        FLEET_CONFIG,
        lambda world: world.random.uniform(1.0, MIN_RESIDENCE_SECONDS),
        ends // 5,
    )
