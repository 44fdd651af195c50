"""A fleet that does what the planner says, in steps of one second: machines with memory, requests that queue."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import inf

from gateway.domain.activity import Usage
from gateway.domain.cluster import ClusterState, Node, Replica
from gateway.domain.ids import Address, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Capacity, Requirement
from gateway.domain.routability import build_view
from gateway.planner.history import NO_HISTORY, PlanningHistory, record_demand, record_released
from gateway.planner.plan import Plan
from gateway.planner.planning_input import WatchdogLimits
from tests.fakes.fleet import Ids, demand, node, state
from tests.fakes.planning import plan_for


@dataclass
class Request:
    model: ModelName
    since: float
    seconds: int
    """How long it keeps a slot."""
    replica: ReplicaId | None = None
    ends_at: float = inf


@dataclass
class PlannedWorld:
    """Loads, stops and memory are immediate; what a node tells of its memory is `lag` seconds old."""

    specs: tuple[ModelSpec, ...]
    needs: dict[ModelName, int]
    """Bytes that one replica really takes, which its requirement says, too."""
    memory: dict[NodeId, int]
    limits: WatchdogLimits = field(default_factory=WatchdogLimits)
    lag: int = 0
    now: float = 0.0
    rows: dict[ReplicaId, Replica] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    served: list[Request] = field(default_factory=list)
    ended_at: dict[ReplicaId, float] = field(default_factory=dict)
    history: PlanningHistory = NO_HISTORY
    plans: list[Plan] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._ids = Ids()
        self._readings = {node_id: [total] * (self.lag + 1) for node_id, total in self.memory.items()}

    def ask(self, model: str, seconds: int = 1) -> None:
        self.requests.append(Request(ModelName(model), self.now, seconds))

    def tick(self) -> Plan:
        """One second: requests end and begin, the planner plans, workers carry it out."""
        self._serve()
        decided = self._plan()
        self._work()
        for node_id, reported in self._readings.items():
            reported.append(self.memory[node_id] - self.used(node_id))
            del reported[0]
        self.now += 1
        return decided

    def used(self, node_id: NodeId) -> int:
        """By processes."""
        return sum(self.needs[row.model] for row in self.processes() if row.node_id == node_id)

    def processes(self) -> Iterable[Replica]:
        return [row for row in self.rows.values() if row.observed in (Observed.READY, Observed.DRAINING)]

    def state(self) -> ClusterState:
        oldest: dict[ModelName, float] = {}
        for request in self._waiting():
            oldest.setdefault(request.model, request.since)
        return state(
            self.rows.values(),
            specs=self.specs,
            nodes=[self._node(node_id) for node_id in self.memory],
            demand=[demand(model, since=since) for model, since in oldest.items()],
            requirements={model: Requirement(ram_bytes=need) for model, need in self.needs.items()},
        )

    def _node(self, node_id: NodeId) -> Node:
        reported = Capacity(ram_bytes=self.memory[node_id], ram_free_bytes=self._readings[node_id][0])
        return node(node_id, capacity=reported, max_replicas_per_model=3)

    def _waiting(self) -> list[Request]:
        return [request for request in self.requests if request.replica is None]

    def _serve(self) -> None:
        for request in [each for each in self.requests if each.ends_at <= self.now]:
            self.requests.remove(request)
            self.served.append(request)
            self.ended_at[request.replica or ReplicaId("")] = self.now
        for request in self._waiting():
            free = [
                each.replica_id
                for each in build_view(self.state()).candidates.get(request.model, ())
                if self._open(each.replica_id) < each.slots
            ]
            if free:
                request.replica, request.ends_at = free[0], self.now + request.seconds

    def _open(self, replica_id: ReplicaId) -> int:
        return sum(request.replica == replica_id for request in self.requests)

    def _usage(self, replica_id: ReplicaId) -> Usage:
        if count := self._open(replica_id):
            return Usage(count, 0.0, 0.0)
        return Usage(0, self.now - self.ended_at.get(replica_id, -inf) + 0.001, 0.0)

    def _plan(self) -> Plan:
        seen = self.state()
        self.history = record_demand(self.history, seen, self.now)
        usage = {row: self._usage(row) for row in self.rows}
        decided = plan_for(seen, self.now, self._ids, usage=usage, limits=self.limits, history=self.history)
        gone = [self.rows.pop(entry.replica_id) for entry in decided.delete]
        self.history = record_released(self.history, seen, gone, self.now)
        for entry in decided.set_desired:
            self.rows[entry.replica_id] = replace(self.rows[entry.replica_id], desired=entry.desired)
        self.rows |= {entry.replica.id: entry.replica for entry in decided.start}
        self.plans.append(decided)
        return decided

    def _work(self) -> None:
        """The next state of every replica."""
        for row in list(self.rows.values()):
            if row.desired is not Desired.RUN and not self._open(row.id):
                self._become(row, Observed.GONE)
            elif row.observed is Observed.PLACED and row.desired is Desired.RUN:
                self._become(row, Observed.READY)

    def _become(self, row: Replica, observed: Observed) -> None:
        if row.observed is not observed:
            since = self.now + 1
            self.rows[row.id] = replace(row, observed=observed, since=since, address=Address("127.0.0.1:1"))
