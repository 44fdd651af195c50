"""The loop that plans: while this gateway leads, it reads the state, plans and writes. Events only wake it, and it
always looks at the whole state."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Final

import structlog
import trio

from gateway.concurrency import Wake
from gateway.control.leader_election import LeaderElection
from gateway.control.plan_outcome import PlanOutcome
from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, Demand
from gateway.domain.ids import ReplicaId, new_id
from gateway.domain.peers import Audience
from gateway.planner.history import NO_HISTORY, PlanningHistory, record_demand, record_released
from gateway.planner.plan import Plan, reasons
from gateway.planner.planner import plan
from gateway.planner.planning_input import NO_LIMITS, NO_USAGE, PlanningInput, WatchdogLimits
from gateway.registry.protocol import RETRY_SECONDS, PlanRegistry, RegistryError, StaleEpoch

log = structlog.get_logger(__name__)

PAUSE_SECONDS_MIN: Final = 0.01
"""The shortest pause between two rounds if only time has passed: a rounded age must not make the loop spin."""
REST_SECONDS_MAX: Final = 1.0
"""The longest rest after a plan, however long the plan took and whatever wakes the loop."""


@dataclass
class Reconciler:
    """Plans in rounds while this gateway leads. `wake` asks for a round; without it there is one every
    `interval_seconds`."""

    registry: PlanRegistry
    election: LeaderElection
    interval_seconds: float
    own_demand: Callable[[], tuple[Demand, ...]] | None = None
    """Returns the demand at this gateway now, so that the planner need not wait until it is published. None means
    that the planner uses the published demand."""
    usage: Callable[[float], Mapping[ReplicaId, Usage]] = lambda _now: NO_USAGE
    """Returns the usage of replicas at the registry's time `now`, other gateways included."""
    audience: Callable[[], Audience | None] = lambda: None
    """Returns what the gateways that may route requests know, or None if all of them route by the newest state."""
    limits: WatchdogLimits = NO_LIMITS
    wake: Wake = field(default_factory=Wake)
    history: PlanningHistory = NO_HISTORY
    outcome: PlanOutcome = field(default_factory=PlanOutcome)
    """The pending replicas and unsatisfied minimums of the last plan."""
    planning_seconds: float = 0.0
    """The seconds that the last round spent on planning. The event loop did nothing else meanwhile."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled. Reports started after the first round. Planning takes half of the event loop at most:
        wakes in quick succession wait for as long as the last plan took."""
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
        """Runs one round. Returns the seconds until the next round if nothing wakes the loop."""
        epoch, self.planning_seconds = self.election.epoch, 0.0
        if epoch is None:
            self.outcome.record(Plan())
            self.history = NO_HISTORY
            return inf
        try:
            return await self._plan_and_apply(epoch)
        except StaleEpoch as error:
            log.warning("leadership.lost", epoch=epoch, error=str(error))
            self.election.lose()
            return 0
        except RegistryError as error:
            log.log(error.log_level, "control.registry_unavailable", error=str(error))
            return RETRY_SECONDS

    async def _plan_and_apply(self, epoch: int) -> float:
        state, now = self._with_own_demand(await self.registry.read_state()), await self.registry.now()
        began_at = trio.current_time()
        decided = self._plan(state, now)
        self.planning_seconds = trio.current_time() - began_at
        if write := decided.as_write():
            await self.registry.apply(epoch, write)
            for verb, subject, because in reasons(decided):
                log.info("control.planned", verb=verb, subject=subject, because=because)
            gone = [state.replicas[entry.replica_id] for entry in decided.delete]
            self.history = record_released(self.history, state, gone, now)
        if decided.replan_at is None:
            return self.interval_seconds
        return min(self.interval_seconds, max(PAUSE_SECONDS_MIN, decided.replan_at - now))

    def _with_own_demand(self, state: ClusterState) -> ClusterState:
        if self.own_demand is None:
            return state
        theirs = (row for row in state.demand if row.gateway_id != self.election.gateway_id)
        return replace(state, demand=(*self.own_demand(), *theirs))

    def _plan(self, state: ClusterState, now: float) -> Plan:
        self.history = record_demand(self.history, state, now)
        inputs = PlanningInput(
            snapshot=state,
            now=now,
            usage=self.usage(now),
            broken={replica.id: replica.broken for replica in state.replicas.values() if replica.broken is not None},
            lost=frozenset(replica.id for replica in state.replicas.values() if replica.lost),
            history=self.history,
            limits=self.limits,
            audience=self.audience(),
        )
        decided = plan(inputs, new_replica_id=lambda: ReplicaId(new_id()))
        self.outcome.record(decided)
        return decided
