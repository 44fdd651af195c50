"""The right to have one request on a replica, from the pick to the last byte."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate


class Lease:
    """The right to have one request on a replica, held by the scope of that request. Ending it is synchronous and
    idempotent, so no cancel can skip it (pitfall 13)."""

    __slots__ = ("_end", "called", "candidate", "confirmed", "opened_at", "origin", "refused")

    def __init__(self, candidate: Candidate, origin: Origin, opened_at: float, end: "Callable[[Lease], None]") -> None:
        self.candidate = candidate
        """The replica. Strict mode may move the lease to another one before the call."""
        self.origin = origin
        self.opened_at = opened_at
        self.called = False
        """Whether the replica has the request, or may have it. Before that, the request still waits for a probe of the
        replica."""
        self.confirmed = True
        """Whether peers count the lease. It is False in strict mode until the registry has confirmed the replica."""
        self.refused = False
        """Whether the replica refused the request because it is full. Then the end of this lease frees no slot."""
        self._end: Callable[[Lease], None] | None = end

    def release(self) -> None:
        """Ends the lease, so that another request can have the slot. Further calls do nothing."""
        if self._end is not None:
            end, self._end = self._end, None
            end(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        state = "open" if self._end is not None else "ended"
        return f"<Lease {state} replica={self.candidate.replica_id} request={self.origin.request_id}>"
