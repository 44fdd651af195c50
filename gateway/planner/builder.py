"""A plan while it grows. Each change is applied to the working state at once, so that later decisions see it."""

from collections.abc import Callable
from dataclasses import replace
from math import inf
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import LoadFailure, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.pacing import doubled_seconds
from gateway.planner.placement import Placement
from gateway.planner.plan import DeleteReplica, Pending, Plan, SetDesired, SetLoadFailure, StartReplica
from gateway.planner.watchdog import Action
from gateway.planner.working_state import WorkingState

BACKOFF_FIRST_SECONDS: Final = 10.0
BACKOFF_MAX_SECONDS: Final = 300.0


class PlanBuilder:
    """Collects the changes of one plan."""

    def __init__(self, working: WorkingState, new_replica_id: Callable[[], ReplicaId]) -> None:
        self.working = working
        self.failures = dict(working.snapshot.failures)
        """The load failures as they will be once the plan is carried out."""
        self._new_replica_id = new_replica_id
        self._start: list[StartReplica] = []
        self._set_desired: dict[ReplicaId, SetDesired] = {}
        self._delete: list[DeleteReplica] = []
        self._set_load_failure: list[SetLoadFailure] = []
        self._pending: list[Pending] = []
        self._unsatisfiable: dict[ModelName, str] = {}
        self._replan_at = inf

    def start(self, spec: ModelSpec, placement: Placement, because: str) -> None:
        """Plans a new replica of the model. The log shows `because` as the reason."""
        replica = Replica(
            id=self._new_replica_id(),
            model=spec.name,
            node_id=placement.node.id,
            slot=placement.slot,
            revision=spec.revision,
            desired=Desired.RUN,
            observed=Observed.PLACED,
            parallel=spec.slots,
            since=self.working.now,
        )
        self.working.put(replica)
        self._start.append(StartReplica(replica, because, placement.scores))

    def set_desired(self, replica: Replica, desired: Desired, because: str) -> None:
        """Plans that the replica is drained or stopped, in place of what was planned for it before."""
        self._set_desired[replica.id] = SetDesired(replica.id, desired, because)
        self.working.put(replace(replica, desired=desired))

    def act(self, replica: Replica, action: Action) -> None:
        """Plans the action, or plans to look again when time alone leads to one."""
        if action.desired is not None:
            self.set_desired(replica, action.desired, action.because)
        else:
            self.replan_by(self.working.now + action.replan_in_seconds)

    def delete(self, replica: Replica, because: str) -> None:
        """Plans that the record of a replica which is over is deleted."""
        self._delete.append(DeleteReplica(replica.id, because))
        self.working.remove(replica)

    def record_load_failure(self, replica: Replica, cause: str, *, is_first_forgiven: bool = False) -> None:
        """Plans that the model's load failure is written, if the replica is of the model's current revision.

        With `is_first_forgiven`, the first failure in a row does not delay the next try.
        """
        spec = self.working.snapshot.models.get(replica.model)
        if spec is None or spec.revision != replica.revision:
            return
        attempts = _next_attempts(self.failures.get(spec.name), was_ready=is_first_forgiven)
        failure = LoadFailure(cause, attempts, self.working.now + backoff_seconds(attempts))
        self.failures[spec.name] = failure
        because = f"failure {attempts} in a row" if attempts > 0 else f"it broke {failure.times_broken} times in a row"
        self._set_load_failure.append(SetLoadFailure(spec.name, failure, because))

    def clear_load_failure(self, spec: ModelSpec) -> None:
        """Plans that the model's load failure is cleared, since it is loaded now. Raises `KeyError` if it has none."""
        del self.failures[spec.name]
        self._set_load_failure.append(SetLoadFailure(spec.name, None, "it is loaded"))

    def add_pending(self, spec: ModelSpec, because: str, *, is_shortage: bool = False) -> None:
        """Notes that a replica of the model is wanted and can't be started now."""
        self._pending.append(Pending(spec.name, because, is_shortage))

    def add_unsatisfiable(self, spec: ModelSpec, because: str) -> None:
        """Notes that the model has fewer replicas than it has to have."""
        self._unsatisfiable[spec.name] = because

    def replan_by(self, at: float | None) -> None:
        """Plans again at that time at the latest (seconds of the registry's clock). None changes nothing."""
        if at is not None:
            self._replan_at = min(self._replan_at, at)

    def build(self) -> Plan:
        """Returns the plan with all changes."""
        return Plan(
            start=tuple(self._start),
            set_desired=tuple(self._set_desired.values()),
            delete=tuple(self._delete),
            set_load_failure=tuple(self._set_load_failure),
            pending=tuple(self._pending),
            unsatisfiable=MappingProxyType(self._unsatisfiable),
            replan_at=self._replan_at if self._replan_at < inf else None,
        )


def _next_attempts(before: LoadFailure | None, *, was_ready: bool) -> int:
    """Returns `LoadFailure.attempts` after one more failure. Once a load has failed, what breaks counts upwards too."""
    if was_ready:
        return 0 if before is None else before.attempts + (1 if before.attempts > 0 else -1)
    return 1 if before is None else abs(before.attempts) + 1


def backoff_seconds(attempts: int) -> float:
    """Returns how long a model is left alone after that many failures in a row (`LoadFailure.attempts`, L9).

    It is 0 for no attempt: a replica that was ready has broken for the first time.
    """
    return 0.0 if attempts == 0 else doubled_seconds(BACKOFF_FIRST_SECONDS, abs(attempts) - 1, BACKOFF_MAX_SECONDS)
