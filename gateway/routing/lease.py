"""The right to have one request on a replica, from the pick to the last byte."""

from collections.abc import Callable
from types import TracebackType
from typing import Self

from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate


class Lease:
    """Held by one request scope. Ending it is synchronous and idempotent: no cancel can skip it (pitfall 13)."""

    __slots__ = ("_end", "called", "candidate", "claimed", "opened_at", "origin", "refused")

    def __init__(self, candidate: Candidate, origin: Origin, opened_at: float, end: "Callable[[Lease], None]") -> None:
        self.candidate = candidate
        """Strict mode may yet move it to another one, before the call."""
        self.origin = origin
        self.opened_at = opened_at
        self.called = False
        """The replica has the request, or may have it. Before, its holder still waits to hear whether it lives."""
        self.claimed = True
        """Others count it. False in strict mode, until the registry has said which replica it is for."""
        self.refused = False
        """The replica said that it has no free slot, so the end of this lease frees none."""
        self._end: Callable[[Lease], None] | None = end

    def release(self) -> None:
        """Ends the lease, so that others may have the slot; further calls do nothing."""
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
