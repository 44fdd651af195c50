"""Chooses the node of a new replica. Pure.

The nodes that match the model's selector are asked in this order of preference:

1. where the replica fits now (the node with the least scores wins);
2. where it will fit, since other replicas leave already;
3. where it would fit if other replicas were preempted.

If no node is left, the answer says for each of them what is missing.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from gateway.domain.cluster import Node, Replica
from gateway.domain.model_spec import ModelSpec
from gateway.planner.feasibility import FitCheck
from gateway.planner.preemption import Preemption, may_leave_at, shortest_idle_seconds
from gateway.planner.working_state import WorkingState


class NodeScore(NamedTuple):
    """One value by which nodes are compared. The lesser one wins."""

    name: str
    value: float


@dataclass(frozen=True)
class Placement:
    """A node and a slot for one replica: free now, or once others have left."""

    node: Node
    slot: int
    scores: tuple[NodeScore, ...]
    is_free: bool = True
    """Whether the replica may start now. If not, it waits until `victims` and replicas that leave already are gone."""
    victims: tuple[Replica, ...] = ()
    """The replicas that have to be drained now to make room."""
    replan_at: float | None = None
    """The time at which to plan again whatever happens, in seconds of the registry's clock."""


@dataclass(frozen=True)
class Insufficient:
    """No node has room, and nothing may be done about it now."""

    reasons: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The shortage on each node in words and numbers, by name of the node. It is empty if no healthy node matches
    the model's selector."""
    replan_at: float | None = None
    """The time at which waiting alone may bring room, in seconds of the registry's clock. None means never."""

    def __str__(self) -> str:
        if not self.reasons:
            return "no healthy node matches its selector"
        missing = "; ".join(f"{name}: {reason}" for name, reason in sorted(self.reasons.items()))
        return f"no healthy node has room for it ({missing})"


class Placer:
    """Finds nodes for new replicas in the working state of one plan."""

    def __init__(self, working: WorkingState) -> None:
        self._working = working
        self._preemption = Preemption(working)

    def place(
        self, spec: ModelSpec, nodes: Iterable[Node] | None = None, *, may_preempt: bool = True
    ) -> Placement | Insufficient:
        """Returns the best place among `nodes`, or among all nodes on which the model may run if `nodes` is None."""
        among = self._working.feasible_nodes(spec) if nodes is None else nodes
        checks = [FitCheck.projected(self._working, node, spec) for node in among]
        fitting = [check for check in checks if check.fits]
        return (
            self._place_now(fitting)
            or _place_later(fitting)
            or (self._place_by_preemption(checks) if may_preempt else None)
            or self._insufficient(checks, may_preempt=may_preempt)
        )

    def _place_now(self, fitting: list[FitCheck]) -> Placement | None:
        current = [FitCheck.current(check.working, check.node, check.spec) for check in fitting]
        placements = [_placement(check) for check in current if check.fits]
        return min(placements, key=lambda each: (each.scores, each.node.name), default=None)

    def _place_by_preemption(self, checks: list[FitCheck]) -> Placement | None:
        """Picks the node with the fewest victims. Of several, the one whose victims have been idle longest wins."""
        ways = [(check, victims) for check in checks if (victims := self._preemption.victims(check))]
        if not ways:
            return None
        check, victims = min(
            ways, key=lambda way: (len(way[1]), -shortest_idle_seconds(self._working, way[1]), way[0].node.name)
        )
        return replace(_placement(replace(check, preempted=victims)), is_free=False, victims=victims)

    def _insufficient(self, checks: list[FitCheck], *, may_preempt: bool) -> Insufficient:
        blocked = [(check, self._preemption.busy_victims(check)) for check in checks]
        times = [at for check, busy in blocked for at in self._room_may_come_at(check, busy)] if may_preempt else []
        return Insufficient(
            {check.node.name: _why_not(check, busy) for check, busy in blocked}, min(times, default=None)
        )

    def _room_may_come_at(self, check: FitCheck, busy: list[Replica]) -> list[float]:
        """Returns the time at which room may come by waiting alone: replicas in the way may go then, or readings
        settle."""
        settles_at = check.info.settles_at
        return [may_leave_at(self._working, each) for each in busy] + ([settles_at] if settles_at else [])


def _place_later(fitting: list[FitCheck]) -> Placement | None:
    """Picks the tightest node, so that a small newcomer does not reserve the room that is made for a large one."""
    best = min(fitting, key=lambda check: (check.free_bytes_after or 0, check.node.name), default=None)
    return None if best is None else replace(_placement(best), is_free=False, replan_at=best.info.settles_at)


def _placement(check: FitCheck) -> Placement:
    assert check.free_slot is not None  # noqa: S101 - a check that fits has one, and preemption needs one
    return Placement(check.node, check.free_slot, _scores(check))


def _scores(check: FitCheck) -> tuple[NodeScore, ...]:
    """Scores the node, most important first.

    A node where something has just broken comes last, replicas of one model are spread, then the emptier node wins,
    and then the one with more memory left.
    """
    replicas = check.info.replicas
    return (
        NodeScore("has a broken replica", float(check.node.id in check.working.nodes_with_broken_replicas)),
        NodeScore("replicas of the model", float(sum(each.model == check.spec.name for each in replicas))),
        NodeScore("replicas", float(len(replicas))),
        NodeScore("free bytes after", -float(check.free_bytes_after or 0)),
    )


def _why_not(check: FitCheck, busy: list[Replica]) -> str:
    missing = ", ".join(FitCheck.current(check.working, check.node, check.spec).missing())
    in_use = sorted({each.model for each in busy})
    return f"{missing}; in use: {', '.join(in_use)}" if in_use else missing
