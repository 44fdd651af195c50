"""One attempt to have a request served, what it teaches of its replica, and whether the request is tried elsewhere."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self, TypeVar

import structlog
import trio

from gateway.backends.protocol import Lost, Refused, RouteError, Stale, Target, Unreachable
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.errors import BackendFailed, BadRequest, GatewayError
from gateway.routing.admission import Admission
from gateway.routing.decisions import AttemptRecord
from gateway.routing.load_tracker import Lease, LoadTracker
from gateway.routing.open_calls import OpenCall, OpenCalls
from gateway.routing.pending_request import PendingRequest
from gateway.routing.probe_cache import BUSY_SECONDS, ProbeCache

log = structlog.get_logger(__name__)

R = TypeVar("R")

RERUNS_AFTER_LOSS_MAX: Final = 1
"""A request that reached a backend which then vanished is retried once and not on all replicas, because the request
itself may be what kills them."""


@dataclass
class Attempt:
    """One lease with the call that it is for. Leaving it ends the lease, whatever happened."""

    lease: Lease
    target: Target
    record: AttemptRecord
    loads: LoadTracker
    probes: ProbeCache
    calls: OpenCalls = field(default_factory=OpenCalls)
    """The list of open calls, which contains this call while it waits."""
    is_over: bool = field(default=False, init=False)
    """Whether the backend has ended the call. The unread rest of the answer is then in this process and says nothing
    about the replica any more."""
    _call: OpenCall | None = field(default=None, init=False)

    async def wait(self, answer: Callable[[], Awaitable[R]]) -> R:
        """Waits for the next part of the backend's answer. Raises `Lost`, too, if the replica becomes unreachable
        meanwhile."""
        if self._call is None:
            always = self.lease.candidate.refuses_when_full
            self._call = self.calls.begin(self.target, answers_always=always, on_lost=self.end_call)
        return await self._call.wait(answer)

    def record_progress(self, *, done: bool) -> None:
        """Records an answer of the backend, which proves that it lives. `done` says that it was the last part."""
        if self.is_over:
            return
        self.probes.record_alive(self.target.replica_id)
        self.loads.record_success(self.lease.candidate)
        if done:
            self.record.end("served")

    def record_failure(self, cause: str) -> None:
        """Records a failure that the replica caused. It counts as load on the replica for a while."""
        if self.is_over:
            return
        self.probes.record_failure(self.target.replica_id)
        self.loads.record_failure(self.target.replica_id, trio.current_time())
        self.record.end(cause)

    def end_call(self, error: RouteError | GatewayError | None) -> None:
        """Ends the lease, because the backend has finished the call (`OnEnd`). Its slot is free, whatever the client
        has read so far."""
        if error is None:
            self.record_progress(done=True)
        elif isinstance(error, RouteError):
            self.record_failure("lost")
        else:
            self._record_error(error)
        self.is_over = True
        if self._call is not None:
            self.calls.end(self._call)
        self.lease.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._call is not None:
            self.calls.end(self._call)
        if self.record.outcome == "running":
            self._record_error(error)
        may_go_on = self.record.outcome == "left" and self.lease.called and not self.lease.candidate.refuses_when_full
        if may_go_on:
            self.probes.hold_until_answered(self.lease, self.target)
        else:
            self.lease.release()

    def _record_error(self, error: BaseException | None) -> None:
        """Records the outcome of a call whose outcome nobody has recorded yet."""
        match error:
            case BackendFailed():
                self.record_failure("failed")
            case BadRequest():
                self.probes.record_alive(self.target.replica_id)  # it took the trouble to refuse the request
                self.record.end("refused")
            case _:
                self.record.end("left")


class Retries:
    """Decides for all requests whether they are tried elsewhere, and counts how often they were."""

    def __init__(self, admission: Admission, attempts_max: int) -> None:
        """`attempts_max` limits the attempts of one request. An attempt that met a busy, full or draining replica does
        not count."""
        self._admission = admission
        self._attempts_max = attempts_max
        self.counts: Counter[str] = Counter()
        """The number of requests that were sent to another replica, by cause."""

    def accepts(self, request: PendingRequest, outcome: ProbeOutcome, attempt: Attempt) -> bool:
        """Returns whether the call may be made. If not, the lease has to be given back and another replica picked.

        A busy replica is avoided once. If the next pick returns the same replica, there is no better one.
        """
        replica_id = attempt.target.replica_id
        attempt.record.probe = outcome.value
        if outcome is ProbeOutcome.BUSY:
            self._admission.loads.record_busy(replica_id, trio.current_time() + BUSY_SECONDS)
            if replica_id not in request.found_busy:
                request.found_busy.add(replica_id)
                attempt.record.end("busy")
                self._reroute(request, "busy", attempt, "it did not answer a probe")
                return False
        elif outcome is not ProbeOutcome.ALIVE:
            self.record(request, Unreachable(f"the probe said {outcome}"), attempt)
            return False
        attempt.lease.called = True
        return True

    def record(self, request: PendingRequest, error: RouteError, attempt: Attempt) -> None:
        """Prepares the next attempt, or raises `BackendFailed` if there is to be none.

        - refused, full: no attempt; the replica is asked again later;
        - refused, draining: no attempt, but another replica;
        - stale, unreachable: another replica, until the attempts are used up;
        - lost after the request was sent: the same, but only once.
        """
        cause, replica_id = _cause(error), attempt.target.replica_id
        self._reroute(request, cause, attempt, str(error))
        if isinstance(error, Refused):
            attempt.record.end(cause)
            attempt.probes.record_alive(replica_id)
            if error.draining:
                request.excluded.add(replica_id)
            else:
                self._admission.record_refusal(request, attempt.lease)
            return
        attempt.record_failure(cause)
        if isinstance(error, Stale):
            attempt.probes.report_broken(replica_id, f"it answers, but not as the replica it was: {error}")
        request.record_failure(replica_id, was_lost=isinstance(error, Lost))
        if request.attempts_failed >= self._attempts_max or request.losses > RERUNS_AFTER_LOSS_MAX:
            raise BackendFailed(f"The backend could not serve the request ({cause}: {error}).") from error

    def record_no_slot(self, request: PendingRequest, attempt: Attempt) -> None:
        """Records that the registry has no free slot (strict mode). That is no attempt, and the request keeps
        waiting."""
        attempt.record.end("full")
        self._reroute(request, "full", attempt, "no free slot, says the registry")

    def _reroute(self, request: PendingRequest, cause: str, attempt: Attempt, detail: str) -> None:
        request.reason = cause
        self.counts[cause] += 1
        # A full replica is everyday life under load, several times a request with many gateways.
        write = log.debug if cause == "full" else log.info
        write("request.rerouted", cause=cause, replica_id=attempt.target.replica_id, detail=detail)


def _cause(error: RouteError) -> str:
    if isinstance(error, Refused):
        return "draining" if error.draining else "full"
    return type(error).__name__.lower()
