"""Whether a node has room for one more replica of a model, and what is missing if not. Pure.

Theory of operation. Memory is that of the node's GPUs, or the machine's own where there is none. A row reserves what
its model needs from its placement on (P2, P3), so free for a newcomer is the lesser of

    what the node has told to be free   minus   what replicas need that it can't have seen yet
    all that the node has               minus   what all replicas there need

where a replica can't have been seen while it comes up and for `SETTLE_SECONDS` more. What is not known is no
constraint; a known zero is one, even for a model of which nothing is known.

Each question is asked twice: of the node as it is, and as it will be `soon`, once those that leave have left and its
readings have settled. The first decides whether a replica may be started, the second whether somebody has to go: an
innocent must not go because of a late number.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass
from typing import Final

from gateway.control.ground import Ground, is_leaving
from gateway.control.remembered import free_reading, memory_need
from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import COMING_UP, Observed
from gateway.domain.model_spec import ModelSpec

SETTLE_SECONDS: Final = 30.0
"""After which a node has told of what a replica took or gave back."""
DISK_HEADROOM_SHARE: Final = 0.05
DISK_HEADROOM_BYTES_MIN: Final = 2**30
"""Both: of the disk, beside the artifact itself (P1)."""
UNKNOWN_NEED_BYTES: Final = 1
"""What is asked for where nothing is known: not to be put where there is nothing at all."""
NOBODY: Final[frozenset[ReplicaId]] = frozenset()
NOT_HERE_YET: Final = frozenset({Observed.PLACED, Observed.FETCHING})


@dataclass(frozen=True)
class Question:
    """Room for one more replica of `spec` on `node`."""

    ground: Ground
    node: Node
    spec: ModelSpec
    soon: bool = False
    """As it will be once those that leave have left and readings have settled."""
    without: Container[ReplicaId] = NOBODY
    """Besides, if these had left, too."""

    def rows(self) -> list[Replica]:
        """Those that are in the way."""
        return [row for row in self.ground.on(self.node) if not self.soon or self._stays(row)]

    def _stays(self, row: Replica) -> bool:
        return not is_leaving(row) and row.id not in self.without

    def need_of(self, rows: Iterable[Replica]) -> int:
        return sum(memory_need(self.ground.state, self.node, row.model) or 0 for row in rows)


def lacks(question: Question) -> list[str]:
    """What is missing, in words and numbers; empty if there is room."""
    checks: tuple[Callable[[Question], str | None], ...] = (_lacks_slot, _lacks_peace, _lacks_memory, _lacks_disk)
    return [lack for check in checks if (lack := check(question)) is not None]


def free_slot(question: Question) -> int | None:
    """The first slot of the model that nobody holds, (node, model, slot) being unique (R10)."""
    used = {row.slot for row in question.rows() if row.model == question.spec.name}
    return next((slot for slot in range(question.node.max_replicas_per_model) if slot not in used), None)


def memory_after(question: Question) -> int | None:
    """Bytes that would still be free; negative if there is not enough; None: unknown."""
    free = free_memory(question)
    return None if free is None else free - _need(question)


def free_memory(question: Question) -> int | None:
    """Bytes for a newcomer, what others have been promised taken off; None: unknown."""
    ground, node = question.ground, question.node
    soon = Question(ground, node, question.spec, soon=True, without=question.without)
    claimed = sum(memory_need(ground.state, node, claim.model) or 0 for claim in ground.claims_on(node))
    later = [free - claimed for free in (_unused_soon(soon), _unpromised(soon)) if free is not None]
    now = [] if question.soon else [free for free in (_unused(question), _unpromised(question)) if free is not None]
    return min(now + later, default=None)


def settles_at(ground: Ground, node: Node) -> float | None:
    """When time alone makes the next of its readings count; None: they all do."""
    times = [row.since + SETTLE_SECONDS for row in ground.on(node) if row.observed is Observed.READY]
    if (freed := ground.remembered.freed.get(node.id)) is not None:
        times.append(freed.at + SETTLE_SECONDS)
    return min((at for at in times if at > ground.now), default=None)


def _unpromised(question: Question) -> int | None:
    capacity = question.node.capacity
    total = capacity.vram_bytes if capacity.gpus else capacity.ram_bytes
    return None if total is None else total - question.need_of(question.rows())


def _unused(question: Question) -> int | None:
    reading, given_back = _reading(question.ground, question.node)
    if reading is None:
        return None
    unseen = [row for row in question.rows() if _is_unseen(row, question.ground.now)]
    return reading + given_back - question.need_of(unseen)


def _unused_soon(question: Question) -> int | None:
    """Where a reading is known to be outdated, only what has been promised counts."""
    reading, _ = _reading(question.ground, question.node)
    if reading is None or _is_outdated(question.ground, question.node):
        return None
    stays = {row.id for row in question.rows()}
    leaving = [row for row in question.ground.on(question.node) if row.id not in stays]
    return reading + question.need_of(row for row in leaving if row.observed not in COMING_UP)


def _reading(ground: Ground, node: Node) -> tuple[int | None, int]:
    """What was told last, and what was given back since."""
    freed = ground.remembered.freed.get(node.id)
    return free_reading(node), freed.bytes if freed is not None and _is_outdated(ground, node) else 0


def _is_outdated(ground: Ground, node: Node) -> bool:
    freed = ground.remembered.freed.get(node.id)
    return freed is not None and freed.reading == free_reading(node) and ground.now < freed.at + SETTLE_SECONDS


def _is_unseen(row: Replica, now: float) -> bool:
    return row.observed in COMING_UP or (row.observed is Observed.READY and now < row.since + SETTLE_SECONDS)


def _need(question: Question) -> int:
    need = memory_need(question.ground.state, question.node, question.spec.name)
    return UNKNOWN_NEED_BYTES if need is None else need


def _lacks_slot(question: Question) -> str | None:
    if free_slot(question) is not None:
        return None
    slots = question.node.max_replicas_per_model
    return f"{slots} of {slots} slots taken"


def _lacks_peace(question: Question) -> str | None:
    """Models of one exclusive group are never on one node, not even while one of them leaves (R17)."""
    group, models = question.spec.exclusive_group, question.ground.state.models
    if group is None:
        return None
    near = [row.model for row in question.rows()] + [claim.model for claim in question.ground.claims_on(question.node)]
    others = (models[name] for name in near if name != question.spec.name and name in models)
    rival = next((other for other in others if other.exclusive_group == group), None)
    return None if rival is None else f"'{rival.name}' of the exclusive group '{group}' is there"


def _lacks_memory(question: Question) -> str | None:
    free, need = free_memory(question), _need(question)
    if free is None or need <= free:
        return None
    kind = "GPU memory" if question.node.capacity.gpus else "memory"
    known = memory_need(question.ground.state, question.node, question.spec.name) is not None
    return f"needs {in_words(need) if known else 'some'} of {kind}, {in_words(max(0, free))} free"


def _lacks_disk(question: Question) -> str | None:
    """Leaving replicas give no disk back, so now and soon are the same."""
    ground, free = question.ground, question.node.capacity.disk_free_bytes
    size = _to_fetch(question, question.spec.name)
    if free is None or size is None:
        return None
    coming = {row.model for row in ground.on(question.node)} | {each.model for each in ground.claims_on(question.node)}
    free -= sum(_to_fetch(question, model) or 0 for model in coming - {question.spec.name})
    need = size + max(int(size * DISK_HEADROOM_SHARE), DISK_HEADROOM_BYTES_MIN)
    if need <= free:
        return None
    return f"needs {in_words(need)} of disk, {in_words(max(0, free))} free"


def _to_fetch(question: Question, model: ModelName) -> int | None:
    """Bytes of the model's artifact if it has to be brought to the node; None: none, as far as is known."""
    ground = question.ground
    has_it = any(row.model == model and row.observed not in NOT_HERE_YET for row in ground.on(question.node))
    requirement = ground.state.requirements.get(model)
    return None if has_it or requirement is None else requirement.disk_bytes


def in_words(amount: int) -> str:
    """Bytes for people: 1.5 GiB."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if amount >= size:
            return f"{amount / size:.1f} {unit}"
    return f"{amount} bytes"
