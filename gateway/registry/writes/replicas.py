"""The meaning of each write about replicas and the leader: pure functions from the stored rows to the rows that should
be stored.

Every store reads rows, asks a function of this module, and writes the difference in the same transaction, so the
meaning of a write exists once. None as a result means that the write is refused and nothing changes.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from gateway.domain.cluster import LoadFailure, Replica
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, may_follow
from gateway.domain.plan_write import ControlWrite
from gateway.domain.session import Report
from gateway.registry.protocol import StaleEpoch
from gateway.registry.rows import storable
from gateway.registry.tables import LeaderTerm, Tables
from gateway.registry.writes.nodes import held

REPORTED_FIELDS = ("address", "pid", "parallel", "exit_code", "error")


def reports_recorded(
    tables: Tables, node_id: NodeId, session: int, reports: Sequence[Report], now: float
) -> Tables | None:
    """Writes the reports, in order, over the stored values. Returns None if the session is not the node's newest (H9).

    A node reports its own replicas only: a report about another node's replica counts as one about an unknown replica.
    """
    if held(tables, node_id, session) is None:
        return None
    replicas = dict(tables.replicas)
    for report in reports:
        replica = replicas.get(report.replica_id)
        if replica and replica.node_id == node_id and may_follow(replica.observed, report.observed):
            replicas[replica.id] = _reported(replica, report, now)
    return replace(tables, replicas=replicas)


def _reported(replica: Replica, report: Report, now: float) -> Replica:
    values = {name: value for name in REPORTED_FIELDS if (value := getattr(report, name)) is not None}
    values |= {name: storable(value) for name, value in values.items() if isinstance(value, str)}
    since = replica.since if replica.observed == report.observed else now
    return replace(replica, observed=report.observed, since=since, **values)


def term_acquired(tables: Tables, gateway_id: GatewayId, until: float, now: float) -> Tables | None:
    """Makes `gateway_id` the leader until `until`. The epoch is a new one unless it led already. Returns None if
    another gateway leads."""
    leader = tables.leader_term
    if leader.gateway_id == gateway_id:
        return replace(tables, leader_term=replace(leader, expires_at=until))
    if leader.gateway_id is not None and leader.expires_at > now:
        return None
    return replace(tables, leader_term=LeaderTerm(gateway_id, leader.epoch + 1, until))


def broken(tables: Tables, replica_id: ReplicaId, because: str, *, lost: bool) -> Tables | None:
    """Records why a replica is broken. The first cause stays. Returns None if there is no such replica."""
    replica = tables.replicas.get(replica_id)
    if replica is None:
        return None
    cause = storable(because) if replica.broken is None else replica.broken
    marked = replace(replica, broken=cause, lost=replica.lost or lost)
    return replace(tables, replicas={**tables.replicas, replica_id: marked})


def applied(tables: Tables, epoch: int, write: ControlWrite) -> Tables:
    """Applies the planner's write: deletions first, then new replicas, then desired states, then load failures. If a
    part names a missing row (a replica, a model, the node of a new replica), only that part has no effect.

    Raises `StaleEpoch` unless `epoch` is the leader's (L13).
    """
    leader = tables.leader_term
    if epoch != leader.epoch:
        raise StaleEpoch(f"epoch {epoch} is over: gateway {leader.gateway_id} leads with epoch {leader.epoch}")
    replicas = {key: replica for key, replica in tables.replicas.items() if key not in write.delete}
    replicas |= _placeable(tables, replicas.values(), write.create)
    for replica_id, desired in write.set_desired:
        if replica_id in replicas:
            replicas[replica_id] = _desired(replicas[replica_id], desired, tables.version + 1)
    models = dict(tables.models)
    for name, failure in write.set_failures:
        if name in models:
            models[name] = replace(models[name], failure=_storable_failure(failure))
    return replace(tables, replicas=replicas, models=models)


def _desired(replica: Replica, desired: Desired, version: int) -> Replica:
    return replica if replica.desired is desired else replace(replica, desired=desired, desired_version=version)


def _placeable(tables: Tables, staying: Iterable[Replica], place: Iterable[Replica]) -> dict[ReplicaId, Replica]:
    """Returns the new rows whose id and slot are free and whose node exists. Of two that want one slot, it takes the
    first (R10)."""
    taken: set[object] = set()
    for replica in staying:
        taken |= {replica.id, _slot(replica)}
    placed = dict[ReplicaId, Replica]()
    for replica in place:
        if replica.node_id in tables.nodes and taken.isdisjoint({replica.id, _slot(replica)}):
            taken |= {replica.id, _slot(replica)}
            placed[replica.id] = replica
    return placed


def _slot(replica: Replica) -> tuple[NodeId, ModelName, int]:
    return replica.node_id, replica.model, replica.slot


def _storable_failure(failure: LoadFailure | None) -> LoadFailure | None:
    return failure and replace(failure, cause=storable(failure.cause))
