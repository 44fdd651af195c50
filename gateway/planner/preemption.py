"""Chooses the replicas that end so that another model fits on a node: as few as necessary, the longest unused first.
Pure.

| a replica                                                        | may be preempted                     |
|------------------------------------------------------------------|--------------------------------------|
| has a request, or has just become ready                          | not now: the newcomer waits          |
| is one of those that its model has to have, or is pinned         | never                                |
| is of a model for which requests wait                            | for requests that have waited longer |
| else                                                             | yes                                  |

So two models that share one place take turns in batches: requests that have waited for the loaded model are served, and
later ones wait until the other model has had its turn. A model whose requests never cease keeps its place.
"""

from collections.abc import Iterable
from math import inf
from typing import Final, NamedTuple

from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName, NodeId
from gateway.domain.lifecycle import Observed
from gateway.planner.feasibility import Blockers, FitCheck
from gateway.planner.node_resources import is_leaving
from gateway.planner.working_state import WorkingState

MIN_RESIDENCE_SECONDS: Final = 10.0
"""How long a replica stays once it is ready, so that the requests that waited for it are served."""
RECHECK_SECONDS: Final = 1.0
"""How soon to look again at replicas that have requests, since nothing wakes the planner when the last one ends."""


class PreemptionCandidate(NamedTuple):
    """A replica that may be preempted for the right model."""

    replica: Replica
    memory_bytes: int
    """The bytes of the node's memory that it gives back."""
    spare_replicas: int
    """The number of replicas that its model has above its minimum, on all nodes together."""
    waiting_since: float | None
    """The time since which the oldest request waits for its model. None means that none waits."""


class CandidateList(NamedTuple):
    """Candidates of one node, the longest unused first."""

    candidates: tuple[PreemptionCandidate, ...]
    memory_bytes: int
    """The bytes of memory that all of them give back together."""


class NodeCandidates(NamedTuple):
    """The candidates of one node at one generation of the working state."""

    generation: int
    idle: CandidateList
    """The candidates that may go now."""
    all: CandidateList
    """The candidates that may go now, or once their requests have ended and they have been there long enough."""


class Preemption:
    """Finds victims. It keeps the candidates of each node until something about them has changed."""

    def __init__(self, working: WorkingState) -> None:
        self._working = working
        self._candidates: dict[NodeId, NodeCandidates] = {}

    def victims(self, check: FitCheck, *, later: bool = False) -> tuple[Replica, ...] | None:
        """Returns the replicas that make the replica of a projected check fit by leaving.

        The tuple is empty if nobody has to leave. Returns None if it would not fit even if all of them left. With
        `later`, replicas count that may leave only once they are not in use any more.
        """
        candidates = self._candidates_on(check.node)
        return _victims(self._working, check, candidates.all if later else candidates.idle)

    def busy_victims(self, check: FitCheck) -> list[Replica]:
        """Returns those of the later victims that must not leave now."""
        return [each for each in self.victims(check, later=True) or () if not is_idle(self._working, each)]

    def _candidates_on(self, node: Node) -> NodeCandidates:
        generation, known = self._working.generation(node), self._candidates.get(node.id)
        if known is None or known.generation != generation:
            known = self._candidates[node.id] = _find_candidates(self._working, node)
        return known


def _find_candidates(working: WorkingState, node: Node) -> NodeCandidates:
    info = working.node_info(node)
    replicas = [each for each in info.replicas if is_preemptible(working, each)]
    replicas.sort(key=lambda each: (-working.idle_seconds(each), each.since, each.id))
    candidates = [
        PreemptionCandidate(
            each,
            info.memory_bytes(each.model) or 0,
            working.replicas_above_minimum(working.snapshot.models[each.model]),
            working.waiting_since(each.model),
        )
        for each in replicas
    ]
    idle = [each for each in candidates if is_idle(working, each.replica)]
    return NodeCandidates(working.generation(node), _with_sum(idle), _with_sum(candidates))


def _with_sum(candidates: Iterable[PreemptionCandidate]) -> CandidateList:
    found = tuple(candidates)
    return CandidateList(found, sum(each.memory_bytes for each in found))


def is_preemptible(working: WorkingState, replica: Replica) -> bool:
    """Tells whether the replica is ready, of the current revision, not pinned, and one that its model could do
    without."""
    spec = working.snapshot.models.get(replica.model)
    if spec is None or spec.pinned or replica.revision != spec.revision:
        return False
    if replica.observed is not Observed.READY or is_leaving(replica):
        return False
    return working.replicas_above_minimum(spec) > 0


def is_idle(working: WorkingState, replica: Replica) -> bool:
    """Tells whether the replica has no request, and has been ready for long enough."""
    return not _is_in_use(working, replica) and working.now - replica.since >= MIN_RESIDENCE_SECONDS


def may_leave_at(working: WorkingState, replica: Replica) -> float:
    """Returns when to look again at a replica that must not leave yet, in seconds of the registry's clock."""
    if _is_in_use(working, replica):
        return working.now + RECHECK_SECONDS
    return replica.since + MIN_RESIDENCE_SECONDS


def shortest_idle_seconds(working: WorkingState, replicas: Iterable[Replica]) -> float:
    """Returns for how long even the last used of the replicas has been idle. Infinite if there are none."""
    return min((working.idle_seconds(each) for each in replicas), default=inf)


def _is_in_use(working: WorkingState, replica: Replica) -> bool:
    usage = working.usage_of(replica)
    return usage.open > 0 or usage.idle_seconds <= 0.0


def _victims(working: WorkingState, check: FitCheck, available: CandidateList) -> tuple[Replica, ...] | None:
    blockers = check.blockers()
    if blockers is None or blockers.missing_bytes > available.memory_bytes:
        return None
    chosen = _choose(working, check.spec.name, available.candidates, blockers)
    return None if chosen is None else tuple(each.replica for each in _drop_unneeded(chosen, blockers))


def _choose(
    working: WorkingState, model: ModelName, candidates: Iterable[PreemptionCandidate], blockers: Blockers
) -> list[PreemptionCandidate] | None:
    """Returns the first candidates whose leaving is enough. Returns None if all of them are not enough."""
    waiting_since = working.waiting_since(model)
    missing, conflicting = blockers.missing_bytes, set(blockers.conflicting_ids)
    chosen, chosen_of = list[PreemptionCandidate](), dict[ModelName, int]()
    for each in candidates:
        if missing <= 0 and not conflicting:
            break
        already = chosen_of.get(each.replica.model, 0)
        if already < each.spare_replicas and each.replica.model != model and _yields_to(each, waiting_since):
            chosen.append(each)
            chosen_of[each.replica.model] = already + 1
            missing -= each.memory_bytes
            conflicting.discard(each.replica.id)
    return None if missing > 0 or conflicting else chosen


def _yields_to(candidate: PreemptionCandidate, waiting_since: float | None) -> bool:
    """Tells whether it makes room for a model whose oldest request has waited since `waiting_since`."""
    if candidate.waiting_since is None:
        return True
    return waiting_since is not None and waiting_since < candidate.waiting_since


def _drop_unneeded(chosen: list[PreemptionCandidate], blockers: Blockers) -> list[PreemptionCandidate]:
    """Spares candidates that turn out to be too small to matter, the last used first."""
    missing = blockers.missing_bytes - sum(each.memory_bytes for each in chosen)
    for each in reversed(tuple(chosen)):
        if missing + each.memory_bytes <= 0 and each.replica.id not in blockers.conflicting_ids:
            missing += each.memory_bytes
            chosen.remove(each)
    return chosen
