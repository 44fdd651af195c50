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

    ground: WorkingState
    new_replica_id: Callable[[], ReplicaId]
    failures: dict[ModelName, LoadFailure]
    start: list[StartReplica] = field(default_factory=list)
    want: dict[ReplicaId, SetDesired] = field(default_factory=dict)
    """One per replica: a later reason to end it more quickly takes the place of an earlier one."""
    forget: list[DeleteReplica] = field(default_factory=list)
    mark: list[SetLoadFailure] = field(default_factory=list)
    wait: list[Pending] = field(default_factory=list)
    unsatisfiable: dict[ModelName, str] = field(default_factory=dict)
    again_at: float = inf

    def begin(self, spec: ModelSpec, place: Placement, because: str) -> None:
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
            since=self.ground.now,
        )
        self.ground.put(replica)
        self.start.append(StartReplica(replica, because, place.scores))

    def claim(self, spec: ModelSpec, place: Placement) -> None:
        """Nobody else gets the room that is being made."""
        self.ground.claim(spec, place.node)
        self.look_again(place.again_at)

    def let_end(self, replica: Replica, desired: Desired, because: str) -> None:
        """Plans that the replica is drained or stopped, in place of what was planned for it before."""
        self.want[replica.id] = SetDesired(replica.id, desired, because)
        self.ground.put(replace(replica, desired=desired))

    def drop(self, replica: Replica, because: str) -> None:
        """Plans that the record of a replica which is over is deleted."""
        self.forget.append(DeleteReplica(replica.id, because))
        self.ground.drop(replica)

    def note_failure(self, replica: Replica, cause: str, *, forgives_first: bool = False) -> None:
        """A load has failed, which matters if it was one of the model as it is now. `forgives_first`: the first of a
        row is tried again at once."""
        spec = self.ground.state.models.get(replica.model)
        if spec is None or spec.revision != replica.revision:
            return
        first = 0 if forgives_first else 1
        attempts = self.failures[spec.name].attempts + 1 if spec.name in self.failures else first
        failure = LoadFailure(cause, attempts, self.ground.now + backoff_seconds(attempts))
        self.failures[spec.name] = failure
        self.mark.append(SetLoadFailure(spec.name, failure, f"failure {attempts} in a row" if attempts else "it broke"))

    def note_success(self, spec: ModelSpec) -> None:
        """Clears the model's load failure, since it is loaded now. Raises `KeyError` if it has none."""
        del self.failures[spec.name]
        self.mark.append(SetLoadFailure(spec.name, None, "it is loaded"))

    def look_again(self, at: float | None) -> None:
        """Time alone may change something then."""
        if at is not None:
            self.again_at = min(self.again_at, at)

    def finish(self) -> Plan:
        """Returns the plan with all that was collected."""
        return Plan(
            start=tuple(self.start),
            want=tuple(self.want.values()),
            forget=tuple(self.forget),
            mark=tuple(self.mark),
            wait=tuple(self.wait),
            unsatisfiable=MappingProxyType(self.unsatisfiable),
            again_at=self.again_at if self.again_at < inf else None,
        )


def backoff_seconds(attempts: int) -> float:
    """How long a model is left alone after that many failures in a row (L9); 0: a replica that was ready has broken,
    for the first time."""
    return 0.0 if attempts == 0 else min(BACKOFF_FIRST_SECONDS * 2.0 ** min(attempts - 1, 30), BACKOFF_MAX_SECONDS)
