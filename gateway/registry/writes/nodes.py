"""The meaning of each write about a node: pure functions.

A node has several authors. Its worker declares what the machine has and allows (`Declared`, capacity). An admin sets
what counts instead (`NodeOverrides`), whether the node may serve, and whether it drains. The gateway with its session
writes its condition (`condition`). Each write changes only the part of its author, and `_effective` alone computes what
follows.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final

from gateway.domain.cluster import Node, NodeStatus, Replica
from gateway.domain.ids import BootId, GatewayId, NodeId, ReplicaId
from gateway.domain.lifecycle import FINAL, Observed
from gateway.domain.resources import Capacity, automatic_labels, free_vram_bytes
from gateway.domain.session import Hello, Registration
from gateway.registry.protocol import FleetFull, NameTaken, NodeEdit, NodeOverrides, NotRegistered, StaleCredential
from gateway.registry.rows import storable
from gateway.registry.tables import Declared, NodeRow, Tables

SESSIONS_PER_SECOND: Final = 1000
"""The largest number of sessions that a node can have per second: see `_made`."""

UNJOINED_MAX: Final = 64
"""The largest number of nodes that have registered and whose first session has not begun. A worker begins one at
once."""
UNJOINED_SECONDS: Final = 600.0
"""The time after which nobody expects the first session of such a node any more."""
NODES_MAX: Final = 4096


def registered(tables: Tables, registration: Registration, fresh: NodeId, now: float) -> Tables:
    """Registers a worker. `fresh` is the id of its node if it needs a new one. See `node_named`.

    Raises `NameTaken`, `StaleCredential`, `FleetFull`.
    """
    name = storable(registration.name)
    _check_proof(tables, registration)
    tables = _without_namesake(tables, registration.node_id, name)
    old = _own(tables, registration.node_id, name)
    if old is None:
        return _with(_with_room(tables, now), _effective(_made(registration, name, fresh, now)))
    row = old if old.node.name == name else _effective(replace(old, node=replace(old.node, name=name)))
    if row.node.boot_id == registration.boot_id:
        return _with(tables, row)
    lost = _processes_lost(tables.replicas.values(), row.node.id, now)
    return replace(_with(tables, _restarted(row, registration.boot_id, now)), replicas=lost)


def _check_proof(tables: Tables, registration: Registration) -> None:
    """Raises `StaleCredential` if the proof of the registration is too old. An agent whose registration was never
    answered comes back with the credential of the start before, so that one counts until a newer one was used."""
    row = None if registration.node_id is None else tables.nodes.get(registration.node_id)
    if row is None or registration.proof_boot_id is None:
        return
    if registration.proof_boot_id not in {row.node.boot_id, row.node.joined_boot_id}:
        raise StaleCredential(f"the credential is not the newest of node {row.node.id}: register without it")


def _with_room(tables: Tables, now: float) -> Tables:
    """Returns the tables with room for one more node, without some that never had a session. Raises `FleetFull`."""
    busy = {replica.node_id for replica in tables.replicas.values()}
    unjoined = [row.node for row in tables.nodes.values() if _never_joined(row) and row.node.id not in busy]
    unjoined.sort(key=lambda node: (node.since, node.id), reverse=True)
    old = [node for node in unjoined if now - node.since > UNJOINED_SECONDS]
    dropped = {node.id for node in (*unjoined[UNJOINED_MAX - 1 :], *old)}
    kept = {key: row for key, row in tables.nodes.items() if key not in dropped}
    nodes = len(kept) + tables.other_nodes
    if nodes >= NODES_MAX:
        raise FleetFull(f"the fleet has {nodes} nodes, which is its limit: remove those that are gone")
    return replace(tables, nodes=kept)


def _never_joined(row: NodeRow) -> bool:
    """Returns whether the node never had a session, and no admin has set anything for it."""
    node = row.node
    is_untouched = row.overrides == NodeOverrides() and not node.draining
    return node.joined_boot_id is None and node.condition is NodeStatus.OFFLINE and is_untouched


def node_named(tables: Tables, name: str) -> NodeRow | None:
    """Returns the node of this name, as its worker gives it, or None. Names are unique."""
    return next((row for row in tables.nodes.values() if row.node.name == storable(name)), None)


def _without_namesake(tables: Tables, node_id: NodeId | None, name: str) -> Tables:
    """Returns the tables without an offline node whose name a proved one wants: its machine was probably set up
    again."""
    namesake = node_named(tables, name)
    if node_id is None or namesake is None or namesake.node.id == node_id:
        return tables
    without = removed(tables, namesake.node.id) if namesake.node.condition is NodeStatus.OFFLINE else None
    return tables if without is None else without


def _own(tables: Tables, node_id: NodeId | None, name: str) -> NodeRow | None:
    """Returns the row of the worker's node, or None if it has to be created. Raises `NameTaken`."""
    namesake = node_named(tables, name)
    if namesake is None:
        return None if node_id is None else tables.nodes.get(node_id)
    is_own = namesake.node.condition is NodeStatus.OFFLINE if node_id is None else namesake.node.id == node_id
    if not is_own:
        raise NameTaken(f"node name {name!r} belongs to node {namesake.node.id}; give this worker another name")
    return namesake


