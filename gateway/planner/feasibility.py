"""Whether a node has room for one more replica of a model, and what is missing if not. Pure.

Each question is asked twice: of the node as it is, and as it will be `soon`, once those that leave have left and its
readings have settled (`resources` counts both). The first decides whether a replica may be started, the second whether
somebody has to go: an innocent must not go because of a late number. A known zero of memory is a constraint even for a
model of which nothing is known.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import disk_headroom_bytes
from gateway.planner.history import memory_need
from gateway.planner.node_resources import (
    NodeResources,
    coming_models,
    current_resources,
    fetched_models,
    need_of,
    projected_resources,
)
from gateway.planner.working_state import WorkingState

UNKNOWN_NEED_BYTES: Final = 1
"""What is asked for where nothing is known: not to be put where there is nothing at all."""
NO_SLOTS: Final[frozenset[int]] = frozenset()


class FitCheck(NamedTuple):
    """Room for one more replica of `spec` on `node`; answered before the plan goes on."""

    working: WorkingState
    node: Node
    spec: ModelSpec
    resources: NodeResources
    """What is in use and free on the node now, or will be soon."""
    need_bytes: int | None
    """Bytes of the node's memory that the replica takes; None: unknown."""
    without: tuple[Replica, ...] = ()
    """Besides, if these had left, too: ready ones of other models."""


@dataclass(frozen=True)
class Blockers:
    """What others would have to give up soon."""

    missing_bytes: int
    """Bytes of memory; 0 or less: none."""
    conflicts: frozenset[ReplicaId]
    """Replicas of models of the same exclusive group."""


def check_current(working: WorkingState, node: Node, spec: ModelSpec) -> FitCheck:
    """Asks for room on the node with what is there now."""
    return FitCheck(
        working, node, spec, working.cached(current_resources, node), memory_need(working.state, node, spec.name)
    )


def check_projected(working: WorkingState, node: Node, spec: ModelSpec) -> FitCheck:
    """Asks for room on the node once the replicas that leave have left and its readings have settled."""
    return FitCheck(
        working, node, spec, working.cached(projected_resources, node), memory_need(working.state, node, spec.name)
    )


def has_room(fit: FitCheck) -> bool:
    """What has room now has room soon."""
    return (
        _missing_bytes(fit) <= 0
        and free_slot(fit) is not None
        and _exclusive_group_conflict(fit) is None
        and _missing_disk(fit) is None
    )


def missing_resources(fit: FitCheck) -> list[str]:
    """What is missing, in words and numbers; empty if there is room."""
    checks: tuple[Callable[[FitCheck], str | None], ...] = (
        _slot_shortage,
        _exclusive_group_conflict,
        _memory_shortage,
        _disk_shortage,
    )
    return [shortage for check in checks if (shortage := check(fit)) is not None]


def blockers(fit: FitCheck) -> Blockers | None:
    """What is in the way, for a question of `check_projected`. None: something that stays whoever leaves. Slots are
    held by the model itself, a rival has been promised room, or the disk is full, of which those that leave give
    nothing."""
    if free_slot(fit) is None or _missing_disk(fit) is not None:
        return None
    if fit.spec.exclusive_group is None:
        return Blockers(_missing_bytes(fit), frozenset())
    if any(_conflicts_with(fit, reservation.model) for reservation in fit.working.reservations_on(fit.node)):
        return None
    conflicts = frozenset(row.id for row in fit.resources.rows if _conflicts_with(fit, row.model))
    return Blockers(_missing_bytes(fit), conflicts)


def free_slot(fit: FitCheck) -> int | None:
    """The first slot of the model that nobody holds, (node, model, slot) being unique (R10)."""
    used = fit.resources.slots.get(fit.spec.name, NO_SLOTS)
    for slot in range(fit.node.max_replicas_per_model):
        if slot not in used:
            return slot
    return None


def memory_after(fit: FitCheck) -> int | None:
    """Bytes that would still be free; negative if there is not enough; None: unknown."""
    free, need = fit.resources.free_bytes, fit.need_bytes
    if free is None:
        return None
    if fit.without:
        free += need_of(fit.working, fit.node, fit.without)
    return free - (UNKNOWN_NEED_BYTES if need is None else need)


def _missing_bytes(fit: FitCheck) -> int:
    after = memory_after(fit)
    return 0 if after is None else -after


def _slot_shortage(fit: FitCheck) -> str | None:
    if free_slot(fit) is not None:
        return None
    slots = fit.node.max_replicas_per_model
    return f"{slots} of {slots} slots taken"


def _exclusive_group_conflict(fit: FitCheck) -> str | None:
    """Models of one exclusive group are never on one node, not even while one of them leaves (R17)."""
    group = fit.spec.exclusive_group
    if group is None:
        return None
    near = [row.model for row in fit.resources.rows]
    near += [reservation.model for reservation in fit.working.reservations_on(fit.node)]
    conflicting = next((name for name in near if _conflicts_with(fit, name)), None)
    return None if conflicting is None else f"'{conflicting}' of the exclusive group '{group}' is there"


def _conflicts_with(fit: FitCheck, model: ModelName) -> bool:
    other = fit.working.state.models.get(model)
    return (
        other is not None
        and other.name != fit.spec.name
        and other.exclusive_group is not None
        and other.exclusive_group == fit.spec.exclusive_group
    )


def _memory_shortage(fit: FitCheck) -> str | None:
    if _missing_bytes(fit) <= 0:
        return None
    kind = "GPU memory" if fit.node.capacity.gpus else "memory"
    need = "some" if fit.need_bytes is None else format_bytes(fit.need_bytes)
    return f"needs {need} of {kind}, {format_bytes(max(0, fit.resources.free_bytes or 0))} free"


def _disk_shortage(fit: FitCheck) -> str | None:
    missing = _missing_disk(fit)
    if missing is None:
        return None
    need, free = missing
    return f"needs {format_bytes(need)} of disk, {format_bytes(max(0, free))} free"


def _missing_disk(fit: FitCheck) -> tuple[int, int] | None:
    """Bytes that it needs and that are free, if those are less. Leaving replicas give no disk back, so now and soon are
    the same."""
    working, node, model = fit.working, fit.node, fit.spec.name
    free, size = node.capacity.disk_free_bytes, _disk_bytes(working, model)
    if free is None or size is None or model in working.cached(fetched_models, node):
        return None
    free -= sum(_disk_bytes(working, other) or 0 for other in working.cached(coming_models, node) - {model})
    need = size + disk_headroom_bytes(node.capacity.disk_bytes)
    return (need, free) if need > free else None


def _disk_bytes(working: WorkingState, model: ModelName) -> int | None:
    """Returns the artifact's size in bytes. Returns None if it is unknown, or there is nothing to fetch."""
    requirement = working.state.requirements.get(model)
    return None if requirement is None else requirement.disk_bytes


def format_bytes(amount: int) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount / size:.1f} {unit}"
    return f"{amount} bytes"
