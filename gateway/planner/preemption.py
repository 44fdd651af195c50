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

from math import inf
from typing import Final, NamedTuple

from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName
from gateway.domain.lifecycle import Observed
from gateway.planner.feasibility import Blockers, FitCheck, blockers
from gateway.planner.node_resources import need_of
from gateway.planner.working_state import WorkingState, is_leaving

MIN_RESIDENCE_SECONDS: Final = 10.0
"""For which a replica stays once it is ready, so that those who waited for it get to it."""
RECHECK_SECONDS: Final = 1.0
"""How soon to look again at replicas that have requests: nothing wakes the planner when the last of them ends."""


class PreemptionCandidate(NamedTuple):
    """A replica that may go if the right model asks."""

    row: Replica
    bytes: int
    """Bytes of the node's memory that it gives back."""
    spare: int
    """Replicas that its model could do without."""
    waiting_since: float | None
    """When the oldest request that waits for its model began to; None: none waits."""


def victims(question: FitCheck, *, later: bool = False) -> tuple[Replica, ...] | None:
    """Replicas of the node that make room by leaving, for a question of `ask_soon`; None: not even all of them would.

    `later`: also those that may go once their requests have ended and they have been there long enough.
    """
    in_the_way = blockers(question)
    leavers, most_bytes = question.ground.once(_all_leavers if later else _idle_leavers, question.node)
    if in_the_way is None or in_the_way.missing_bytes > most_bytes:
        return None
    chosen = _enough(question, leavers, in_the_way)
    return None if chosen is None else tuple(each.row for each in _only_needed(chosen, in_the_way))


def may_leave_at(ground: WorkingState, row: Replica) -> float:
    """When to look at it again, if it is in the way and must not go yet."""
    if _is_used(ground, row):
        return ground.now + RECHECK_SECONDS
    return row.since + MIN_RESIDENCE_SECONDS


def _all_leavers(ground: WorkingState, node: Node) -> tuple[list[PreemptionCandidate], int]:
    """Returns the node's evictable replicas, the longest unused first, and what bytes they give back together."""
    rows = [row for row in ground.on(node) if is_preemptible(ground, row)]
    rows.sort(key=lambda row: (-ground.idle_seconds(row), row.since, row.id))
    return _with_sum([_leaver(ground, node, row) for row in rows])


def _idle_leavers(ground: WorkingState, node: Node) -> tuple[list[PreemptionCandidate], int]:
    return _with_sum([each for each in ground.once(_all_leavers, node)[0] if is_idle(ground, each.row)])


def _with_sum(leavers: list[PreemptionCandidate]) -> tuple[list[PreemptionCandidate], int]:
    return leavers, sum(each.bytes for each in leavers)


def _leaver(ground: WorkingState, node: Node, row: Replica) -> PreemptionCandidate:
    spare = ground.beyond_floor(ground.state.models[row.model])
    return PreemptionCandidate(row, need_of(ground, node, [row]), spare, ground.waiting_since(row.model))


def is_preemptible(ground: WorkingState, row: Replica) -> bool:
    """Tells whether the replica is ready, up to date and one that its model could do without."""
    spec = ground.state.models.get(row.model)
    if spec is None or row.revision != spec.revision or row.observed is not Observed.READY or is_leaving(row):
        return False
    return ground.beyond_floor(spec) > 0


def _is_used(ground: WorkingState, row: Replica) -> bool:
    use = ground.use_of(row)
    return use.open > 0 or use.idle_seconds <= 0.0


def is_idle(ground: WorkingState, row: Replica) -> bool:
    """It has no request, and has been ready for long enough."""
    return not _is_used(ground, row) and ground.now - row.since >= MIN_RESIDENCE_SECONDS


def _enough(
    question: FitCheck, leavers: list[PreemptionCandidate], in_the_way: Blockers
) -> list[PreemptionCandidate] | None:
    """The first of them whose leaving is enough; None: all of them are not."""
    model, waiting_since = question.spec.name, question.ground.waiting_since(question.spec.name)
    missing, rivals = in_the_way.missing_bytes, set(in_the_way.rivals)
    chosen, going = list[PreemptionCandidate](), dict[ModelName, int]()
    for each in leavers:
        if missing <= 0 and not rivals:
            break
        gone = going.get(each.row.model, 0)
        if gone < each.spare and each.row.model != model and _has_to_yield(each, waiting_since):
            chosen.append(each)
            going[each.row.model] = gone + 1
            missing -= each.bytes
            rivals.discard(each.row.id)
    return None if missing > 0 or rivals else chosen


def _has_to_yield(leaver: PreemptionCandidate, waiting_since: float | None) -> bool:
    """Tells whether it makes room for a model whose oldest request has waited since `waiting_since`."""
    if leaver.waiting_since is None:
        return True
    return waiting_since is not None and waiting_since < leaver.waiting_since


def _only_needed(chosen: list[PreemptionCandidate], in_the_way: Blockers) -> list[PreemptionCandidate]:
    """Spares those that turn out to be too small to matter, the last used first."""
    missing = in_the_way.missing_bytes - sum(each.bytes for each in chosen)
    for each in reversed(tuple(chosen)):
        if missing + each.bytes <= 0 and each.row.id not in in_the_way.rivals:
            missing += each.bytes
            chosen.remove(each)
    return chosen


def idlest(ground: WorkingState, rows: tuple[Replica, ...]) -> float:
    """Seconds for which even the one of them that was used last has been idle."""
    return min((ground.idle_seconds(row) for row in rows), default=inf)
