"""Which request has been at which backend and how each visit ended, written by the backends themselves."""

from collections import defaultdict
from dataclasses import dataclass
from typing import Final

from tests.simulation.world import World

FAILED: Final = frozenset({"stale", "broken", "lost", "draining"})
"""Outcomes after which the same request must not come again."""
RERUNS_AFTER_LOSS_MAX: Final = 1


@dataclass(eq=False)
class Visit:
    """One call that has arrived at a backend."""

    request_id: str
    number: int
    """Among the request's visits."""
    token: str
    """The backend's."""
    outcome: str = "running"
    """`running`, `answered`, `unheard` (answered, but the connection did not carry it in time), `cancelled`, `full`, or
    one of `FAILED`."""
    ended_at: float | None = None
    """When it was answered."""
    produced: int = 0
    """Tokens so far."""


class CallLedger:
    def __init__(self, world: World) -> None:
        self._world = world
        self.visits: defaultdict[str, list[Visit]] = defaultdict(list)

    def visit(self, request_id: str, token: str) -> Visit:
        earlier = self.visits[request_id]
        if any(each.token == token and each.outcome in FAILED for each in earlier):
            self._world.object_to(f"{request_id} comes again to a replica that has failed it")
        if sum(each.outcome == "lost" for each in earlier) > RERUNS_AFTER_LOSS_MAX:
            self._world.object_to(f"{request_id} is run again after {RERUNS_AFTER_LOSS_MAX + 1} losses")
        visit = Visit(request_id, len(earlier), token)
        earlier.append(visit)
        self._world.note(f"    {request_id} arrives at {token[:6]}")
        return visit
