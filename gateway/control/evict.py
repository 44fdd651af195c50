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
from dataclasses import replace
from math import inf
from typing import Final

from gateway.control.ground import Ground, is_leaving
from gateway.control.room import Question, lacks
from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Observed
from gateway.domain.model_spec import ModelSpec

MIN_RESIDENCE_SECONDS: Final = 10.0
"""For which a replica stays once it is ready, so that those who waited for it get to it."""
RECHECK_SECONDS: Final = 1.0
"""How soon to look again at replicas that have requests: nothing wakes the planner when the last of them ends."""


def victims(question: Question, *, later: bool = False) -> tuple[Replica, ...] | None:
    """Replicas of the node that make room by leaving; None: not even all of them would.

    `later`: also those that may go once their requests have ended and they have been there long enough.
    """
    chosen: list[Replica] = []
    for row in _candidates(question.ground, question.node, question.spec, later=later):
        if not _lacks_without(question, chosen):
            break
        if not _would_break_floor(question.ground, row, chosen):
            chosen.append(row)
    if _lacks_without(question, chosen):
        return None
    return tuple(_only_needed(question, chosen))


def may_leave_at(ground: Ground, row: Replica) -> float:
    """When to look at it again, if it is in the way and must not go yet."""
    if _is_used(ground, row):
        return ground.now + RECHECK_SECONDS
    return row.since + MIN_RESIDENCE_SECONDS


def _candidates(ground: Ground, node: Node, spec: ModelSpec, *, later: bool) -> list[Replica]:
    rows = [row for row in ground.on(node) if row.model != spec.name and _is_fair_game(ground, row, spec)]
    free = [row for row in rows if later or is_idle(ground, row)]
    return sorted(free, key=lambda row: (-ground.idle_seconds(row), row.since, row.id))


def _is_fair_game(ground: Ground, row: Replica, claimant: ModelSpec) -> bool:
    spec = ground.state.models.get(row.model)
    if spec is None or row.revision != spec.revision or row.observed is not Observed.READY or is_leaving(row):
        return False
    served_since = ground.waiting_since(row.model)
    if served_since is None:
        return True
    waiting_since = ground.waiting_since(claimant.name)
    return waiting_since is not None and waiting_since < served_since


def _is_used(ground: Ground, row: Replica) -> bool:
    use = ground.use_of(row)
    return use.open > 0 or use.idle_seconds <= 0.0


def is_idle(ground: Ground, row: Replica) -> bool:
    """It has no request, and has been ready for long enough."""
    return not _is_used(ground, row) and ground.now - row.since >= MIN_RESIDENCE_SECONDS


def _would_break_floor(ground: Ground, row: Replica, chosen: list[Replica]) -> bool:
    spec = ground.state.models[row.model]
    going = Counter(each.model for each in chosen)[row.model]
    return len(ground.live(spec)) - going <= ground.floor(spec)


def _lacks_without(question: Question, gone: list[Replica]) -> bool:
    without = frozenset[ReplicaId](row.id for row in gone)
    return bool(lacks(replace(question, soon=True, without=without)))


def _only_needed(question: Question, chosen: list[Replica]) -> list[Replica]:
    """Spares those that turn out to be too small to matter, the last used first."""
    for row in reversed(tuple(chosen)):
        fewer = [each for each in chosen if each is not row]
        if not _lacks_without(question, fewer):
            chosen = fewer
    return chosen


def idlest(ground: Ground, rows: tuple[Replica, ...]) -> float:
    """Seconds for which even the one of them that was used last has been idle."""
    return min((ground.idle_seconds(row) for row in rows), default=inf)
