"""Decides what follows from each call of a request: whether it may be retried and where, and what the call says about
its replica."""

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
from gateway.domain.ids import ReplicaId
from gateway.domain.routability import Candidate
from gateway.routing.admission import Admission, Ticket
from gateway.routing.decisions import Attempt
from gateway.routing.lease import Lease
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.open_calls import OpenCall, OpenCalls
from gateway.routing.probe_cache import BUSY_SECONDS, ProbeCache

log = structlog.get_logger(__name__)

R = TypeVar("R")

RERUNS_AFTER_LOSS_MAX: Final = 1
"""A request that reached a backend which then vanished is retried once and not on all replicas, because the request
itself may be what kills them."""


@dataclass
class Passage:
    """One lease together with the call that it is for. Leaving this context ends the lease, whatever happened."""

    lease: Lease
    target: Target
    attempt: Attempt
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
            always = self.candidate.refuses_when_full
            self._call = OpenCall(self.calls, self.target, answers_always=always, on_lost=self.end_call)
        return await self._call.wait(answer)

    @property
    def candidate(self) -> Candidate:
        """Returns the replica of the lease. In strict mode it may change before the call."""
        return self.lease.candidate

    def record_progress(self, *, done: bool) -> None:
        """Records an answer of the backend, which proves that it lives. `done` says that it was the last part."""
        if self.is_over:
            return
        self.probes.record_alive(self.target.replica_id)
        self.loads.record_success(self.candidate)
        if done:
            self.attempt.end("served")

    def record_failure(self, cause: str) -> None:
        """Records a failure that the replica caused. It counts as load on the replica for a while."""
        if self.is_over:
            return
        self.probes.record_failure(self.target.replica_id)
        self.loads.record_failure(self.target.replica_id, trio.current_time())
        self.attempt.end(cause)

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
        self._close_call()
        self.lease.release()

    def _close_call(self) -> None:
        if self._call is not None:
            self._call.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_call()
        if self.attempt.outcome == "running":
            self._record_error(error)
        may_go_on = self.attempt.outcome == "left" and self.lease.called and not self.candidate.refuses_when_full
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
                self.probes.record_alive(self.target.replica_id)  # A replica that refuses a request is alive.
                self.attempt.end("refused")
            case _:
                self.attempt.end("left")


class RetryState:
    """The attempts of one request so far, and the rules for the next one."""

    def __init__(self, ticket: Ticket, admission: Admission, attempts: int, reroutes: Counter[str]) -> None:
        self.ticket = ticket
        self.reason = "first"
        """The reason for the next pick: `first`, or the cause of the last retry."""
        self._admission = admission
        self._attempts_left = attempts
        self._reruns_left = RERUNS_AFTER_LOSS_MAX
        self._reroutes = reroutes
        self._found_busy: set[ReplicaId] = set()

    def accepts(self, outcome: ProbeOutcome, passage: Passage) -> bool:
        """Returns whether the call may be made. If not, the lease has to be given back and another replica picked.

        A busy replica is avoided once. If the next pick returns the same replica, there is no better one.
        """
        replica_id = passage.target.replica_id
        passage.attempt.probe = outcome.value
        if outcome is ProbeOutcome.BUSY:
            self._admission.loads.record_busy(replica_id, trio.current_time() + BUSY_SECONDS)
            if replica_id not in self._found_busy:
                self._found_busy.add(replica_id)
                passage.attempt.end("busy")
                self._reroute("busy", passage, "it did not answer a probe")
                return False
        if not outcome.may_serve:
            self.record(Unreachable(f"the probe said {outcome}"), passage)
            return False
        passage.lease.called = True
        return True

    def record(self, error: RouteError, passage: Passage) -> None:
        """Prepares the next attempt, or raises `BackendFailed` if there is to be none.

        - refused, full: no attempt; the replica is asked again later;
        - refused, draining: no attempt, but another replica;
        - stale, unreachable: another replica, until the attempts are used up;
        - lost after the request was sent: the same, but only once.
        """
        cause = _cause(error)
        self._reroute(cause, passage, str(error))
        if isinstance(error, Refused):
            passage.attempt.end(cause)
            passage.probes.record_alive(passage.target.replica_id)
            if error.draining:
                self.ticket.excluded.add(passage.target.replica_id)
            else:
                self._admission.record_refusal(self.ticket, passage.lease)
            return
        passage.record_failure(cause)
        if isinstance(error, Stale):
            passage.probes.report_broken(
                passage.target.replica_id, f"it answers, but not as the replica it was: {error}"
            )
        self.ticket.excluded.add(passage.target.replica_id)
        self._attempts_left -= 1
        self._reruns_left -= isinstance(error, Lost)
        if self._attempts_left <= 0 or self._reruns_left < 0:
            raise BackendFailed(f"The backend could not serve the request ({cause}: {error}).") from error

    def record_no_slot(self, passage: Passage) -> None:
        """Records that the registry knows no free slot (strict mode). This is no attempt, and the request keeps
        waiting."""
        passage.attempt.end("full")
        self._reroute("full", passage, "no free slot, says the registry")

    def _reroute(self, cause: str, passage: Passage, detail: str) -> None:
        self.reason = cause
        self._reroutes[cause] += 1
        # A full replica is normal under load, several times per request with many gateways.
        write = log.debug if cause == "full" else log.info
        write("request.rerouted", cause=cause, replica_id=passage.target.replica_id, detail=detail)


def _cause(error: RouteError) -> str:
    if isinstance(error, Refused):
        return "draining" if error.draining else "full"
    return type(error).__name__.lower()
