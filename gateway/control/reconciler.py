"""The planner's loop: read the state, plan, write. Events only wake it; it always looks at everything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import structlog
import trio

from gateway.control.entries import Plan, Wait, reasons
from gateway.control.ground import NONE_USED
from gateway.control.plan import NO_LIMITS, plan
from gateway.control.remembered import NOTHING_REMEMBERED, Remembered, note_asked, note_freed
from gateway.control.retire import Limits
from gateway.domain.cluster import ClusterState
from gateway.domain.ids import GatewayId, ModelName, ReplicaId, new_id
from gateway.registry.protocol import Registry, RegistryError, StaleEpoch
from gateway.routing.load_table import Usage
from gateway.wake import Wake

log = structlog.get_logger(__name__)

PAUSE_SECONDS_MIN: Final = 0.01
"""Between two rounds that time alone brings about: a rounded age must not make the loop spin."""
RETRY_SECONDS: Final = 1.0
"""Pause after the registry could not be used."""


@dataclass
class Reconciler:
    """`wake` asks for a round; without it one comes every `interval_seconds`."""

    registry: Registry
    gateway_id: GatewayId
    interval_seconds: float
    usage: Callable[[], Mapping[ReplicaId, Usage]] = lambda: NONE_USED
    """What this gateway knows of replicas' requests."""
    limits: Limits = NO_LIMITS
    wake: Wake = field(default_factory=Wake)
    epoch: int | None = None
    """Of our leadership; None: not the leader (yet)."""
    broken: dict[ReplicaId, str] = field(default_factory=dict)
    """Replicas that are of no use, as this gateway sees it, and why; kept until they are gone."""
    lost: set[ReplicaId] = field(default_factory=set)
    """Those of them that went with their worker."""
    remembered: Remembered = NOTHING_REMEMBERED
    waits: Mapping[ModelName, Wait] = field(default_factory=lambda: MappingProxyType({}))
    """By the last plan: models of which a replica is wanted that can't be started yet, and why."""
    unsatisfiable: Mapping[ModelName, str] = field(default_factory=lambda: MappingProxyType({}))
    """By the last plan: models that lack replicas that they have to have, and the numbers (P5)."""

    def note_broken(self, replica_id: ReplicaId, because: str) -> None:
        """Let it be replaced."""
        if replica_id not in self.broken:
            self.broken[replica_id] = because
            self.wake.set()

    def note_lost(self, replica_id: ReplicaId, because: str) -> None:
        """The same, of one whose process is gone and whose worker does not say so: it is likely to be gone, too."""
        self.lost.add(replica_id)
        self.note_broken(replica_id, because)

    def shortage_of(self, model: ModelName) -> str | None:
        """Why no node has room for the model, if it waits for room and nothing is under way that makes any."""
        wait = self.waits.get(model)
        return wait.because if wait is not None and wait.is_shortage else None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Plans until cancelled. Reports started after the first round."""
        started = False
        while True:
            pause = await self._round()
            if not started:
                task_status.started()
                started = True
            await self.wake.wait_until(trio.current_time() + pause)

    async def _round(self) -> float:
        """One round; returns the seconds until the next one if nothing wakes us."""
        try:
            if self.epoch is None:
                self.epoch = await self.registry.lead(self.gateway_id)
            return await self._plan_and_apply(self.epoch)
        except StaleEpoch:
            log.warning("control.leadership_lost", epoch=self.epoch)
            self.epoch = None
            self._note(Plan())
            return 0
        except RegistryError as error:
            log.warning("control.registry_unavailable", error=str(error))
            return RETRY_SECONDS

    async def _plan_and_apply(self, epoch: int) -> float:
        state, now = await self.registry.read_state(), await self.registry.now()
        self.broken = {who: why for who, why in self.broken.items() if who in state.replicas}
        self.lost &= self.broken.keys()
        decided = self._plan(state, now)
        if write := decided.as_write():
            await self.registry.apply(epoch, write)
            for verb, subject, because in reasons(decided):
                log.info("control.planned", verb=verb, subject=subject, because=because)
            gone = [state.replicas[entry.replica_id] for entry in decided.forget]
            self.remembered = note_freed(self.remembered, state, gone, now)
        if decided.again_at is None:
            return self.interval_seconds
        return min(self.interval_seconds, max(PAUSE_SECONDS_MIN, decided.again_at - now))

    def _plan(self, state: ClusterState, now: float) -> Plan:
        self.remembered = note_asked(self.remembered, state, now)
        new, usage = lambda: ReplicaId(new_id()), self.usage()
        decided = plan(state, now, new, self.broken, usage, self.limits, self.lost, self.remembered)
        self._note(decided)
        return decided

    def _note(self, decided: Plan) -> None:
        for model, because in decided.unsatisfiable.items():
            if model not in self.unsatisfiable:
                log.warning("control.unsatisfiable", model=model, because=because)
        self.waits = MappingProxyType({entry.model: entry for entry in decided.wait})
        self.unsatisfiable = decided.unsatisfiable
