"""One request's way over replicas: how often it may go on and where not, and what each call teaches of its replica."""

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
"""A request that has reached a backend which then vanished is sent to one more, not to all of them: it may itself be
what kills them."""


@dataclass
class Passage:
    """One lease with the call that it is for. Leaving it ends the lease, whatever happened."""

    lease: Lease
    target: Target
    attempt: Attempt
    loads: LoadTracker
    probes: ProbeCache
    calls: OpenCalls = field(default_factory=OpenCalls)
    """Where the call is entered while it waits."""
    is_over: bool = field(default=False, init=False)
    """The call has ended by itself; what is still unread of its answer is in our hands, and says nothing any more of
    how the replica does."""
    _call: OpenCall | None = field(default=None, init=False)

    async def wait(self, answer: Callable[[], Awaitable[R]]) -> R:
        """What the backend answers next. Raises `Lost`, too, when the replica is found to be out of reach meanwhile."""
        if self._call is None:
            always = self.candidate.refuses_when_full
            self._call = OpenCall(self.calls, self.target, answers_always=always, on_lost=self.end_call)
        return await self._call.wait(answer)

    @property
    def candidate(self) -> Candidate:
        """Returns the replica that the lease is on; in strict mode it may change before the call."""
        return self.lease.candidate

    def note_progress(self, *, done: bool) -> None:
        """The backend answered something: a proof of life. `done`: it was the last thing."""
        if self.is_over:
            return
        self.probes.note_alive(self.target.replica_id)
        self.loads.note_success(self.candidate)
        if done:
            self.attempt.end("served")

    def note_failure(self, cause: str) -> None:
        """The call failed by the replica's doing: it weighs on it for a while."""
        if self.is_over:
            return
        self.probes.note_failure(self.target.replica_id)
        self.loads.note_failure(self.target.replica_id, trio.current_time())
        self.attempt.end(cause)

    def end_call(self, error: RouteError | GatewayError | None) -> None:
        """The backend has said its last word (`OnEnd`): its slot is free, whatever the client has read so far."""
        if error is None:
            self.note_progress(done=True)
        elif isinstance(error, RouteError):
            self.note_failure("lost")
        else:
            self._judge(error)
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
            self._judge(error)
        may_go_on = self.attempt.outcome == "left" and self.lease.called and not self.candidate.refuses_when_full
        if may_go_on:
            self.probes.hold_until_answered(self.lease, self.target)
        else:
            self.lease.release()

    def _judge(self, error: BaseException | None) -> None:
        """How the call ended that nobody has judged so far."""
        match error:
            case BackendFailed():
                self.note_failure("failed")
            case BadRequest():
                self.probes.note_alive(self.target.replica_id)  # it took the trouble to refuse the request
                self.attempt.end("refused")
            case _:
                self.attempt.end("left")


class RetryState:
    """What one request has tried."""

    def __init__(self, ticket: Ticket, admission: Admission, attempts: int, reroutes: Counter[str]) -> None:
        self.ticket = ticket
        self.reason = "first"
        """Why the next pick is made: `first`, or the cause of the last re-route."""
        self._admission = admission
        self._attempts_left = attempts
        self._reruns_left = RERUNS_AFTER_LOSS_MAX
        self._reroutes = reroutes
        self._found_busy: set[ReplicaId] = set()

    def accepts(self, outcome: ProbeOutcome, passage: Passage) -> bool:
        """Whether the call may be made. False: the lease is to be given back and another replica looked for.

        A busy replica is left for another one once; if the pick comes back to it there is nothing better.
        """
        replica_id = passage.target.replica_id
        passage.attempt.probe = outcome.value
        if outcome is ProbeOutcome.BUSY:
            self._admission.loads.note_busy(replica_id, trio.current_time() + BUSY_SECONDS)
            if replica_id not in self._found_busy:
                self._found_busy.add(replica_id)
                passage.attempt.end("busy")
                self._reroute("busy", passage, "it did not answer a probe")
                return False
        if not outcome.may_serve:
            self.note(Unreachable(f"the probe said {outcome}"), passage)
            return False
        passage.lease.called = True
        return True

    def note(self, error: RouteError, passage: Passage) -> None:
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
            passage.probes.note_alive(passage.target.replica_id)
            if error.draining:
                self.ticket.excluded.add(passage.target.replica_id)
            else:
                self._admission.note_refusal(self.ticket, passage.lease)
            return
        passage.note_failure(cause)
        if isinstance(error, Stale):
            passage.probes.on_broken(passage.target.replica_id, f"it answers, but not as the replica it was: {error}")
        self.ticket.excluded.add(passage.target.replica_id)
        self._attempts_left -= 1
        self._reruns_left -= isinstance(error, Lost)
        if self._attempts_left <= 0 or self._reruns_left < 0:
            raise BackendFailed(f"The backend could not serve the request ({cause}: {error}).") from error

    def note_no_slot(self, passage: Passage) -> None:
        """Strict mode: the registry knows of no free slot. No attempt; the request waits on."""
        passage.attempt.end("full")
        self._reroute("full", passage, "no free slot, says the registry")

    def _reroute(self, cause: str, passage: Passage, detail: str) -> None:
        self.reason = cause
        self._reroutes[cause] += 1
        # A full replica is everyday life under load, several times a request with many gateways.
        write = log.debug if cause == "full" else log.info
        write("request.rerouted", cause=cause, replica_id=passage.target.replica_id, detail=detail)


def _cause(error: RouteError) -> str:
    if isinstance(error, Refused):
        return "draining" if error.draining else "full"
    return type(error).__name__.lower()
