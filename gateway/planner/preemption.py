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


def victims(fit: FitCheck, *, later: bool = False) -> tuple[Replica, ...] | None:
    """Replicas of the node that make room by leaving, for a question of `check_projected`; None: not even all of them
    would.

    `later`: also those that may go once their requests have ended and they have been there long enough.
    """
    in_the_way = blockers(fit)
    candidates, most_bytes = fit.working.cached(_all_candidates if later else _idle_candidates, fit.node)
    if in_the_way is None or in_the_way.missing_bytes > most_bytes:
        return None
    chosen = _enough(fit, candidates, in_the_way)
    return None if chosen is None else tuple(each.row for each in _only_needed(chosen, in_the_way))


def may_leave_at(working: WorkingState, row: Replica) -> float:
    """When to look at it again, if it is in the way and must not go yet."""
    if _is_used(working, row):
        return working.now + RECHECK_SECONDS
    return row.since + MIN_RESIDENCE_SECONDS


def _all_candidates(working: WorkingState, node: Node) -> tuple[list[PreemptionCandidate], int]:
    """Returns the node's evictable replicas, the longest unused first, and what bytes they give back together."""
    rows = [row for row in working.on(node) if is_preemptible(working, row)]
    rows.sort(key=lambda row: (-working.idle_seconds(row), row.since, row.id))
    return _with_sum([_candidate(working, node, row) for row in rows])


def _idle_candidates(working: WorkingState, node: Node) -> tuple[list[PreemptionCandidate], int]:
    return _with_sum([each for each in working.cached(_all_candidates, node)[0] if is_idle(working, each.row)])


def _with_sum(candidates: list[PreemptionCandidate]) -> tuple[list[PreemptionCandidate], int]:
    return candidates, sum(each.bytes for each in candidates)


def _candidate(working: WorkingState, node: Node, row: Replica) -> PreemptionCandidate:
    spare = working.beyond_floor(working.state.models[row.model])
    return PreemptionCandidate(row, need_of(working, node, [row]), spare, working.waiting_since(row.model))


def is_preemptible(working: WorkingState, row: Replica) -> bool:
    """Tells whether the replica is ready, up to date and one that its model could do without."""
    spec = working.state.models.get(row.model)
    if spec is None or row.revision != spec.revision or row.observed is not Observed.READY or is_leaving(row):
        return False
    return working.beyond_floor(spec) > 0


def _is_used(working: WorkingState, row: Replica) -> bool:
    usage = working.usage_of(row)
    return usage.open > 0 or usage.idle_seconds <= 0.0


def is_idle(working: WorkingState, row: Replica) -> bool:
    """It has no request, and has been ready for long enough."""
    return not _is_used(working, row) and working.now - row.since >= MIN_RESIDENCE_SECONDS


def _enough(
    fit: FitCheck, candidates: list[PreemptionCandidate], in_the_way: Blockers
) -> list[PreemptionCandidate] | None:
    """The first of them whose leaving is enough; None: all of them are not."""
    model, waiting_since = fit.spec.name, fit.working.waiting_since(fit.spec.name)
    missing, conflicts = in_the_way.missing_bytes, set(in_the_way.conflicts)
    chosen, going = list[PreemptionCandidate](), dict[ModelName, int]()
    for each in candidates:
        if missing <= 0 and not conflicts:
            break
        gone = going.get(each.row.model, 0)
        if gone < each.spare and each.row.model != model and _has_to_yield(each, waiting_since):
            chosen.append(each)
            going[each.row.model] = gone + 1
            missing -= each.bytes
            conflicts.discard(each.row.id)
    return None if missing > 0 or conflicts else chosen


def _has_to_yield(candidate: PreemptionCandidate, waiting_since: float | None) -> bool:
    """Tells whether it makes room for a model whose oldest request has waited since `waiting_since`."""
    if candidate.waiting_since is None:
        return True
    return waiting_since is not None and waiting_since < candidate.waiting_since


def _only_needed(chosen: list[PreemptionCandidate], in_the_way: Blockers) -> list[PreemptionCandidate]:
    """Spares those that turn out to be too small to matter, the last used first."""
    missing = in_the_way.missing_bytes - sum(each.bytes for each in chosen)
    for each in reversed(tuple(chosen)):
        if missing + each.bytes <= 0 and each.row.id not in in_the_way.conflicts:
            missing += each.bytes
            chosen.remove(each)
    return chosen


def idlest(working: WorkingState, rows: tuple[Replica, ...]) -> float:
    """Seconds for which even the one of them that was used last has been idle."""
    return min((working.idle_seconds(row) for row in rows), default=inf)
