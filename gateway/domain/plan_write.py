"""The changes that a plan writes to the registry, in one transaction under the leader's epoch. Pure."""

from dataclasses import dataclass

from gateway.domain.cluster import LoadFailure, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired


@dataclass(frozen=True)
class ControlWrite:
    """The changes of one planning round. They are applied as one transaction or not at all.

    delete        rows to delete; an unknown replica is skipped
    create        new rows; one whose id or (node, model, slot) is taken, or whose node is unknown, is skipped (R10)
    set_desired   the state that is wanted of a replica from now on; an unknown replica is skipped
    set_failures  the load failure of a model, or None to clear it; an unknown model is skipped

    They are applied in this order, so a new replica may take a slot that a deleted one had.
    """

    create: tuple[Replica, ...] = ()
    set_desired: tuple[tuple[ReplicaId, Desired], ...] = ()
    delete: tuple[ReplicaId, ...] = ()
    set_failures: tuple[tuple[ModelName, LoadFailure | None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.create or self.set_desired or self.delete or self.set_failures)
