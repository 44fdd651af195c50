"""The life of a replica as one table: states, legal transitions, who owns each state.

Theory of operation. The planner *places* a replica (a row, no process yet). The worker that runs it then reports
every further state, in the order of the table, and never goes back. `gone` and `failed` are final: the process is
gone and its exit has been reaped; `failed` besides says that the replica never became ready, and why. A row in a
final state is *forgotten* (deleted) by the planner. Two columns, two writers: `desired` belongs to the planner,
`observed` to the worker's session, so a late report can't undo a drain.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Desired(StrEnum):
    """The state that the planner wants for a replica."""

    RUN = "run"
    DRAIN = "drain"
    """The replica takes no new request, finishes the open ones within the drain timeout, then ends."""
    STOP = "stop"
    """The replica ends now."""


class Observed(StrEnum):
    """The state of a replica by its worker's last report."""

    PLACED = "placed"
    FETCHING = "fetching"
    STARTING = "starting"
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    GONE = "gone"
    FAILED = "failed"


NEXT: Final[Mapping[Observed, frozenset[Observed]]] = MappingProxyType(
    {
        Observed.PLACED: frozenset({Observed.FETCHING, Observed.FAILED, Observed.GONE}),
        Observed.FETCHING: frozenset({Observed.STARTING, Observed.FAILED, Observed.GONE}),
        Observed.STARTING: frozenset({Observed.LOADING, Observed.FAILED, Observed.GONE}),
        Observed.LOADING: frozenset({Observed.READY, Observed.FAILED, Observed.GONE}),
        Observed.READY: frozenset({Observed.DRAINING, Observed.GONE}),
        Observed.DRAINING: frozenset({Observed.GONE}),
        Observed.GONE: frozenset(),
        Observed.FAILED: frozenset(),
    }
)
"""The legal successors of each state. `gone` before `ready` means "stopped on request"; `failed` means "did not come
up"."""

FINAL: Final = frozenset(state for state, following in NEXT.items() if not following)
COMING_UP: Final = frozenset({Observed.PLACED, Observed.FETCHING, Observed.STARTING, Observed.LOADING})


def may_follow(current: Observed, new: Observed) -> bool:
    """Returns whether `new` may be written over `current`. A worker may skip states that it passed between two
    reports."""
    if current == new:
        return True
    reachable, open_states = set[Observed](), [current]
    while open_states:
        for state in NEXT[open_states.pop()] - reachable:
            reachable.add(state)
            open_states.append(state)
    return new in reachable