def _made(registration: Registration, name: str, fresh: NodeId, now: float) -> NodeRow:
    """Returns a new node. A worker that knows its id may come back after its node was removed. The sessions of that
    earlier node must not be taken for those of the new one, so the new numbers start where the earlier ones cannot have
    come (H9)."""
    node = Node(
        id=fresh if registration.node_id is None else registration.node_id,
        name=name,
        boot_id=registration.boot_id,
        condition=NodeStatus.OFFLINE,
        approved=registration.approved,
        since=now,
        session=0 if registration.node_id is None else int(now * SESSIONS_PER_SECOND),
    )
    return NodeRow(node)


def _restarted(row: NodeRow, boot_id: BootId, now: float) -> NodeRow:
    """Returns the node after a restart of its agent. The earlier session is over: the number grows, and no gateway
    holds it."""
    node = replace(row.node, boot_id=boot_id, session=row.node.session + 1, gateway_id=None)
    return replace(row, node=_with_condition(node, NodeStatus.OFFLINE, now))


def _processes_lost(replicas: Iterable[Replica], node_id: NodeId, now: float) -> dict[ReplicaId, Replica]:
    return {
        replica.id: replace(replica, observed=Observed.GONE, since=now)
        if replica.node_id == node_id and replica.observed not in FINAL
        else replica
        for replica in replicas
    }


def joined(tables: Tables, hello: Hello, gateway_id: GatewayId, now: float) -> Tables:
    """Begins a session: the node is healthy and has a new session number. Raises `NotRegistered`."""
    row = tables.nodes.get(hello.node_id)
    if row is None:
        raise NotRegistered(f"node {hello.node_id} is not registered: its worker has to register first")
    if row.node.boot_id != hello.boot_id:
        raise NotRegistered(f"node {hello.node_id} was registered by another start of a worker: register again")
    node = replace(
        row.node,
        session=row.node.session + 1,
        gateway_id=gateway_id,
        joined_boot_id=hello.boot_id,
        capacity=_storable_capacity(hello.capacity),
    )
    declared = Declared(_storable_labels(hello.labels), hello.max_replicas_per_model, hello.vram_budget)
    linked = _with_condition(node, NodeStatus.HEALTHY, now)
    return _with(tables, _effective(NodeRow(linked, declared, row.overrides)))


def held(tables: Tables, node_id: NodeId, session: int) -> NodeRow | None:
    """Returns the node if `session` is its newest, or None (H9)."""
    row = tables.nodes.get(node_id)
    return row if row is not None and row.node.session == session else None


