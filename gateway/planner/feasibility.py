"""Whether one more replica of a model fits on a node, and what is missing if it does not. Pure.

Each check is made at two moments. `FitCheck.current` asks what the node has now and decides whether a replica may be
started. `FitCheck.projected` asks what the node will have once leaving replicas have left and its readings have
settled; it decides whether others have to be preempted, since no replica may end because of a late reading.
`node_resources` adds up what a node has at both moments. A known zero of memory is a constraint even for a model of
which nothing is known.
"""

from dataclasses import dataclass
from typing import Final, NamedTuple, Self

from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import disk_headroom_bytes, format_bytes
from gateway.planner.node_resources import NodeInfo, NodeResources
from gateway.planner.working_state import WorkingState

UNKNOWN_NEED_BYTES: Final = 1
"""The memory that a model of unknown size asks for, so that it is not placed on a node without any free memory."""


class Blockers(NamedTuple):
    """The memory and the replicas that other models would have to give up so that the replica fits."""

    missing_bytes: int
    """The missing bytes of memory. Zero or less means that there is enough."""
    conflicting_ids: frozenset[ReplicaId]
    """The replicas of other models of the same exclusive group."""


class DiskShortage(NamedTuple):
    """An artifact that does not fit on a node's disk."""

    needed_bytes: int
    """The size of the artifact, with the headroom that has to stay free."""
    free_bytes: int
    """The free disk minus the artifacts that are still to be fetched."""


@dataclass(eq=False)
class FitCheck:
    """The question whether one more replica of `spec` fits on a node, with the answer to each of its parts.

    A check sees the node as it was when the check was made, so it is made anew after each change of the working state.
    """

    working: WorkingState
    node: Node
    spec: ModelSpec
    info: NodeInfo
    """The node with its replicas and reservations."""
    resources: NodeResources
    """The resources in use and free on the node at the moment for which the question is asked."""
    preempted: tuple[Replica, ...] = ()
    """The replicas that count as gone although they have not been told to leave yet."""

    @classmethod
    def current(cls, working: WorkingState, node: Node, spec: ModelSpec) -> Self:
        """Asks whether the replica fits on the node now."""
        info = working.node_info(node)
        return cls(working, node, spec, info, info.current)

    @classmethod
    def projected(cls, working: WorkingState, node: Node, spec: ModelSpec) -> Self:
        """Asks whether it fits once leaving replicas have left. What fits now fits then, too."""
        info = working.node_info(node)
        return cls(working, node, spec, info, info.projected)

    @property
    def fits(self) -> bool:
        """Whether nothing is missing."""
        return (
            self.missing_bytes <= 0
            and self.free_slot is not None
            and self.exclusive_group_conflict is None
            and self.disk_shortage is None
        )

    def missing(self) -> list[str]:
        """Returns what is missing, one phrase with numbers for each resource. The list is empty if the replica fits."""
        phrases = (self._slot_phrase(), self._conflict_phrase(), self._memory_phrase(), self._disk_phrase())
        return [phrase for phrase in phrases if phrase is not None]

    def blockers(self) -> Blockers | None:
        """Returns what other replicas would have to give up, for a projected check.

        Returns None if it is of no use that others leave: the model itself holds all slots, a model of the same
        exclusive group has a reservation, or the disk is full, of which leaving replicas give nothing back.
        """
        if self.free_slot is None or self.disk_shortage is not None:
            return None
        if self.spec.exclusive_group is None:
            return Blockers(self.missing_bytes, frozenset())
        if any(self._is_exclusive_with(model) for model in self.info.reserved_for):
            return None
        conflicting = [each.id for each in self.resources.replicas if self._is_exclusive_with(each.model)]
        return Blockers(self.missing_bytes, frozenset(conflicting))

    # Slots

    @property
    def free_slot(self) -> int | None:
        """The first slot number of the model that no replica holds, or None if all are held (R10)."""
        used = self.resources.slots.get(self.spec.name, ())
        for slot in range(self.node.max_replicas_per_model):
            if slot not in used:
                return slot
        return None

    def _slot_phrase(self) -> str | None:
        if self.free_slot is not None:
            return None
        slots = self.node.max_replicas_per_model
        return f"{slots} of {slots} slots taken"

    # Exclusive groups

    @property
    def exclusive_group_conflict(self) -> ModelName | None:
        """A model of the same exclusive group that is on the node or has a reservation there, or None.

        Two models of one group are never on one node, not even while one of them leaves (R17).
        """
        if self.spec.exclusive_group is None:
            return None
        there = [*(each.model for each in self.resources.replicas), *self.info.reserved_for]
        return next((model for model in there if self._is_exclusive_with(model)), None)

    def _is_exclusive_with(self, model: ModelName) -> bool:
        other = self.working.snapshot.models.get(model)
        return other is not None and model != self.spec.name and other.exclusive_group == self.spec.exclusive_group

    def _conflict_phrase(self) -> str | None:
        other = self.exclusive_group_conflict
        return None if other is None else f"'{other}' of the exclusive group '{self.spec.exclusive_group}' is there"

    # Memory

    @property
    def free_bytes_after(self) -> int | None:
        """Bytes of memory that would still be free; negative if there is too little; None if unknown."""
        free = self.resources.free_bytes
        if free is None:
            return None
        if self.preempted:
            free += self.info.memory_bytes_of(self.preempted)
        needed = self.info.memory_bytes(self.spec.name)
        return free - (UNKNOWN_NEED_BYTES if needed is None else needed)

    @property
    def missing_bytes(self) -> int:
        """Bytes of memory that are missing. Zero or less means that there is enough, or that it is unknown."""
        after = self.free_bytes_after
        return 0 if after is None else -after

    def _memory_phrase(self) -> str | None:
        if self.missing_bytes <= 0:
            return None
        kind = "GPU memory" if self.node.capacity.gpus else "memory"
        needed = self.info.memory_bytes(self.spec.name)
        amount = "some" if needed is None else format_bytes(needed)
        return f"needs {amount} of {kind}, {format_bytes(max(0, self.resources.free_bytes or 0))} free"

    # Disk

    @property
    def disk_shortage(self) -> DiskShortage | None:
        """The shortage of disk for the model's artifact. None means that the artifact fits, is there already, or has
        an unknown size."""
        model, info = self.spec.name, self.info
        size, free = info.artifact_bytes(model), info.free_disk_bytes(model)
        if size is None or free is None or model in info.fetched_models:
            return None
        needed = size + disk_headroom_bytes(self.node.capacity.disk_bytes)
        return DiskShortage(needed, free) if needed > free else None

    def _disk_phrase(self) -> str | None:
        shortage = self.disk_shortage
        if shortage is None:
            return None
        needed, free = shortage
        return f"needs {format_bytes(needed, round_up=True)} of disk, {format_bytes(max(0, free))} free"
