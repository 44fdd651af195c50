"""What the replicas of one node hold of it, added up once for all models that might go there. Pure.

Theory of operation. Memory is that of the node's GPUs, or the machine's own where there is none. A row reserves what
its model needs from its placement on (P2, P3), so free for a newcomer is the lesser of

    what the node has told to be free   minus   what replicas need that it can't have seen yet
    all that the node has               minus   what all replicas there need

where a replica can't have been seen while it comes up and for `SETTLE_SECONDS` more. What is not known is no
constraint.

Each function here takes a working state and a node and is asked through `WorkingState.cached`: a full fleet asks for
every model of every node, and hardly any node changes in between.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName
from gateway.domain.lifecycle import COMING_UP, Observed
from gateway.planner.history import free_reading, memory_need
from gateway.planner.working_state import WorkingState, is_leaving

SETTLE_SECONDS: Final = 30.0
"""After which a node has told of what a replica took or gave back."""
NOT_HERE_YET: Final = frozenset({Observed.PLACED, Observed.FETCHING})


@dataclass(frozen=True)
class NodeResources:
    """Tells what is in use and free on one node now, or will be soon."""

    rows: tuple[Replica, ...]
    """Those that are in the way."""
    slots: Mapping[ModelName, frozenset[int]]
    """Slot numbers that these replicas hold, by model."""
    free_bytes: int | None
    """Memory for a newcomer, what others have been promised taken off; None: unknown."""


def current_resources(working: WorkingState, node: Node) -> NodeResources:
    """Returns what is in use and free on the node now."""
    rows = working.on(node)
    free = [
        _unused(working, node),
        _unreserved(working, node, rows),
        working.cached(projected_resources, node).free_bytes,
    ]
    return NodeResources(tuple(rows), _slots(rows), _least(free))


def projected_resources(working: WorkingState, node: Node) -> NodeResources:
    """Returns what the node holds once the replicas that leave have left and its readings have settled."""
    rows = [row for row in working.on(node) if not is_leaving(row)]
    free = _least([_unused_projected(working, node), _unreserved(working, node, rows)])
    reserved = sum(
        memory_need(working.state, node, reservation.model) or 0 for reservation in working.reservations_on(node)
    )
    return NodeResources(tuple(rows), _slots(rows), None if free is None else free - reserved)


def fetched_models(working: WorkingState, node: Node) -> frozenset[ModelName]:
    """Returns the models whose artifact is on the node, since a replica of theirs has come that far."""
    return frozenset(row.model for row in working.on(node) if row.observed not in NOT_HERE_YET)


def coming_models(working: WorkingState, node: Node) -> frozenset[ModelName]:
    """Whose artifact is still to be fetched, as far as is known: of a replica, or of one that room is promised for."""
    rows, reservations = working.on(node), working.reservations_on(node)
    return frozenset([each.model for each in rows] + [each.model for each in reservations]) - fetched_models(
        working, node
    )


def settles_at(working: WorkingState, node: Node) -> float | None:
    """When time alone makes the next of its readings count; None: they all do."""
    times = [row.since + SETTLE_SECONDS for row in working.on(node) if row.observed is Observed.READY]
    if (released := working.history.released.get(node.id)) is not None:
        times.append(released.at + SETTLE_SECONDS)
    return min((at for at in times if at > working.now), default=None)


def need_of(working: WorkingState, node: Node, rows: Iterable[Replica]) -> int:
    """Returns how many bytes of the node's memory the replicas take, as far as is known."""
    return sum(memory_need(working.state, node, row.model) or 0 for row in rows)


def _least(amounts: Iterable[int | None]) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)


def _slots(rows: Iterable[Replica]) -> Mapping[ModelName, frozenset[int]]:
    slots: dict[ModelName, frozenset[int]] = {}
    for row in rows:
        slots[row.model] = slots.get(row.model, frozenset()) | {row.slot}
    return slots


def _unreserved(working: WorkingState, node: Node, rows: Iterable[Replica]) -> int | None:
    total = node.capacity.vram_bytes if node.capacity.gpus else node.capacity.ram_bytes
    return None if total is None else total - need_of(working, node, rows)


def _unused(working: WorkingState, node: Node) -> int | None:
    reading, given_back = _reading(working, node)
    if reading is None:
        return None
    unseen = [row for row in working.on(node) if _is_unseen(row, working.now)]
    return reading + given_back - need_of(working, node, unseen)


def _unused_projected(working: WorkingState, node: Node) -> int | None:
    """Where a reading is known to be outdated, only what has been promised counts."""
    reading, _ = _reading(working, node)
    if reading is None or _is_outdated(working, node):
        return None
    seen = [row for row in working.on(node) if is_leaving(row) and row.observed not in COMING_UP]
    return reading + need_of(working, node, seen)


def _reading(working: WorkingState, node: Node) -> tuple[int | None, int]:
    """What was told last, and what was given back since."""
    released = working.history.released.get(node.id)
    return free_reading(node), released.bytes if released is not None and _is_outdated(working, node) else 0


def _is_outdated(working: WorkingState, node: Node) -> bool:
    released = working.history.released.get(node.id)
    return (
        released is not None and released.reading == free_reading(node) and working.now < released.at + SETTLE_SECONDS
    )


def _is_unseen(row: Replica, now: float) -> bool:
    return row.observed in COMING_UP or (row.observed is Observed.READY and now < row.since + SETTLE_SECONDS)
