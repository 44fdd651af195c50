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
    ask_now,
    ask_soon,
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
    """False: it has to wait, for `evictions` or for what leaves already."""
    evictions: tuple[Replica, ...] = ()
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
        told = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.reasons.items()))
        return f"no healthy node has room for it ({told})"


def pick_place(
    ground: WorkingState, spec: ModelSpec, nodes: Iterable[Node] | None = None, *, may_evict: bool = True
) -> Placement | Insufficient:
    """The best of `nodes`, or of all nodes on which the model may run."""
    found = ground.fitting_nodes(spec) if nodes is None else nodes
    questions = [ask_soon(ground, node, spec) for node in found]
    fitting = [each for each in questions if has_room(each)]
    return (
        _best([_placement(now) for each in fitting if has_room(now := ask_now(ground, each.node, spec))])
        or _soon(fitting)
        or (_by_eviction(questions) if may_evict else None)
        or _insufficient(questions, may_evict=may_evict)
    )


def _placement(question: FitCheck) -> Placement:
    slot = free_slot(question)
    assert slot is not None  # noqa: S101 - nothing is lacking
    return Placement(question.node, slot, _scores(question))


def _scores(question: FitCheck) -> tuple[NodeScore, ...]:
    """What breaks comes last; replicas of one model are spread; then the emptier node wins, and more room left."""
    ground, node = question.ground, question.node
    rows = ground.on(node)
    return (
        NodeScore("doubtful", float(node.id in ground.doubtful)),
        NodeScore("replicas of the model", float(sum(row.model == question.spec.name for row in rows))),
        NodeScore("replicas", float(len(rows))),
        NodeScore("free bytes after", -float(memory_after(question) or 0)),
    )


def _best(placements: list[Placement]) -> Placement | None:
    return min(placements, key=lambda each: (each.scores, each.node.name), default=None)


def _soon(fitting: list[FitCheck]) -> Placement | None:
    """The tightest, so that what leaves for a large newcomer is not claimed by a small one."""
    best = min(fitting, key=lambda each: (memory_after(each) or 0, each.node.name), default=None)
    if best is None:
        return None
    return replace(_placement(best), is_free=False, again_at=best.ground.once(settles_at, best.node))


def _by_eviction(questions: list[FitCheck]) -> Placement | None:
    """Finds the node on which the fewest replicas have to go, or, of several, where they are least missed."""
    ways = [(question, found) for question in questions if (found := victims(question))]
    best = min(ways, key=lambda way: (len(way[1]), -idlest(way[0].ground, way[1]), way[0].node.name), default=None)
    if best is None:
        return None
    question, evictions = best
    cleared = question._replace(without=evictions)
    return replace(_placement(cleared), is_free=False, evictions=evictions)


def _insufficient(questions: list[FitCheck], *, may_evict: bool) -> Insufficient:
    in_the_way = [(question, _worth_waiting_for(question)) for question in questions]
    times = [at for question, rows in in_the_way for at in _times(question, rows)] if may_evict else []
    reasons = {question.node.name: _why(question, rows) for question, rows in in_the_way}
    return Insufficient(reasons, min(times, default=None))


def _why(question: FitCheck, in_the_way: list[Replica]) -> str:
    in_use = sorted({row.model for row in in_the_way})
    lacking = ", ".join(missing_resources(ask_now(question.ground, question.node, question.spec)))
    return f"{lacking}; in use: {', '.join(in_use)}" if in_use else lacking


def _times(question: FitCheck, in_the_way: list[Replica]) -> list[float]:
    """When time alone may bring room: those in the way may go by then, or readings settle."""
    ground = question.ground
    settled_at = ground.once(settles_at, question.node)
    return [may_leave_at(ground, row) for row in in_the_way] + ([settled_at] if settled_at else [])


def _worth_waiting_for(question: FitCheck) -> list[Replica]:
    """Replicas that are in the way, and may go once they are not used any more."""
    return [row for row in victims(question, later=True) or () if not is_idle(question.ground, row)]
