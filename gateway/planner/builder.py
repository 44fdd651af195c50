"""A plan while it grows, over the fleet as it will be once the plan is carried out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import LoadFailure, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.planner.placement import Placement
from gateway.planner.plan import DeleteReplica, Pending, Plan, SetDesired, SetLoadFailure, StartReplica
from gateway.planner.working_state import WorkingState

BACKOFF_FIRST_SECONDS: Final = 10.0
BACKOFF_MAX_SECONDS: Final = 300.0


@dataclass
class PlanBuilder:
    """Collects the changes of one plan, and applies each to the working state at once."""

    working: WorkingState
    new_replica_id: Callable[[], ReplicaId]
    failures: dict[ModelName, LoadFailure]
    start: list[StartReplica] = field(default_factory=list)
    set_desired: dict[ReplicaId, SetDesired] = field(default_factory=dict)
    """One per replica: a later reason to end it more quickly takes the place of an earlier one."""
    delete: list[DeleteReplica] = field(default_factory=list)
    set_failures: list[SetLoadFailure] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    unsatisfiable: dict[ModelName, str] = field(default_factory=dict)
    again_at: float = inf

    def start_replica(self, spec: ModelSpec, place: Placement, because: str) -> None:
        """Plans a new replica of the model at `place`; `because` is the reason that is logged."""
        replica = Replica(
            id=self.new_replica_id(),
            model=spec.name,
            node_id=place.node.id,
            slot=place.slot,
            revision=spec.revision,
            desired=Desired.RUN,
            observed=Observed.PLACED,
            parallel=spec.slots,
            since=self.working.now,
        )
        self.working.put(replica)
        self.start.append(StartReplica(replica, because, place.scores))

    def reserve(self, spec: ModelSpec, place: Placement) -> None:
        """Nobody else gets the room that is being made."""
        self.working.reserve(spec, place.node)
        self.replan_at(place.again_at)

    def end_replica(self, replica: Replica, desired: Desired, because: str) -> None:
        """Plans that the replica is drained or stopped, in place of what was planned for it before."""
        self.set_desired[replica.id] = SetDesired(replica.id, desired, because)
        self.working.put(replace(replica, desired=desired))

    def delete_replica(self, replica: Replica, because: str) -> None:
        """Plans that the record of a replica which is over is deleted."""
        self.delete.append(DeleteReplica(replica.id, because))
        self.working.delete(replica)

    def record_failure(self, replica: Replica, cause: str, *, forgives_first: bool = False) -> None:
        """A load has failed, which matters if it was one of the model as it is now. `forgives_first`: the first of a
        row is tried again at once."""
        spec = self.working.state.models.get(replica.model)
        if spec is None or spec.revision != replica.revision:
            return
        first = 0 if forgives_first else 1
        attempts = self.failures[spec.name].attempts + 1 if spec.name in self.failures else first
        failure = LoadFailure(cause, attempts, self.working.now + backoff_seconds(attempts))
        self.failures[spec.name] = failure
        self.set_failures.append(
            SetLoadFailure(spec.name, failure, f"failure {attempts} in a row" if attempts else "it broke")
        )

    def record_success(self, spec: ModelSpec) -> None:
        """Clears the model's load failure, since it is loaded now. Raises `KeyError` if it has none."""
        del self.failures[spec.name]
        self.set_failures.append(SetLoadFailure(spec.name, None, "it is loaded"))

    def replan_at(self, at: float | None) -> None:
        """Time alone may change something then."""
        if at is not None:
            self.again_at = min(self.again_at, at)

    def finish(self) -> Plan:
        """Returns the plan with all that was collected."""
        return Plan(
            start=tuple(self.start),
            set_desired=tuple(self.set_desired.values()),
            delete=tuple(self.delete),
            set_failures=tuple(self.set_failures),
            pending=tuple(self.pending),
            unsatisfiable=MappingProxyType(self.unsatisfiable),
            again_at=self.again_at if self.again_at < inf else None,
        )


def backoff_seconds(attempts: int) -> float:
    """How long a model is left alone after that many failures in a row (L9); 0: a replica that was ready has broken,
    for the first time."""
    return 0.0 if attempts == 0 else min(BACKOFF_FIRST_SECONDS * 2.0 ** min(attempts - 1, 30), BACKOFF_MAX_SECONDS)
