"""A registry that is asked for slots in strict mode and says what a test has written down for it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import trio

from gateway.domain.ids import ReplicaId
from gateway.domain.peers import ReservationFailed, SlotRequest

Answer = ReplicaId | ReservationFailed | None


@dataclass
class FakeReservations:
    """Answers in turn with what is in `answers`, and when there is nothing left with `default`."""

    default: Answer = None
    answers: list[Answer] = field(default_factory=list)
    asked: list[SlotRequest] = field(default_factory=list)
    running: int = 0
    most: int = 0
    """Claims at once."""
    wait: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint

    async def __call__(self, request: SlotRequest) -> ReplicaId | None:
        self.asked.append(request)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.wait()
        finally:
            self.running -= 1
        answer = self.answers.pop(0) if self.answers else self.default
        if isinstance(answer, ReservationFailed):
            raise answer
        return answer
