"""The open calls of one gateway, by replica, so that a watch can end all calls of a replica that cannot be reached.

A call counts as waiting only while its request really waits for the backend. While the client reads slowly, the backend
waits for the client: that it sends nothing then does not mean that it hangs, but its machine may vanish all the same.
"""

from collections.abc import Awaitable, Callable, Container, Mapping
from typing import Final, TypeVar

import trio

from gateway.backends.protocol import Lost, Target
from gateway.domain.ids import ReplicaId
from gateway.routing.silence import FirstAnswers

R = TypeVar("R")

NOT_IN_FLEET: Final = "its replica is not in the fleet any more"


class OpenCall:
    """One call to one backend, from its beginning to its end."""

    __slots__ = ("_because", "_calls", "_has_begun", "_on_lost", "_scope", "answers_always", "target", "waiting_since")

    def __init__(
        self, calls: "OpenCalls", target: Target, *, answers_always: bool, on_lost: Callable[[Lost], None]
    ) -> None:
        """`on_lost` is called if the call is ended while it does not wait."""
        self._calls = calls
        self._on_lost = on_lost
        self._scope: trio.CancelScope | None = None
        self._because = ""
        self._has_begun = False
        self.target = target
        self.answers_always = answers_always
        """Whether its backend answers Health whatever it works on."""
        self.waiting_since = trio.current_time()
        """The beginning of the current wait, else of the last one, else of the call (Trio's clock, seconds)."""
        calls.add(self)

    async def wait(self, answer: Callable[[], Awaitable[R]]) -> R:
        """Returns the result of `answer`. Raises its errors, and `Lost` if the call is ended meanwhile or was ended
        before."""
        if self._because:
            raise Lost(self._because)
        scope = self._scope = trio.CancelScope()
        self.waiting_since = trio.current_time()
        self._calls.begin_wait(self)
        try:
            with scope:
                result = await answer()
                if not self._has_begun:
                    self._has_begun = True
                    answers = self._calls.first_answers_of(self.target.replica_id)
                    answers.record(trio.current_time() - self.waiting_since)
                return result
        finally:
            self._scope = None
            self._calls.end_wait(self)
        raise Lost(self._because)

    def end_lost(self, because: str) -> None:
        """Ends the current wait, or else the next one, with `Lost`. Its lease then need not wait for a client that
        reads slowly."""
        self._because = because
        if self._scope is not None:
            self._scope.cancel()
        else:
            self._on_lost(Lost(because))

    def close(self) -> None:
        """Records that the call has ended, in whatever way. It has to be called at least once."""
        self._calls.discard(self)


class OpenCalls:
    """The open calls of one gateway, and which of them wait."""

    def __init__(self) -> None:
        self._open: dict[ReplicaId, set[OpenCall]] = {}
        self._waiting: dict[ReplicaId, set[OpenCall]] = {}
        self._answers: dict[ReplicaId, FirstAnswers] = {}
        self._some_open: trio.Event | None = None
        """It exists while `wait_some_open` waits for it."""

    @property
    def open(self) -> Mapping[ReplicaId, set[OpenCall]]:
        """Returns the open calls of each replica that has any, whether they wait or not."""
        return self._open

    @property
    def waiting(self) -> Mapping[ReplicaId, set[OpenCall]]:
        """Returns the waiting calls of each replica that has any."""
        return self._waiting

    def add(self, call: OpenCall) -> None:
        """Adds a call that begins, and wakes `wait_some_open`."""
        self._open.setdefault(call.target.replica_id, set()).add(call)
        if self._some_open is not None:
            self._some_open.set()

    def discard(self, call: OpenCall) -> None:
        """Removes a call that has ended. Does nothing if the call is not there any more."""
        several = self._open.get(call.target.replica_id, set())
        several.discard(call)
        if not several:
            self._open.pop(call.target.replica_id, None)

    def begin_wait(self, call: OpenCall) -> None:
        """Adds the call to the waiting ones."""
        self._waiting.setdefault(call.target.replica_id, set()).add(call)

    def end_wait(self, call: OpenCall) -> None:
        """Removes the call from the waiting ones. Raises `KeyError` if it is not one of them."""
        several = self._waiting[call.target.replica_id]
        several.remove(call)
        if not several:
            del self._waiting[call.target.replica_id]

    async def wait_some_open(self) -> None:
        """Waits until at least one call is open. Only one task may use it."""
        if not self._open:
            self._some_open = trio.Event()
            await self._some_open.wait()
            self._some_open = None

    def first_answers_of(self, replica_id: ReplicaId) -> FirstAnswers:
        """Returns how long the replica takes to begin an answer. A new replica gets an empty estimate."""
        found = self._answers.get(replica_id)
        if found is None:
            found = self._answers[replica_id] = FirstAnswers()
        return found

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
        self._answers = {each: answers for each, answers in self._answers.items() if each in fleet}
