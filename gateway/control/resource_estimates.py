"""How much models take: measured where they run, estimated before, and written down for the planner (P1)."""

from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeAlias

import structlog
import trio

from gateway.domain.cluster import ClusterState, Node
from gateway.domain.ids import ModelName, Revision
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Requirement
from gateway.domain.routability import FleetView
from gateway.domain.session import Report
from gateway.registry.protocol import Registry, RegistryError
from gateway.registry.snapshot import SnapshotStore

log = structlog.get_logger(__name__)

RETRY_SECONDS: Final = 1.0
"""Pause after the registry could not be used."""
READABLE: Final = ("builtin:", "file:")
"""Artifacts that this machine may have."""

EstimateRequirement: TypeAlias = Callable[[ModelSpec], Awaitable[Requirement | None]]
"""What a replica of the model will take, from the header of its file. None: this machine can't tell. Raises nothing."""


def measured_requirement(report: Report, node: Node | None) -> Requirement | None:
    """What a replica that is ready takes; None: it does not say. Pure.

    Beside a GPU a process's main memory says nothing of what it would need on a machine without one.
    """
    if node is not None and node.capacity.gpus:
        return Requirement(vram_bytes=report.vram_bytes, measured=True) if report.vram_bytes else None
    return Requirement(ram_bytes=report.ram_bytes, measured=True) if report.ram_bytes else None


class RequirementEstimates:
    """Estimates each revision of a model once, unless something is known of it already."""

    def __init__(self, registry: Registry, views: SnapshotStore[FleetView], estimate: EstimateRequirement) -> None:
        self._registry = registry
        self._views = views
        self._estimate = estimate
        self._tried: set[tuple[ModelName, Revision]] = set()

    async def run(self) -> NoReturn:
        """Estimates models that nothing is known of, now and after each change of the view; runs until cancelled."""
        view = self._views.current
        while True:
            for spec in self._unknown(view.state):
                await self._try(spec)
            view = await self._views.wait_change(view)

    def _unknown(self, state: ClusterState) -> list[ModelSpec]:
        """Models that nothing is known of and that may be estimated here."""
        self._tried &= {(spec.name, spec.revision) for spec in state.models.values()}
        return [
            spec
            for spec in state.models.values()
            if spec.name not in state.requirements
            and spec.artifact.startswith(READABLE)
            and (spec.name, spec.revision) not in self._tried
        ]

    async def _try(self, spec: ModelSpec) -> None:
        self._tried.add((spec.name, spec.revision))
        requirement = await self._estimate(spec)
        if requirement is not None:
            log.info("model.estimated", model=spec.name, vram=requirement.vram_bytes, ram=requirement.ram_bytes)
            await self._write(spec, requirement)

    async def _write(self, spec: ModelSpec, requirement: Requirement) -> None:
        while True:
            try:
                await self._registry.note_requirement(spec.name, spec.revision, requirement)
            except RegistryError as error:
                log.warning("model.estimate_not_written", model=spec.name, error=str(error))
                await trio.sleep(RETRY_SECONDS)
            else:
                return
