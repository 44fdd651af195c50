"""Whether a node has room for one more replica of a model, and what is missing if not. Pure.

Each question is asked twice: of the node as it is, and as it will be `soon`, once those that leave have left and its
readings have settled (`tally` counts both). The first decides whether a replica may be started, the second whether
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

    ground: WorkingState
    node: Node
    spec: ModelSpec
    tally: NodeResources
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
    rivals: frozenset[ReplicaId]
    """Replicas of models of the same exclusive group."""


def ask_now(ground: WorkingState, node: Node, spec: ModelSpec) -> FitCheck:
    """Asks for room on the node with what is there now."""
    return FitCheck(
        ground, node, spec, ground.once(current_resources, node), memory_need(ground.state, node, spec.name)
    )


def ask_soon(ground: WorkingState, node: Node, spec: ModelSpec) -> FitCheck:
    """Asks for room on the node once the replicas that leave have left and its readings have settled."""
    return FitCheck(
        ground, node, spec, ground.once(projected_resources, node), memory_need(ground.state, node, spec.name)
    )


def has_room(question: FitCheck) -> bool:
    """What has room now has room soon."""
    return (
        _missing_bytes(question) <= 0
        and free_slot(question) is not None
        and _exclusive_group_conflict(question) is None
        and _missing_disk(question) is None
    )


def missing_resources(question: FitCheck) -> list[str]:
    """What is missing, in words and numbers; empty if there is room."""
    checks: tuple[Callable[[FitCheck], str | None], ...] = (
        _lacks_slot,
        _exclusive_group_conflict,
        _lacks_memory,
        _lacks_disk,
    )
    return [lack for check in checks if (lack := check(question)) is not None]


def blockers(question: FitCheck) -> Blockers | None:
    """What is in the way, for a question of `ask_soon`. None: something that stays whoever leaves. Slots are held by
    the model itself, a rival has been promised room, or the disk is full, of which those that leave give nothing."""
    if free_slot(question) is None or _missing_disk(question) is not None:
        return None
    if question.spec.exclusive_group is None:
        return Blockers(_missing_bytes(question), frozenset())
    if any(_is_rival(question, claim.model) for claim in question.ground.claims_on(question.node)):
        return None
    rivals = frozenset(row.id for row in question.tally.rows if _is_rival(question, row.model))
    return Blockers(_missing_bytes(question), rivals)


def free_slot(question: FitCheck) -> int | None:
    """The first slot of the model that nobody holds, (node, model, slot) being unique (R10)."""
    used = question.tally.slots.get(question.spec.name, NO_SLOTS)
    for slot in range(question.node.max_replicas_per_model):
        if slot not in used:
            return slot
    return None


def memory_after(question: FitCheck) -> int | None:
    """Bytes that would still be free; negative if there is not enough; None: unknown."""
    free, need = question.tally.free_bytes, question.need_bytes
    if free is None:
        return None
    if question.without:
        free += need_of(question.ground, question.node, question.without)
    return free - (UNKNOWN_NEED_BYTES if need is None else need)


def _missing_bytes(question: FitCheck) -> int:
    after = memory_after(question)
    return 0 if after is None else -after


def _lacks_slot(question: FitCheck) -> str | None:
    if free_slot(question) is not None:
        return None
    slots = question.node.max_replicas_per_model
    return f"{slots} of {slots} slots taken"


def _exclusive_group_conflict(question: FitCheck) -> str | None:
    """Models of one exclusive group are never on one node, not even while one of them leaves (R17)."""
    group = question.spec.exclusive_group
    if group is None:
        return None
    near = [row.model for row in question.tally.rows]
    near += [claim.model for claim in question.ground.claims_on(question.node)]
    rival = next((name for name in near if _is_rival(question, name)), None)
    return None if rival is None else f"'{rival}' of the exclusive group '{group}' is there"


def _is_rival(question: FitCheck, model: ModelName) -> bool:
    other = question.ground.state.models.get(model)
    return (
        other is not None
        and other.name != question.spec.name
        and other.exclusive_group is not None
        and other.exclusive_group == question.spec.exclusive_group
    )


def _lacks_memory(question: FitCheck) -> str | None:
    if _missing_bytes(question) <= 0:
        return None
    kind = "GPU memory" if question.node.capacity.gpus else "memory"
    need = "some" if question.need_bytes is None else format_bytes(question.need_bytes)
    return f"needs {need} of {kind}, {format_bytes(max(0, question.tally.free_bytes or 0))} free"


def _lacks_disk(question: FitCheck) -> str | None:
    missing = _missing_disk(question)
    if missing is None:
        return None
    need, free = missing
    return f"needs {format_bytes(need)} of disk, {format_bytes(max(0, free))} free"


def _missing_disk(question: FitCheck) -> tuple[int, int] | None:
    """Bytes that it needs and that are free, if those are less. Leaving replicas give no disk back, so now and soon are
    the same."""
    ground, node, model = question.ground, question.node, question.spec.name
    free, size = node.capacity.disk_free_bytes, _disk_bytes(ground, model)
    if free is None or size is None or model in ground.once(fetched_models, node):
        return None
    free -= sum(_disk_bytes(ground, other) or 0 for other in ground.once(coming_models, node) - {model})
    need = size + disk_headroom_bytes(node.capacity.disk_bytes)
    return (need, free) if need > free else None


def _disk_bytes(ground: WorkingState, model: ModelName) -> int | None:
    """Returns the artifact's size in bytes. Returns None if it is unknown, or there is nothing to fetch."""
    requirement = ground.state.requirements.get(model)
    return None if requirement is None else requirement.disk_bytes


def format_bytes(amount: int) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount / size:.1f} {unit}"
    return f"{amount} bytes"
