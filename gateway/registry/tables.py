"""What a registry stores, as immutable records, and what differs between two moments of it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType
from typing import Final, TypeVar

from gateway.domain.cluster import ClusterState, Demand, LoadFailure, Node, Replica
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.model_spec import ModelSpec

Key = TypeVar("Key", bound=str)
Row = TypeVar("Row")

EVENTS_KEPT: Final = 10_000
"""Rows of the audit trail; older ones are deleted."""


@dataclass(frozen=True)
class ModelRow:
    spec: ModelSpec
    failure: LoadFailure | None = None


@dataclass(frozen=True)
class NodeRow:
    node: Node
    session: int
    """Grows with each session of the node: 1 is the first."""
    gateway_id: GatewayId | None
    """Who holds the session; None after it has ended."""


@dataclass(frozen=True)
class Leadership:
    gateway_id: GatewayId | None = None
    epoch: int = 0
    """0: nobody has led yet."""


@dataclass(frozen=True)
class Event:
    """One line of the audit trail."""

    at: float
    """Seconds of the registry's clock."""
    kind: str
    """`<table>.<what happened>`, such as `replica.observed`."""
    subject: str
    """Name of the model, id of the node, replica or gateway."""
    detail: str = ""


@dataclass(frozen=True)
class Tables:
    """The rows at one moment. A store that reads only a part hands over the part that the decision needs."""

    models: Mapping[ModelName, ModelRow] = field(default_factory=dict)
    nodes: Mapping[NodeId, NodeRow] = field(default_factory=dict)
    replicas: Mapping[ReplicaId, Replica] = field(default_factory=dict)
    leadership: Leadership = Leadership()
    unreadable: Mapping[ModelName, str] = field(default_factory=dict)
    """Model rows that this version does not understand, with their `source`: kept, never shown."""

    def state(self, version: int, demand: Iterable[Demand]) -> ClusterState:
        """In the order of ids, so that equal states are gone through alike, whatever store they come from."""
        return ClusterState(
            version=version,
            models=_ordered({name: row.spec for name, row in self.models.items()}),
            failures=_ordered({name: row.failure for name, row in self.models.items() if row.failure}),
            nodes=_ordered({node_id: row.node for node_id, row in self.nodes.items()}),
            replicas=_ordered(self.replicas),
            demand=tuple(sorted(demand, key=lambda row: (row.gateway_id, row.model))),
        )


@dataclass(frozen=True)
class Changes:
    """Rows to delete and rows to write, in this order: a forgotten replica frees its slot for a new one."""

    removed_models: tuple[ModelName, ...]
    removed_replicas: tuple[ReplicaId, ...]
    models: tuple[ModelRow, ...]
    nodes: tuple[NodeRow, ...]
    replicas: tuple[Replica, ...]
    leadership: Leadership | None
    events: tuple[Event, ...]

    def __bool__(self) -> bool:
        return bool(self.events)


def difference(before: Tables, after: Tables, now: float) -> Changes:
    """What turns `before` into `after`: each changed row, and the events that tell of it. Falsy: they are equal."""
    return Changes(
        removed_models=_removed({**before.models, **before.unreadable}, {**after.models, **after.unreadable}),
        removed_replicas=_removed(before.replicas, after.replicas),
        models=_written(before.models, after.models),
        nodes=_written(before.nodes, after.nodes),
        replicas=_written(before.replicas, after.replicas),
        leadership=after.leadership if after.leadership != before.leadership else None,
        events=tuple(Event(now, *event) for event in _events(before, after)),
    )


def _removed(before: Mapping[Key, object], after: Mapping[Key, object]) -> tuple[Key, ...]:
    return tuple(sorted(key for key in before if key not in after))


def _written(before: Mapping[Key, Row], after: Mapping[Key, Row]) -> tuple[Row, ...]:
    return tuple(row for key, row in sorted(after.items(), key=itemgetter(0)) if row != before.get(key))


def _ordered(rows: Mapping[Key, Row]) -> Mapping[Key, Row]:
    return MappingProxyType(dict(sorted(rows.items(), key=itemgetter(0))))


def _events(before: Tables, after: Tables) -> Iterator[tuple[str, str, str]]:
    """Kind, subject and detail of each change."""
    for name in _removed({**before.models, **before.unreadable}, {**after.models, **after.unreadable}):
        yield "model.removed", name, ""
    for model in _written(before.models, after.models):
        yield _model_event(before.models.get(model.spec.name), model)
    for node in _written(before.nodes, after.nodes):
        yield _node_event(before.nodes.get(node.node.id), node)
    for replica_id in _removed(before.replicas, after.replicas):
        yield "replica.forgotten", replica_id, before.replicas[replica_id].observed
    for replica in _written(before.replicas, after.replicas):
        yield _replica_event(before.replicas.get(replica.id), replica)
    if after.leadership != before.leadership:
        yield "gateway.leads", after.leadership.gateway_id or "", f"epoch {after.leadership.epoch}"


def _model_event(old: ModelRow | None, new: ModelRow) -> tuple[str, str, str]:
    name = new.spec.name
    if old is None or old.spec != new.spec:
        return "model.declared", name, f"revision {new.spec.revision}"
    if new.failure is None:
        return "model.failure_cleared", name, ""
    return "model.failed", name, new.failure.cause


def _node_event(old: NodeRow | None, new: NodeRow) -> tuple[str, str, str]:
    if old is None or old.session != new.session:
        return "node.joined", new.node.id, f"session {new.session} at gateway {new.gateway_id}"
    return "node.left", new.node.id, new.node.status


def _replica_event(old: Replica | None, new: Replica) -> tuple[str, str, str]:
    if old is None or (old.model, old.node_id, old.slot) != (new.model, new.node_id, new.slot):
        return "replica.placed", new.id, f"{new.model} on node {new.node_id}, slot {new.slot}"
    if old.desired != new.desired:
        return "replica.desired", new.id, f"{old.desired} -> {new.desired}"
    detail = f"{old.observed} -> {new.observed}"
    return "replica.observed", new.id, f"{detail}: {new.error}" if new.error else detail
