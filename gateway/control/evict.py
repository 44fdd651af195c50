"""Who has to go so that another model fits on a node: exactly as few as it takes, the longest unused first. Pure.

| a replica                                                        | may be evicted                      |
|------------------------------------------------------------------|-------------------------------------|
| has a request, or has just become ready                          | not now: the newcomer waits         |
| is one of those that its model has to have                       | never                               |
| is of a model for which requests wait                            | for requests that have waited longer |
| else                                                             | yes                                 |

So two models that share one place take turns in batches: what has waited for the loaded one is served, what comes later
stands behind the other's. A model whose requests never cease keeps its place.
"""

from collections import Counter
from dataclasses import dataclass
from math import inf
from typing import Final

from gateway.control.ground import Ground, is_leaving
from gateway.control.room import Obstacle, Question, obstacle
from gateway.control.tally import need_of
from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName
from gateway.domain.lifecycle import Observed
from gateway.domain.model_spec import ModelSpec

MIN_RESIDENCE_SECONDS: Final = 10.0
"""For which a replica stays once it is ready, so that those who waited for it get to it."""
RECHECK_SECONDS: Final = 1.0
"""How soon to look again at replicas that have requests: nothing wakes the planner when the last of them ends."""


@dataclass(frozen=True)
class Leavers:
    """Replicas of one node that may go if the right model asks, the longest unused first."""

    rows: tuple[Replica, ...]
    bytes: int
    """Of the node's memory: what all of them give back."""


def victims(question: Question, *, later: bool = False) -> tuple[Replica, ...] | None:
    """Replicas of the node that make room for the model soon by leaving; None: not even all of them would.

    `later`: also those that may go once their requests have ended and they have been there long enough.
    """
    leavers = question.ground.once(_all_leavers if later else _idle_leavers, question.node)
    in_the_way = obstacle(question)
    if in_the_way is None or in_the_way.missing_bytes > leavers.bytes:
        return None
    chosen = _enough(question, leavers, in_the_way)
    return None if chosen is None else tuple(_only_needed(question, chosen, in_the_way))


def may_leave_at(ground: Ground, row: Replica) -> float:
    """When to look at it again, if it is in the way and must not go yet."""
    if _is_used(ground, row):
        return ground.now + RECHECK_SECONDS
    return row.since + MIN_RESIDENCE_SECONDS


def _all_leavers(ground: Ground, node: Node) -> Leavers:
    rows = [row for row in ground.on(node) if _is_fair_game(ground, row)]
    rows.sort(key=lambda row: (-ground.idle_seconds(row), row.since, row.id))
    return Leavers(tuple(rows), need_of(ground, node, rows))


def _idle_leavers(ground: Ground, node: Node) -> Leavers:
    rows = [row for row in ground.once(_all_leavers, node).rows if is_idle(ground, row)]
    return Leavers(tuple(rows), need_of(ground, node, rows))


def _is_fair_game(ground: Ground, row: Replica) -> bool:
    spec = ground.state.models.get(row.model)
    if spec is None or row.revision != spec.revision or row.observed is not Observed.READY or is_leaving(row):
        return False
    return ground.beyond_floor(spec) > 0


def _comes_first(ground: Ground, claimant: ModelSpec, row: Replica) -> bool:
    """Whether the room is rather the claimant's than that of the model that has it."""
    served_since = ground.waiting_since(row.model)
    if served_since is None:
        return row.model != claimant.name
    waiting_since = ground.waiting_since(claimant.name)
    return waiting_since is not None and waiting_since < served_since


def _is_used(ground: Ground, row: Replica) -> bool:
    use = ground.use_of(row)
    return use.open > 0 or use.idle_seconds <= 0.0


def is_idle(ground: Ground, row: Replica) -> bool:
    """It has no request, and has been ready for long enough."""
    return not _is_used(ground, row) and ground.now - row.since >= MIN_RESIDENCE_SECONDS


def _enough(question: Question, leavers: Leavers, in_the_way: Obstacle) -> list[Replica] | None:
    """The first of them whose leaving is enough; None: all of them are not."""
    ground, chosen = question.ground, list[Replica]()
    missing, rivals, going = in_the_way.missing_bytes, set(in_the_way.rivals), Counter[ModelName]()
    for row in leavers.rows:
        if missing <= 0 and not rivals:
            break
        if _comes_first(ground, question.spec, row) and going[row.model] < ground.beyond_floor(
            ground.state.models[row.model]
        ):
            chosen.append(row)
            going[row.model] += 1
            rivals.discard(row.id)
            missing -= need_of(ground, question.node, [row])
    return None if missing > 0 or rivals else chosen


def _only_needed(question: Question, chosen: list[Replica], in_the_way: Obstacle) -> list[Replica]:
    """Spares those that turn out to be too small to matter, the last used first."""
    missing = in_the_way.missing_bytes - need_of(question.ground, question.node, chosen)
    for row in reversed(tuple(chosen)):
        without_it = missing + need_of(question.ground, question.node, [row])
        if without_it <= 0 and row.id not in in_the_way.rivals:
            missing, chosen = without_it, [each for each in chosen if each is not row]
    return chosen


def idlest(ground: Ground, rows: tuple[Replica, ...]) -> float:
    """Seconds for which even the one of them that was used last has been idle."""
    return min((ground.idle_seconds(row) for row in rows), default=inf)
