"""One request on its way to a replica: its place in its model's queue, and what it has tried so far."""

from dataclasses import dataclass, field

import trio

from gateway.domain.errors import GatewayError
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.inference import Origin
from gateway.routing.decisions import Decision
from gateway.routing.load_tracker import Lease


@dataclass(eq=False, slots=True)
class PendingRequest:
    """The place of one request in its model's queue, and what its attempts came to. The request keeps it when it is
    sent to another replica, so it never queues behind later requests."""

    number: int
    model: ModelName
    origin: Origin
    since: float
    decision: Decision
    reason: str = "first"
    """Why the next pick is made: `first`, or the cause of the last re-route."""
    excluded: set[ReplicaId] = field(default_factory=set)
    """The replicas that failed this request. It never tries one of them again."""
    found_busy: set[ReplicaId] = field(default_factory=set)
    """The replicas that it was given and left because they did not answer a probe."""
    attempts_failed: int = 0
    losses: int = 0
    """The number of attempts that failed after the backend had the request."""
    lease: Lease | None = None
    failure: GatewayError | None = None
    """The error of the request, set instead of a lease if it must stop waiting."""
    wake: trio.Event | None = None
    """The event that its task waits for. Most requests never wait, and have none."""

    def __repr__(self) -> str:
        state = "refused" if self.failure is not None else "open" if self.lease is None else "served"
        name = f"{self.number} {state} model={self.model} request={self.origin.request_id}"
        return f"<PendingRequest {name} attempts={len(self.decision.attempts)}>"

    def wake_up(self) -> None:
        """Has its task look again whether it got a lease. Does nothing if it has not begun to wait."""
        if self.wake is not None:
            self.wake.set()

    def record_failure(self, replica_id: ReplicaId, *, was_lost: bool) -> None:
        """Records that an attempt has failed by the replica's fault. `was_lost` says that the backend had the request
        already."""
        self.excluded.add(replica_id)
        self.attempts_failed += 1
        self.losses += was_lost

    @property
    def caller(self) -> str:
        """The name of the request's API key, or the name that stands for callers without a key."""
        return self.origin.caller
