"""Which node a new replica goes to, and who has to leave it for that. Pure.

Nodes are filtered (healthy, selector, slot, exclusive group), what fits is scored, and each answer says why. In order
of preference: where there is room now; where there will be, since others leave already; where there would be, if others
left.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from gateway.domain.cluster import Node, Replica
from gateway.domain.model_spec import ModelSpec
from gateway.planner.feasibility import (
    FitCheck,
    check_current,
    check_projected,
    free_slot,
    has_room,
    memory_after,
    missing_resources,
)
from gateway.planner.node_resources import settles_at
from gateway.planner.preemption import idlest, is_idle, may_leave_at, victims
from gateway.planner.working_state import WorkingState


class NodeScore(NamedTuple):
    """One thing that is compared between nodes; less is better."""

    name: str
    value: float


@dataclass(frozen=True)
class Placement:
    """Room for one replica: now, or once others have left."""

    node: Node
    slot: int
    scores: tuple[NodeScore, ...]
    is_free: bool = True
    """False: it has to wait, for `victims` or for what leaves already."""
    victims: tuple[Replica, ...] = ()
    """Those that have to go, which is to be begun now."""
    again_at: float | None = None
    """When to look again, whatever happens (registry clock)."""


@dataclass(frozen=True)
class Insufficient:
    """No room, and nothing that may be done about it."""

    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """By name of the node: what it lacks, in numbers. Empty: no healthy node matches the model's selector."""
    again_at: float | None = None

    def __str__(self) -> str:
        if not self.reasons:
            return "no healthy node matches its selector"
        details = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.reasons.items()))
        return f"no healthy node has room for it ({details})"


def pick_place(
    working: WorkingState, spec: ModelSpec, nodes: Iterable[Node] | None = None, *, may_preempt: bool = True
) -> Placement | Insufficient:
    """The best of `nodes`, or of all nodes on which the model may run."""
    found = working.fitting_nodes(spec) if nodes is None else nodes
    fits = [check_projected(working, node, spec) for node in found]
    fitting = [each for each in fits if has_room(each)]
    return (
        _best([_placement(now) for each in fitting if has_room(now := check_current(working, each.node, spec))])
        or _soon(fitting)
        or (_by_preemption(fits) if may_preempt else None)
        or _insufficient(fits, may_preempt=may_preempt)
    )


def _placement(fit: FitCheck) -> Placement:
    slot = free_slot(fit)
    assert slot is not None  # noqa: S101 - nothing is lacking
    return Placement(fit.node, slot, _scores(fit))


def _scores(fit: FitCheck) -> tuple[NodeScore, ...]:
    """What breaks comes last; replicas of one model are spread; then the emptier node wins, and more room left."""
    working, node = fit.working, fit.node
    rows = working.on(node)
    return (
        NodeScore("doubtful", float(node.id in working.doubtful)),
        NodeScore("replicas of the model", float(sum(row.model == fit.spec.name for row in rows))),
        NodeScore("replicas", float(len(rows))),
        NodeScore("free bytes after", -float(memory_after(fit) or 0)),
    )


def _best(placements: list[Placement]) -> Placement | None:
    return min(placements, key=lambda each: (each.scores, each.node.name), default=None)


def _soon(fitting: list[FitCheck]) -> Placement | None:
    """The tightest, so that what leaves for a large newcomer is not claimed by a small one."""
    best = min(fitting, key=lambda each: (memory_after(each) or 0, each.node.name), default=None)
    if best is None:
        return None
    return replace(_placement(best), is_free=False, again_at=best.working.cached(settles_at, best.node))


def _by_preemption(fits: list[FitCheck]) -> Placement | None:
    """Finds the node on which the fewest replicas have to go, or, of several, where they are least missed."""
    ways = [(fit, found) for fit in fits if (found := victims(fit))]
    best = min(ways, key=lambda way: (len(way[1]), -idlest(way[0].working, way[1]), way[0].node.name), default=None)
    if best is None:
        return None
    fit, chosen = best
    cleared = fit._replace(without=chosen)
    return replace(_placement(cleared), is_free=False, victims=chosen)


def _insufficient(fits: list[FitCheck], *, may_preempt: bool) -> Insufficient:
    in_the_way = [(fit, _worth_waiting_for(fit)) for fit in fits]
    times = [at for fit, rows in in_the_way for at in _times(fit, rows)] if may_preempt else []
    reasons = {fit.node.name: _why(fit, rows) for fit, rows in in_the_way}
    return Insufficient(reasons, min(times, default=None))


def _why(fit: FitCheck, in_the_way: list[Replica]) -> str:
    in_use = sorted({row.model for row in in_the_way})
    missing = ", ".join(missing_resources(check_current(fit.working, fit.node, fit.spec)))
    return f"{missing}; in use: {', '.join(in_use)}" if in_use else missing


def _times(fit: FitCheck, in_the_way: list[Replica]) -> list[float]:
    """When time alone may bring room: those in the way may go by then, or readings settle."""
    working = fit.working
    settled_at = working.cached(settles_at, fit.node)
    return [may_leave_at(working, row) for row in in_the_way] + ([settled_at] if settled_at else [])


def _worth_waiting_for(fit: FitCheck) -> list[Replica]:
    """Replicas that are in the way, and may go once they are not used any more."""
    return [row for row in victims(fit, later=True) or () if not is_idle(fit.working, row)]
