"""The open calls of one gateway, by replica, so that a watch can end all calls of a replica that cannot be reached.

A call counts as waiting only while its request really waits for the backend. While the client reads slowly, the backend
waits for the client: that it sends nothing then does not mean that it hangs, but its machine may vanish all the same.
"""

from collections import defaultdict
from collections.abc import Awaitable, Callable, Container, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import trio

from gateway.backends.protocol import Lost, Target
from gateway.domain.ids import ReplicaId
from gateway.routing.silence import LOOK_SECONDS_MAX, LOOK_SECONDS_MIN

R = TypeVar("R")

NOT_IN_FLEET: Final = "its replica is not in the fleet any more"


@dataclass
class FirstAnswers:
    """Estimates how long one replica takes to begin an answer, as TCP estimates round trips (RFC 6298)."""

    longest_seconds: float = 0.0
    _mean_seconds: float | None = None
    _deviation_seconds: float = 0.0

    def record(self, seconds: float) -> None:
        """Records how many seconds the replica took to begin one more answer."""
        self.longest_seconds = max(self.longest_seconds, seconds)
        if self._mean_seconds is None:
            self._mean_seconds, self._deviation_seconds = seconds, seconds / 2
            return
        error = seconds - self._mean_seconds
        self._deviation_seconds += (abs(error) - self._deviation_seconds) / 4
        self._mean_seconds += error / 8

    @property
    def expected_seconds(self) -> float:
        """The length of a silence that is worth a probe, in seconds."""
        if self._mean_seconds is None:
            return LOOK_SECONDS_MAX
        return min(max(self._mean_seconds + 4 * self._deviation_seconds, LOOK_SECONDS_MIN), LOOK_SECONDS_MAX)


@dataclass(eq=False, slots=True)
class OpenCall:
    """One call to one backend, from its beginning to its end. `OpenCalls.begin` makes it."""

    target: Target
    answers_always: bool
    """Whether its backend answers Health whatever it works on."""
    _on_lost: Callable[[Lost], None]
    """Called if the call is ended while it does not wait."""
    _first_answers: FirstAnswers
    waiting_since: float = field(default_factory=trio.current_time)
    """The beginning of the current wait, else of the last one, else of the call (Trio's clock, seconds)."""
    _scope: trio.CancelScope | None = None
    _because: str = ""
    _has_begun: bool = False

    @property
    def is_waiting(self) -> bool:
        """Whether its request waits for the backend now."""
        return self._scope is not None

    async def wait(self, answer: Callable[[], Awaitable[R]]) -> R:
        """Returns the result of `answer`. Raises its errors, and `Lost` if the call is ended meanwhile or was ended
        before."""
        if self._because:
            raise Lost(self._because)
        scope = self._scope = trio.CancelScope()
        self.waiting_since = trio.current_time()
        try:
            with scope:
                result = await answer()
                if not self._has_begun:
                    self._has_begun = True
                    self._first_answers.record(trio.current_time() - self.waiting_since)
                return result
        finally:
            self._scope = None
        raise Lost(self._because)

    def end_lost(self, because: str) -> None:
        """Ends the current wait, or else the next one, with `Lost`. Its lease then need not wait for a client that
        reads slowly."""
        self._because = because
        if self._scope is not None:
            self._scope.cancel()
        else:
            self._on_lost(Lost(because))


class OpenCalls:
    """The open calls of one gateway, and which of them wait."""

    def __init__(self) -> None:
        self._open: dict[ReplicaId, set[OpenCall]] = {}
        self.first_answers = defaultdict[ReplicaId, FirstAnswers](FirstAnswers)
        """How long each replica takes to begin an answer. A new replica gets an empty estimate."""
        self._some_open: trio.Event | None = None
        """The event that a call has been opened. It exists while `wait_some_open` waits for it."""

    @property
    def open(self) -> Mapping[ReplicaId, set[OpenCall]]:
        """The open calls of each replica that has any, whether they wait or not."""
        return self._open

    def waiting_for(self, replica_id: ReplicaId) -> set[OpenCall]:
        """Returns the calls of the replica whose requests wait for it now."""
        return {call for call in self._open.get(replica_id, ()) if call.is_waiting}

    def begin(self, target: Target, *, answers_always: bool, on_lost: Callable[[Lost], None]) -> OpenCall:
        """Adds a call that begins, and wakes `wait_some_open`. The call has to be removed with `end`."""
        call = OpenCall(target, answers_always, on_lost, self.first_answers[target.replica_id])
        self._open.setdefault(target.replica_id, set()).add(call)
        if self._some_open is not None:
            self._some_open.set()
        return call

    def end(self, call: OpenCall) -> None:
        """Removes a call that has ended, in whatever way. Does nothing if the call is not there any more."""
        several = self._open.get(call.target.replica_id, set())
        several.discard(call)
        if not several:
            self._open.pop(call.target.replica_id, None)

    async def wait_some_open(self) -> None:
        """Waits until at least one call is open. Only one task may use it."""
        if not self._open:
            self._some_open = trio.Event()
            await self._some_open.wait()
            self._some_open = None

    def end_lost(self, replica_id: ReplicaId, because: str) -> int:
        """Ends all calls of the replica, also those of clients that read slowly. Returns their number."""
        several = tuple(self._open.get(replica_id, ()))
        for call in several:
            call.end_lost(because)
        return len(several)

    def keep_only(self, fleet: Container[ReplicaId]) -> None:
        """Ends the calls of replicas that are not in the fleet any more, and forgets these replicas."""
        for replica_id in [each for each in self._open if each not in fleet]:
            self.end_lost(replica_id, NOT_IN_FLEET)
        for replica_id in [each for each in self.first_answers if each not in fleet]:
            del self.first_answers[replica_id]
