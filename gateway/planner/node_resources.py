"""The resources of one node that its replicas hold, computed once for all models that might go there. Pure.

Theory of operation. Memory is the memory of the node's GPUs, or the machine's own memory if it has no GPU. A replica
reserves what its model needs from its placement on (P2, P3), so the memory that is free for a newcomer is the lesser of

    what the node has reported as free   minus   what replicas need that this reading can't include yet
    all memory that the node has         minus   what all replicas there need

A reading can't include a replica that is coming up, or that became ready less than `SETTLE_SECONDS` ago. What is not
known is no constraint.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName
from gateway.domain.lifecycle import COMING_UP, Desired, Observed
from gateway.domain.resources import Requirement

SETTLE_SECONDS: Final = 30.0
"""How long it takes at most until a node has reported what a replica took or gave back."""
WITHOUT_ARTIFACT: Final = frozenset({Observed.PLACED, Observed.FETCHING})


@dataclass(frozen=True)
class ReleasedMemory:
    """The memory that ended replicas gave back on one node, as long as no reading of the node shows it."""

    released_at: float
    """The time at which the last of them was deleted, in seconds of the registry's clock."""
    released_bytes: int
    """The memory in bytes that they gave back together."""
    reading: int | None
    """The bytes of memory that the node had reported as free before."""


class NodeResources(NamedTuple):
    """The resources in use and free on one node, at one of two moments: now, or once leaving replicas have left."""

    replicas: tuple[Replica, ...]
    """The replicas that hold something of the node at that moment."""
    slots: Mapping[ModelName, set[int]]
    """The slot numbers that these replicas hold, by model."""
    free_bytes: int | None
    """The bytes of memory for one more replica, without what is reserved for other models. None means unknown."""


