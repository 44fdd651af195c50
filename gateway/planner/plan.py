"""What a plan consists of: one record per verb, each of which says why."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from gateway.domain.cluster import LoadFailure, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired
from gateway.domain.plan_write import ControlWrite
from gateway.planner.placement import NodeScore


@dataclass(frozen=True)
class StartReplica:
    """Create `replica` on the node and in the slot that it names."""

    replica: Replica
    because: str
    scores: tuple[NodeScore, ...] = ()
    """Why on this node: what was compared, in order; the least wins."""


@dataclass(frozen=True)
class SetDesired:
    """Let `replica_id` be drained or stopped."""

    replica_id: ReplicaId
    desired: Desired
    because: str


@dataclass(frozen=True)
class DeleteReplica:
    """Delete the record of a replica that is over."""

    replica_id: ReplicaId
    because: str


@dataclass(frozen=True)
class SetLoadFailure:
    """Record or clear (`None`) a model's load failure."""

    model: ModelName
    failure: LoadFailure | None
    because: str


@dataclass(frozen=True)
class Pending:
    """A replica is wanted and can't be started now."""

    model: ModelName
    because: str
    is_shortage: bool = False
    """For want of room, and nothing is under way that makes any."""


@dataclass(frozen=True)
class Plan:
    """Lists what one round of planning changes, and which replicas it could not start."""

    start: tuple[StartReplica, ...] = ()
    set_desired: tuple[SetDesired, ...] = ()
    delete: tuple[DeleteReplica, ...] = ()
    set_failures: tuple[SetLoadFailure, ...] = ()
    pending: tuple[Pending, ...] = ()
    unsatisfiable: Mapping[ModelName, str] = field(default_factory=lambda: MappingProxyType({}))
    """Models that have fewer replicas than they have to have, for want of room (P5)."""
    again_at: float | None = None
    """When the same state has to be planned again because time alone changes the outcome (registry clock)."""

    def as_write(self) -> ControlWrite:
        """Returns the plan's changes in the form in which the registry writes them."""
        return ControlWrite(
            create=tuple(entry.replica for entry in self.start),
            set_desired=tuple((entry.replica_id, entry.desired) for entry in self.set_desired),
            delete=tuple(entry.replica_id for entry in self.delete),
            set_failures=tuple((entry.model, entry.failure) for entry in self.set_failures),
        )


def reasons(plan: Plan) -> Iterable[tuple[str, str, str]]:
    """(verb, subject, because) of everything the plan changes, for the log."""
    yield from (("start", f"{entry.replica.model}/{entry.replica.id}", entry.because) for entry in plan.start)
    yield from ((entry.desired.value, entry.replica_id, entry.because) for entry in plan.set_desired)
    yield from (("forget", entry.replica_id, entry.because) for entry in plan.delete)
    yield from (("mark", entry.model, entry.because) for entry in plan.set_failures)
