"""Computes the difference between two moments of the tables: the rows to write, and the lines of the audit trail."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import TypeVar

from gateway.domain.cluster import LoadFailure, Replica
from gateway.domain.ids import ModelName, NodeId, ReplicaId
from gateway.registry.protocol import Event, NodeOverrides
from gateway.registry.tables import LeaderTerm, ModelRow, NodeRow, Tables

Key = TypeVar("Key", bound=str)
Row = TypeVar("Row")


@dataclass(frozen=True)
class Changes:
    """The rows to delete and the rows to write, in this order: a deleted replica frees its slot for a new one, and a
    node is deleted after its replicas."""

    removed_models: tuple[ModelName, ...]
    removed_replicas: tuple[ReplicaId, ...]
    removed_nodes: tuple[NodeId, ...]
    models: tuple[ModelRow, ...]
    nodes: tuple[NodeRow, ...]
    replicas: tuple[Replica, ...]
    leader_term: LeaderTerm | None
    events: tuple[Event, ...]
    """The events that people want to know. Not every change is one: a node's free memory changes all the time."""

    def __bool__(self) -> bool:
        """Returns whether any row differs, and so whether there is a new version."""
        removed = self.removed_models or self.removed_replicas or self.removed_nodes
        return bool(removed or self.models or self.nodes or self.replicas or self.leader_term)


def _failure_event(name: ModelName, old: LoadFailure | None, new: LoadFailure | None) -> tuple[str, str, str]:
    if new is None:
        return "model.failure_cleared", name, ""
    is_retry = old is not None and new == replace(old, retry_at=new.retry_at) and new.retry_at < old.retry_at
    return ("model.retried", name, "") if is_retry else ("model.failed", name, new.cause)


def difference(before: Tables, after: Tables, now: float, epoch: int | None = None) -> Changes:
    """Returns the changes from `before` to `after`: each changed row, and the events. It is falsy if the tables are
    equal.

    `epoch` is that of the leader whose plan it is, or None.
    """
    return Changes(
        removed_models=_removed({**before.models, **before.unreadable}, {**after.models, **after.unreadable}),
        removed_replicas=_removed(before.replicas, after.replicas),
        removed_nodes=_removed(before.nodes, after.nodes),
        models=_written(before.models, after.models),
        nodes=_written(before.nodes, after.nodes),
        replicas=_written(before.replicas, after.replicas),
        leader_term=after.leader_term if after.leader_term.term != before.leader_term.term else None,
        events=tuple(Event(now, *event, epoch) for event in _events(before, after)),
    )


def _removed(before: Mapping[Key, object], after: Mapping[Key, object]) -> tuple[Key, ...]:
    return tuple(sorted(key for key in before if key not in after))


def _written(before: Mapping[Key, Row], after: Mapping[Key, Row]) -> tuple[Row, ...]:
    return tuple(row for key, row in sorted(after.items(), key=itemgetter(0)) if row != before.get(key))


def _events(before: Tables, after: Tables) -> Iterator[tuple[str, str, str]]:
    """Yields the kind, subject and detail of each change."""
    for name in _removed({**before.models, **before.unreadable}, {**after.models, **after.unreadable}):
        yield "model.removed", name, ""
    for model in _written(before.models, after.models):
        yield from _model_events(before.models.get(model.spec.name), model)
    for node in _written(before.nodes, after.nodes):
        yield from _node_events(before.nodes.get(node.node.id), node)
    for replica_id in _removed(before.replicas, after.replicas):
        yield "replica.forgotten", replica_id, before.replicas[replica_id].observed
    for node_id in _removed(before.nodes, after.nodes):
        yield "node.removed", node_id, before.nodes[node_id].node.name
    for replica in _written(before.replicas, after.replicas):
        yield _replica_event(before.replicas.get(replica.id), replica)
    if after.leader_term.term != before.leader_term.term:
        yield "gateway.leads", after.leader_term.gateway_id or "", f"epoch {after.leader_term.epoch}"


def _model_events(old: ModelRow | None, new: ModelRow) -> Iterator[tuple[str, str, str]]:
    """Yields an event for each changed part, but not for what the model needs of a machine. A new spec removes the
    knowledge about the old one without an event of its own."""
    name = new.spec.name
    if old is None or old.spec != new.spec:
        yield "model.declared", name, f"revision {new.spec.revision}"
        return
    if new.failure != old.failure:
        yield _failure_event(name, old.failure, new.failure)
    if new.unload_at != old.unload_at:
        yield "model.unloaded", name, ""


def _node_events(old: NodeRow | None, new: NodeRow) -> Iterator[tuple[str, str, str]]:
    """Yields an event for each changed part. There is none if only the values that the worker declares have changed."""
    node_id = new.node.id
    if old is None:
        yield "node.registered", node_id, new.node.name if new.node.approved else f"{new.node.name}, to be approved"
        return
    if (old.node.name, old.node.boot_id) != (new.node.name, new.node.boot_id):
        yield "node.registered", node_id, new.node.name
    if new.node.gateway_id is not None and old.node.session != new.node.session:
        yield "node.joined", node_id, f"session {new.node.session} at gateway {new.node.gateway_id}"
    if old.node.condition != new.node.condition:
        yield "node.link", node_id, f"{old.node.condition} -> {new.node.condition}"
    if new.node.approved and not old.node.approved:
        yield "node.approved", node_id, ""
    if old.node.draining != new.node.draining:
        yield "node.draining" if new.node.draining else "node.resumed", node_id, ""
    if edited := _edited(old, new):
        yield "node.edited", node_id, ", ".join(edited)


def _edited(old: NodeRow, new: NodeRow) -> list[str]:
    """Returns the names of an admin's changes that have no event of their own."""
    names = [field.name for field in fields(NodeOverrides)]
    edited = [name for name in names if getattr(old.overrides, name) != getattr(new.overrides, name)]
    return [*edited, "approval withdrawn"] if old.node.approved and not new.node.approved else edited


def _replica_event(old: Replica | None, new: Replica) -> tuple[str, str, str]:
    if old is None or (old.model, old.node_id, old.slot) != (new.model, new.node_id, new.slot):
        return "replica.placed", new.id, f"{new.model} on node {new.node_id}, slot {new.slot}"
    if new.broken is not None and old.broken is None:
        return "replica.broken", new.id, new.broken
    if old.desired != new.desired:
        return "replica.desired", new.id, f"{old.desired} -> {new.desired}"
    detail = f"{old.observed} -> {new.observed}"
    return "replica.observed", new.id, f"{detail}: {new.error}" if new.error else detail
