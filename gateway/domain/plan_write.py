"""What a plan writes to the registry, in one transaction under the leader's epoch. Pure."""

from dataclasses import dataclass

from gateway.domain.cluster import LoadFailure, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired


@dataclass(frozen=True)
class ControlWrite:
    """What one planning round changes. Applied as one transaction or not at all.

    forget    -- rows to delete; an unknown replica is skipped
    place     -- new rows; one whose id or (node, model, slot) is taken, or whose node is unknown, is skipped (R10)
    desire    -- replica -> what is wanted of it now; an unknown replica is skipped
    failures  -- model -> its load failure, or None to clear it; an unknown model is skipped

    In this order: a slot that is freed here can be placed on here.
    """

    create: tuple[Replica, ...] = ()
    set_desired: tuple[tuple[ReplicaId, Desired], ...] = ()
    delete: tuple[ReplicaId, ...] = ()
    set_failures: tuple[tuple[ModelName, LoadFailure | None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.create or self.set_desired or self.delete or self.set_failures)
