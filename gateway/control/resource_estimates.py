"""Determines how much memory models need, by measurement where they run and by an estimate before, and writes it down
for the planner (P1)."""

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
from gateway.registry.protocol import RETRY_SECONDS, NodeRegistry, RegistryError
from gateway.registry.snapshot import SnapshotStore

log = structlog.get_logger(__name__)

READABLE: Final = ("builtin:", "file:")
"""The kinds of artifacts that this machine may have."""

EstimateRequirement: TypeAlias = Callable[[ModelSpec], Awaitable[Requirement | None]]
"""Returns what a replica of the model will need, from the header of its file. Returns None if this machine cannot tell.
Raises nothing."""


def measured_requirement(report: Report, spec: ModelSpec | None, node: Node | None) -> Requirement | None:
    """Returns what a ready replica needs, or None if its report does not say. Pure.

    The prompt cache of a replica that has just become ready is empty, so its size is added. On a machine with a GPU,
    the main memory of the process does not tell what it would need without a GPU.
    """
    if node is not None and node.capacity.gpus:
        return Requirement(vram_bytes=report.vram_bytes, measured=True) if report.vram_bytes else None
    if not report.ram_bytes:
        return None
    cache_bytes = spec.prompt_cache_bytes if spec is not None else 0
    return Requirement(ram_bytes=report.ram_bytes + cache_bytes, measured=True)


class RequirementEstimates:
    """Estimates each revision of a model once, unless its need is known already."""

    def __init__(self, registry: NodeRegistry, views: SnapshotStore[FleetView], estimate: EstimateRequirement) -> None:
        self._registry = registry
        self._views = views
        self._estimate = estimate
        self._tried: set[tuple[ModelName, Revision]] = set()

    async def run(self) -> NoReturn:
        """Estimates models of which nothing is known, now and after each change of the view. Runs until cancelled."""
        view = self._views.current
        while True:
            for spec in self._unknown(view.state):
                await self._try(spec)
            view = await self._views.wait_change(view)

    def _unknown(self, state: ClusterState) -> list[ModelSpec]:
        """Returns the models of which nothing is known and that may be estimated here."""
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
                await self._registry.record_requirement(spec.name, spec.revision, requirement)
            except RegistryError as error:
                log.log(error.log_level, "model.estimate_write_failed", model=spec.name, error=str(error))
                await trio.sleep(RETRY_SECONDS)
            else:
                return
