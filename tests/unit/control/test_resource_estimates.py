"""How much models take: which are estimated, when, and what a replica that is ready says of itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from gateway.control.resource_estimates import RequirementEstimates, measured_requirement
from gateway.domain.cluster import Node
from gateway.domain.ids import ModelName, ReplicaId, Revision
from gateway.domain.lifecycle import Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Capacity, Gpu, Requirement
from gateway.domain.routability import EMPTY_VIEW, FleetView, build_view
from gateway.domain.session import Report
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.protocol import RegistryError
from gateway.registry.snapshot import SnapshotStore, run_snapshot_watcher
from tests.contract.samples import spec
from tests.fakes.fleet import at_once, node

ESTIMATE = Requirement(vram_bytes=10, ram_bytes=20, disk_bytes=30)
CPU_NODE = node()
GPU_NODE = node(capacity=Capacity(gpus=(Gpu("nvidia", "L4", "GPU-1"),)))


def ready(ram_bytes: int | None, vram_bytes: int | None) -> Report:
    return Report(ReplicaId("r"), Observed.READY, ram_bytes=ram_bytes, vram_bytes=vram_bytes)


@pytest.mark.parametrize(
    ("report", "at", "requirement"),
    [
        (ready(5, None), CPU_NODE, Requirement(ram_bytes=5, measured=True)),
        (ready(5, None), None, Requirement(ram_bytes=5, measured=True)),
        (ready(5, 9), GPU_NODE, Requirement(vram_bytes=9, measured=True)),
        (ready(5, None), GPU_NODE, None),
        (ready(5, 0), GPU_NODE, None),
        (ready(None, None), CPU_NODE, None),
    ],
)
def test_p1_a_replica_says_what_it_takes_of_a_machine_of_its_kind(
    report: Report, at: Node | None, requirement: Requirement | None
) -> None:
    assert measured_requirement(report, None, at) == requirement


def test_p1_a_measurement_has_room_for_the_prompt_cache_that_fills_later() -> None:
    model = spec(prompt_cache=7)
    assert measured_requirement(ready(5, None), model, CPU_NODE) == Requirement(ram_bytes=12, measured=True)
    assert measured_requirement(ready(5, 9), model, GPU_NODE) == Requirement(vram_bytes=9, measured=True)


class FailingRegistry(MemoryRegistry):
    """Fails to note a requirement as often as is told."""

    failures = 0

    async def record_requirement(self, name: ModelName, revision: Revision, requirement: Requirement) -> bool:
        if self.failures:
            self.failures -= 1
            raise RegistryError("busy")
        return await super().record_requirement(name, revision, requirement)


@dataclass
class Harness:
    registry: FailingRegistry = field(default_factory=lambda: FailingRegistry(trio.current_time))
    views: SnapshotStore[FleetView] = field(default_factory=lambda: SnapshotStore(EMPTY_VIEW))
    asked: list[ModelSpec] = field(default_factory=list)
    estimate: Requirement | None = ESTIMATE

    async def ask(self, of: ModelSpec) -> Requirement | None:
        await trio.lowlevel.checkpoint()
        self.asked.append(of)
        return self.estimate

    async def requirements(self) -> dict[ModelName, Requirement]:
        await trio.sleep(10)
        return dict((await self.registry.read_state()).requirements)


@asynccontextmanager
async def open_harness(harness: Harness) -> AsyncIterator[Harness]:
    estimates = RequirementEstimates(harness.registry, harness.views, harness.ask)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_snapshot_watcher, harness.registry, harness.views, at_once(build_view))
        nursery.start_soon(estimates.run)
        yield harness
        nursery.cancel_scope.cancel()


async def test_p1_what_nothing_is_known_of_is_estimated(autojump_clock: MockClock) -> None:
    async with open_harness(Harness()) as harness:
        await harness.registry.declare_models([spec("a"), spec("b", artifact="file:b.gguf")])
        assert await harness.requirements() == {"a": ESTIMATE, "b": ESTIMATE}


@pytest.mark.parametrize("artifact", ["", "https://host/x.gguf", "hf://o/r/f"])
async def test_what_this_machine_can_not_read_is_not_asked_for(artifact: str, autojump_clock: MockClock) -> None:
    async with open_harness(Harness()) as harness:
        await harness.registry.declare_models([spec("a", artifact=artifact)])
        assert await harness.requirements() == {}
        assert harness.asked == []


async def test_p1_what_is_known_is_left_alone(autojump_clock: MockClock) -> None:
    harness = Harness()
    await harness.registry.declare_models([spec("a")])
    await harness.registry.record_requirement(ModelName("a"), spec().revision, Requirement(ram_bytes=7, measured=True))
    async with open_harness(harness):
        await harness.requirements()
        assert harness.asked == []


async def test_a8_each_revision_is_asked_for_once(autojump_clock: MockClock) -> None:
    async with open_harness(Harness(estimate=None)) as harness:
        for model in (spec("a"), spec("a", min_replicas=1), spec("a", context_size=9)):
            await harness.registry.declare_models([model])
            assert await harness.requirements() == {}
        assert [each.context_size for each in harness.asked] == [None, 9]


async def test_an_estimate_that_can_not_be_written_is_written_later(autojump_clock: MockClock) -> None:
    async with open_harness(Harness()) as harness:
        harness.registry.failures = 3
        with capture_logs() as logs:
            await harness.registry.declare_models([spec("a")])
            assert await harness.requirements() == {"a": ESTIMATE}
        assert sum(entry["event"] == "model.estimate_write_failed" for entry in logs) == 3