def marked(
    tables: Tables, node_id: NodeId, session: int, condition: NodeStatus | None, *, ended: bool, now: float
) -> Tables | None:
    """Stores the node's condition. Returns None if the session is not the node's newest, or if it has ended and would
    revive the node (H9)."""
    row = held(tables, node_id, session)
    if row is None or (row.node.gateway_id is None and condition is not None and _revives(row.node, condition)):
        return None
    node = row.node if condition is None else _with_condition(row.node, condition, now)
    return _with(tables, replace(row, node=replace(node, gateway_id=None) if ended else node))


def capacity_recorded(tables: Tables, node_id: NodeId, session: int, capacity: Capacity) -> Tables | None:
    """Stores the node's capacity. Returns None if the session is not the node's newest (H9)."""
    row = held(tables, node_id, session)
    if row is None:
        return None
    return _with(tables, _effective(replace(row, node=replace(row.node, capacity=_storable_capacity(capacity)))))


def edited(tables: Tables, node_id: NodeId, edit: NodeEdit) -> Tables | None:
    """Stores an admin's settings. Returns None if there is no such node."""
    row = tables.nodes.get(node_id)
    if row is None:
        return None
    node = row.node
    approved = node.approved if edit.approved is None else edit.approved
    draining = node.draining if edit.draining is None else edit.draining
    row = replace(row, node=replace(node, approved=approved, draining=draining))
    if edit.overrides is not None:
        kept = {name: getattr(row.overrides, name) for name in edit.kept}
        row = _effective(replace(row, overrides=_storable_overrides(replace(edit.overrides, **kept))))
    return _with(tables, row)


def removed(tables: Tables, node_id: NodeId) -> Tables | None:
    """Returns the tables without the node and its replicas, or None if there is no such node."""
    if node_id not in tables.nodes:
        return None
    nodes = {key: row for key, row in tables.nodes.items() if key != node_id}
    replicas = {key: replica for key, replica in tables.replicas.items() if replica.node_id != node_id}
    return replace(tables, nodes=nodes, replicas=replicas)


def _with(tables: Tables, row: NodeRow) -> Tables:
    return replace(tables, nodes={**tables.nodes, row.node.id: row})


def _with_condition(node: Node, condition: NodeStatus, now: float) -> Node:
    return node if node.condition is condition else replace(node, condition=condition, since=now)


def _revives(node: Node, condition: NodeStatus) -> bool:
    return condition is NodeStatus.HEALTHY and node.condition is not NodeStatus.HEALTHY


def _effective(row: NodeRow) -> NodeRow:
    """Returns the node that follows from the worker's values under the admin's. It is called whenever either of them,
    the capacity or the name has changed."""
    node, declared, overrides = row.node, row.declared, row.overrides
    budget = declared.vram_budget if overrides.vram_budget is None else overrides.vram_budget
    replicas_max = overrides.max_replicas_per_model
    counting = replace(
        node,
        labels=MappingProxyType({**automatic_labels(node.capacity, node.name), **declared.labels, **overrides.labels}),
        max_replicas_per_model=declared.max_replicas_per_model if replicas_max is None else replicas_max,
        free_vram_bytes=free_vram_bytes(node.capacity, budget),
    )
    return replace(row, node=counting)


def _storable_labels(labels: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType({storable(label): storable(value) for label, value in labels.items()})


def _storable_overrides(overrides: NodeOverrides) -> NodeOverrides:
    return replace(overrides, labels=_storable_labels(overrides.labels))


def _storable_capacity(capacity: Capacity) -> Capacity:
    gpus = [
        replace(gpu, vendor=storable(gpu.vendor), name=storable(gpu.name), uuid=storable(gpu.uuid))
        for gpu in capacity.gpus
    ]
    return replace(capacity, gpus=tuple(gpus), cpu_flags=tuple(map(storable, capacity.cpu_flags)))
