"""The plan: one list of entries for each verb, and each entry says why."""

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
    """Creates `replica` on the node and in the slot that it names."""

    replica: Replica
    because: str
    scores: tuple[NodeScore, ...] = ()
    """The values by which this node was chosen, the most important first."""


@dataclass(frozen=True)
class SetDesired:
    """Drains or stops the replica."""

    replica_id: ReplicaId
    desired: Desired
    because: str


@dataclass(frozen=True)
class DeleteReplica:
    """Deletes the record of a replica that is over."""

    replica_id: ReplicaId
    because: str


@dataclass(frozen=True)
class SetLoadFailure:
    """Writes a model's load failure, or clears it if `failure` is None."""

    model: ModelName
    failure: LoadFailure | None
    because: str


@dataclass(frozen=True)
class Pending:
    """Says that a replica of the model is wanted and can't be started now."""

    model: ModelName
    because: str
    is_shortage: bool = False
    """Whether no node has room for it, and nothing is under way that makes any."""


@dataclass(frozen=True)
class Plan:
    """The changes of one round of planning, and the replicas that it could not start."""

    start: tuple[StartReplica, ...] = ()
    set_desired: tuple[SetDesired, ...] = ()
    delete: tuple[DeleteReplica, ...] = ()
    set_load_failure: tuple[SetLoadFailure, ...] = ()
    pending: tuple[Pending, ...] = ()
    unsatisfiable: Mapping[ModelName, str] = field(default_factory=lambda: MappingProxyType({}))
    """The models that have fewer replicas than their minimum because there is no room, each with the reason (P5)."""
    replan_at: float | None = None
    """The time at which the same state leads to another plan, in seconds of the registry's clock. None means never."""

    def as_write(self) -> ControlWrite:
        """Returns the plan's changes in the form in which the registry writes them."""
        return ControlWrite(
            create=tuple(entry.replica for entry in self.start),
            set_desired=tuple((entry.replica_id, entry.desired) for entry in self.set_desired),
            delete=tuple(entry.replica_id for entry in self.delete),
            set_failures=tuple((entry.model, entry.failure) for entry in self.set_load_failure),
        )


def reasons(plan: Plan) -> Iterable[tuple[str, str, str]]:
    """Yields verb, subject and reason of everything that the plan changes, for the log."""
    yield from (("start", f"{entry.replica.model}/{entry.replica.id}", entry.because) for entry in plan.start)
    yield from ((entry.desired.value, entry.replica_id, entry.because) for entry in plan.set_desired)
    yield from (("delete", entry.replica_id, entry.because) for entry in plan.delete)
    yield from (("set_load_failure", entry.model, entry.because) for entry in plan.set_load_failure)
