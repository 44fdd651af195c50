"""What `GET /api/status` and `gateway status` show: the fleet as this gateway sees it. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import GatewayId, ModelName
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.routing.admission import ModelQueueStatistics
from gateway.routing.eligibility import RoutingView
from gateway.routing.load_table import LoadStatistics
from gateway.routing.waiting import coming_up


@dataclass(frozen=True)
class StatusSource:
    """Where the document comes from."""

    gateway_id: GatewayId
    is_leader: Callable[[], bool]
    view: Callable[[], RoutingView]
    loads: Callable[[], LoadStatistics]
    queues: Callable[[], Mapping[ModelName, ModelQueueStatistics]]


def status_document(source: StatusSource) -> dict[str, Any]:
    view, loads, queues = source.view(), source.loads(), source.queues()
    state = view.state
    return {
        "gateways": [{"id": source.gateway_id, "leader": source.is_leader()}],
        "nodes": [_node(node) for node in sorted(state.nodes.values(), key=lambda node: node.name)],
        "models": [_model(spec, view, loads, queues) for spec in sorted(state.models.values(), key=lambda m: m.name)],
        "replicas": [
            _replica(replica, state.nodes.get(replica.node_id), loads)
            for replica in sorted(state.replicas.values(), key=lambda replica: (replica.model, replica.since))
        ],
    }


def _node(node: Node) -> dict[str, Any]:
    capacity = {"max_replicas_per_model": node.max_replicas_per_model, "free_vram_bytes": node.free_vram_bytes}
    return {
        "id": node.id,
        "name": node.name,
        "status": node.status.value,
        "labels": dict(node.labels),
        "capacity": capacity,
    }


def _model(
    spec: ModelSpec,
    view: RoutingView,
    loads: LoadStatistics,
    queues: Mapping[ModelName, ModelQueueStatistics],
) -> dict[str, Any]:
    wanted = [
        replica
        for replica in view.state.replicas.values()
        if replica.model == spec.name and replica.desired is Desired.RUN and replica.revision == spec.revision
    ]
    failure = view.state.failures.get(spec.name)
    return {
        "name": spec.name,
        "backend": spec.backend,
        "revision": spec.revision,
        "ready": sum(replica.observed is Observed.READY for replica in wanted),
        "desired": len(wanted),
        "in_flight": loads.in_flight_by_model.get(spec.name, 0),
        "queued": queues[spec.name].waiting if spec.name in queues else 0,
        "status": _model_status(spec, view),
        "error": failure.cause if failure is not None else None,
    }


def _model_status(spec: ModelSpec, view: RoutingView) -> str:
    if view.candidates.get(spec.name):
        return "ready"
    if coming_up(view, spec.name):
        return "loading"
    return "load_failed" if spec.name in view.state.failures else "not_loaded"


def _replica(replica: Replica, node: Node | None, loads: LoadStatistics) -> dict[str, Any]:
    return {
        "id": replica.id,
        "model": replica.model,
        "node": node.name if node is not None else replica.node_id,
        "state": replica.observed.value,
        "desired": replica.desired.value,
        "in_flight": loads.in_flight.get(replica.id, 0),
        "slots": replica.parallel,
        "address": replica.address,
        "pid": replica.pid,
        "since": replica.since,
        "error": replica.error,
    }
