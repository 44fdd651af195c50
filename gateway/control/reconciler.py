"""The planner's loop: while this gateway leads, read the state, plan, write. Events only wake it; it always looks at
everything."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType
from typing import Final

import structlog
import trio

from gateway.concurrency import Wake
from gateway.control.leader_election import LeaderElection
from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState
from gateway.domain.ids import ModelName, ReplicaId, new_id
from gateway.domain.peers import Audience, PendingReason
from gateway.planner.history import NO_HISTORY, PlanningHistory, record_demand, record_released
from gateway.planner.plan import Plan, reasons
from gateway.planner.planner import NO_LIMITS, plan
from gateway.planner.reconcile import WatchdogLimits
from gateway.planner.working_state import NONE_USED
from gateway.registry.protocol import Registry, RegistryError, StaleEpoch

log = structlog.get_logger(__name__)

PAUSE_SECONDS_MIN: Final = 0.01
"""Between two rounds that time alone brings about: a rounded age must not make the loop spin."""
RETRY_SECONDS: Final = 1.0
"""Pause after the registry could not be used."""
REST_SECONDS_MAX: Final = 1.0
"""For which the loop rests after a plan, however long that took and whoever wakes it."""


@dataclass
class Reconciler:
    """`wake` asks for a round; without it one comes every `interval_seconds`."""

    registry: Registry
    leadership: LeaderElection
    interval_seconds: float
    usage: Callable[[float], Mapping[ReplicaId, Usage]] = lambda _now: NONE_USED
    """What is known of replicas' requests at the registry's time `now`, those of other gateways included."""
    audience: Callable[[], Audience | None] = lambda: None
    """What the gateways know that may route requests; None: they all route by the newest state."""
    limits: WatchdogLimits = NO_LIMITS
    wake: Wake = field(default_factory=Wake)
    remembered: PlanningHistory = NO_HISTORY
    waits: Mapping[ModelName, PendingReason] = field(default_factory=lambda: MappingProxyType({}))
    """By the last plan: models of which a replica is wanted that can't be started yet, and why."""
    unsatisfiable: Mapping[ModelName, str] = field(default_factory=lambda: MappingProxyType({}))
    """By the last plan: models that lack replicas that they have to have, and the numbers (P5)."""
    planning_seconds: float = 0.0
    """In which the last round planned, and the event loop served nobody."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. Reports started after the first round. Planning takes half of the event loop at most: wakes
        that come one upon another wait for as long as the last plan took."""
        started = False
        while True:
            pause = await self._round()
            if not started:
                task_status.started()
                started = True
            again_at = trio.current_time() + pause
            if self.planning_seconds > 0:
                await trio.sleep(min(self.planning_seconds, REST_SECONDS_MAX))
            await self.wake.wait_until(again_at)

    async def _round(self) -> float:
        """One round; returns the seconds until the next one if nothing wakes us."""
        epoch, self.planning_seconds = self.leadership.epoch, 0.0
        if epoch is None:
            self._note(Plan())
            self.remembered = NO_HISTORY
            return inf
        try:
            return await self._plan_and_apply(epoch)
        except StaleEpoch as error:
            log.warning("leadership.lost", epoch=epoch, error=str(error))
            self.leadership.lose()
            return 0
        except RegistryError as error:
            log.warning("control.registry_unavailable", error=str(error))
            return RETRY_SECONDS

    async def _plan_and_apply(self, epoch: int) -> float:
        state, now = await self.registry.read_state(), await self.registry.now()
        began_at = trio.current_time()
        decided = self._plan(state, now)
        self.planning_seconds = trio.current_time() - began_at
        if write := decided.as_write():
            await self.registry.apply(epoch, write)
            for verb, subject, because in reasons(decided):
                log.info("control.planned", verb=verb, subject=subject, because=because)
            gone = [state.replicas[entry.replica_id] for entry in decided.forget]
            self.remembered = record_released(self.remembered, state, gone, now)
        if decided.again_at is None:
            return self.interval_seconds
        return min(self.interval_seconds, max(PAUSE_SECONDS_MIN, decided.again_at - now))

    def _plan(self, state: ClusterState, now: float) -> Plan:
        self.remembered = record_demand(self.remembered, state, now)
        decided = plan(
            state=state,
            now=now,
            new_replica_id=lambda: ReplicaId(new_id()),
            broken={replica.id: replica.broken for replica in state.replicas.values() if replica.broken is not None},
            usage=self.usage(now),
            limits=self.limits,
            lost={replica.id for replica in state.replicas.values() if replica.lost},
            remembered=self.remembered,
            audience=self.audience(),
        )
        self._note(decided)
        return decided

    def _note(self, decided: Plan) -> None:
        for model, because in decided.unsatisfiable.items():
            if model not in self.unsatisfiable:
                log.warning("control.unsatisfiable", model=model, because=because)
        self.waits = MappingProxyType(
            {entry.model: PendingReason(entry.because, entry.is_shortage) for entry in decided.wait}
        )
        self.unsatisfiable = decided.unsatisfiable