@dataclass(eq=False, kw_only=True)
class NodeInfo:
    """One node with its replicas and reservations. All that follows from them is computed once, when it is needed.

    The working state makes a new one whenever a replica or a reservation of the node changes.
    """

    node: Node
    replicas: tuple[Replica, ...]
    """All replicas on the node, the leaving ones included."""
    reserved_for: tuple[ModelName, ...]
    """The models that have a reservation on the node and no replica there yet."""
    requirements: Mapping[ModelName, Requirement]
    """The resources that each model needs, as far as they are known."""
    released: ReleasedMemory | None
    """The memory that ended replicas gave back recently. None means that readings show all of it."""
    now: float
    """The time of the plan in seconds of the registry's clock."""

    @cached_property
    def current(self) -> NodeResources:
        """The resources in use and free now. A replica that fits into this may be started."""
        free = _least(self._unused_bytes, self._unpromised_bytes(self.replicas), self.projected.free_bytes)
        return NodeResources(self.replicas, _slots(self.replicas), free)

    @cached_property
    def projected(self) -> NodeResources:
        """The resources in use and free once the leaving replicas have left and the node's readings have settled."""
        staying = tuple(each for each in self.replicas if not is_leaving(each))
        free = _least(self._projected_unused_bytes, self._unpromised_bytes(staying))
        if free is not None:
            free -= sum(self.memory_bytes(model) or 0 for model in self.reserved_for)
        return NodeResources(staying, _slots(staying), free)

    @cached_property
    def settles_at(self) -> float | None:
        """The time at which the next reading begins to count, in seconds of the registry's clock. None means that
        all count."""
        times = [each.since + SETTLE_SECONDS for each in self.replicas if each.observed is Observed.READY]
        if self.released is not None:
            times.append(self.released.released_at + SETTLE_SECONDS)
        return min((at for at in times if at > self.now), default=None)

    @cached_property
    def fetched_models(self) -> frozenset[ModelName]:
        """Models whose artifact is on the node's disk, since one of their replicas has come that far."""
        return frozenset(each.model for each in self.replicas if each.observed not in WITHOUT_ARTIFACT)

    @cached_property
    def expected_models(self) -> frozenset[ModelName]:
        """Models whose artifact is still to be fetched, for a replica or for a reservation."""
        return frozenset([*(each.model for each in self.replicas), *self.reserved_for]) - self.fetched_models

    def memory_bytes(self, model: ModelName) -> int | None:
        """Returns how many bytes of the node's memory one replica of the model takes. Returns None if unknown."""
        return required_memory(self.requirements, self.node, model)

    def memory_bytes_of(self, replicas: Iterable[Replica]) -> int:
        """Returns how many bytes of the node's memory the replicas take together, as far as it is known."""
        return sum(self.memory_bytes(each.model) or 0 for each in replicas)

    def artifact_bytes(self, model: ModelName) -> int | None:
        """Returns the size of the model's artifact. Returns None if it is unknown, or if there is nothing to fetch."""
        requirement = self.requirements.get(model)
        return None if requirement is None else requirement.disk_bytes

    def free_disk_bytes(self, model: ModelName) -> int | None:
        """Returns the bytes of disk that the artifacts of other models leave for the model's. Returns None if unknown.

        Leaving replicas give no disk back, so it is the same now and once they have left.
        """
        free = self.node.capacity.disk_free_bytes
        if free is None:
            return None
        own = self.artifact_bytes(model) or 0 if model in self.expected_models else 0
        return free - self._expected_disk_bytes + own

    @cached_property
    def _expected_disk_bytes(self) -> int:
        return sum(self.artifact_bytes(model) or 0 for model in self.expected_models)

    def _unpromised_bytes(self, replicas: Iterable[Replica]) -> int | None:
        """Returns all memory of the node minus what the replicas need, in bytes."""
        capacity = self.node.capacity
        total = capacity.vram_bytes if capacity.gpus else capacity.ram_bytes
        return None if total is None else total - self.memory_bytes_of(replicas)

    @property
    def _unused_bytes(self) -> int | None:
        """The newest reading of unused memory, in bytes, corrected by what it cannot include yet."""
        reading = free_memory_reading(self.node)
        if reading is None:
            return None
        if self._is_reading_outdated and self.released is not None:
            reading += self.released.released_bytes
        return reading - self.memory_bytes_of(each for each in self.replicas if self._is_unseen(each))

    @property
    def _projected_unused_bytes(self) -> int | None:
        """The newest reading plus the memory that leaving replicas will give back. An outdated reading is no
        constraint."""
        reading = free_memory_reading(self.node)
        if reading is None or self._is_reading_outdated:
            return None
        leaving = [each for each in self.replicas if is_leaving(each) and each.observed not in COMING_UP]
        return reading + self.memory_bytes_of(leaving)

    @cached_property
    def _is_reading_outdated(self) -> bool:
        """Whether replicas have given memory back that the newest reading does not include."""
        return (
            self.released is not None
            and self.released.reading == free_memory_reading(self.node)
            and self.now < self.released.released_at + SETTLE_SECONDS
        )

    def _is_unseen(self, replica: Replica) -> bool:
        is_fresh = replica.observed is Observed.READY and self.now < replica.since + SETTLE_SECONDS
        return is_fresh or replica.observed in COMING_UP


def free_memory_reading(node: Node) -> int | None:
    """Returns the bytes of memory that the node has reported as free: of its GPUs, or its own if it has no GPU.

    Returns None if it has reported none.
    """
    return node.free_vram_bytes if node.capacity.gpus else node.capacity.ram_free_bytes


def required_memory(requirements: Mapping[ModelName, Requirement], node: Node, model: ModelName) -> int | None:
    """Returns how many bytes of that memory one replica of the model takes. Returns None if it is unknown."""
    requirement = requirements.get(model)
    if requirement is None:
        return None
    return requirement.vram_bytes if node.capacity.gpus else requirement.ram_bytes


def is_leaving(replica: Replica) -> bool:
    """Tells whether the replica gives its resources back without any further decision."""
    return replica.desired is not Desired.RUN or replica.observed is Observed.DRAINING


def _least(*amounts: int | None) -> int | None:
    return min((amount for amount in amounts if amount is not None), default=None)


def _slots(replicas: Iterable[Replica]) -> Mapping[ModelName, set[int]]:
    slots: dict[ModelName, set[int]] = {}
    for each in replicas:
        slots.setdefault(each.model, set()).add(each.slot)
    return slots
