"""What the admin API and `gateway status` show: the fleet as this gateway sees it. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gateway.api.model_body import spec_body
from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import GatewayId, ModelName
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.routing.admission import ModelQueueStatistics
from gateway.routing.eligibility import RoutingView
from gateway.routing.load_table import LoadStatistics
from gateway.routing.waiting import ProgressOf, coming_up, nobody_knows


@dataclass(frozen=True)
class StatusSource:
    """Where the documents come from."""

    gateway_id: GatewayId
    is_leader: Callable[[], bool]
    view: Callable[[], RoutingView]
    loads: Callable[[], LoadStatistics]
    queues: Callable[[], Mapping[ModelName, ModelQueueStatistics]]
    wall_clock: Callable[[], float]
    """Seconds since the epoch, as the registry's clock has them: ages are told by it, and nothing is decided."""
    progress_of: ProgressOf = nobody_knows
    requested: Callable[[ModelName], bool] = lambda _model: False
    """Whether somebody has asked for a load here that has come to nothing yet."""
    unsatisfiable: Callable[[], Mapping[ModelName, str]] = dict
    """Models that can't have what they have to have, and why, as the planner sees it."""
    waits: Callable[[], Mapping[ModelName, str]] = dict
    """Models of which a replica is wanted that can't be started now, and why."""


def status_document(source: StatusSource) -> dict[str, Any]:
    return {
        "gateways": [{"id": source.gateway_id, "leader": source.is_leader()}],
        "nodes": node_objects(source),
        "models": model_objects(source),
        "replicas": replica_objects(source),
    }


def node_objects(source: StatusSource) -> list[dict[str, Any]]:
    nodes, now = source.view().state.nodes.values(), source.wall_clock()
    return [node_object(node, now) for node in sorted(nodes, key=lambda node: node.name)]


def model_objects(source: StatusSource) -> list[dict[str, Any]]:
    specs = source.view().state.models.values()
    return [model_object(source, spec) for spec in sorted(specs, key=lambda spec: spec.name)]


def replica_objects(source: StatusSource) -> list[dict[str, Any]]:
    state, loads, now = source.view().state, source.loads(), source.wall_clock()
    return [
        _replica(replica, state.nodes.get(replica.node_id), loads, now)
        for replica in sorted(state.replicas.values(), key=lambda replica: (replica.model, replica.since))
    ]


def node_object(node: Node, now: float) -> dict[str, Any]:
    """`now`: seconds of the registry's clock."""
    return {
        "id": node.id,
        "name": node.name,
        "status": node.status.value,
        "approved": node.approved,
        "draining": node.draining,
        "labels": dict(node.labels),
        "capacity": _capacity(node),
        "since": node.since,
        "age": _age(node.since, now),
    }


def _capacity(node: Node) -> dict[str, Any]:
    """What is unknown is null."""
    capacity = node.capacity
    return {
        "gpus": [asdict(gpu) for gpu in capacity.gpus],
        "vram_bytes": capacity.vram_bytes,
        "vram_free_bytes": capacity.vram_free_bytes,
        "ram_bytes": capacity.ram_bytes,
        "ram_free_bytes": capacity.ram_free_bytes,
        "disk_bytes": capacity.disk_bytes,
        "disk_free_bytes": capacity.disk_free_bytes,
        "cpu_count": capacity.cpu_count,
        "cpu_flags": list(capacity.cpu_flags),
        "max_replicas_per_model": node.max_replicas_per_model,
        "free_vram_bytes": node.free_vram_bytes,
    }


def _age(since: float, now: float) -> float | None:
    """Seconds, never negative: the clocks of two machines differ. None: not known."""
    return round(max(0.0, now - since), 3) if since else None


def model_object(source: StatusSource, spec: ModelSpec) -> dict[str, Any]:
    view, loads, queues = source.view(), source.loads(), source.queues()
    wanted = [
        replica
        for replica in view.state.replicas.values()
        if replica.model == spec.name and replica.desired is Desired.RUN and replica.revision == spec.revision
    ]
    failure, requirement = view.state.failures.get(spec.name), view.state.requirements.get(spec.name)
    return {
        "name": spec.name,
        "source": spec.source,
        "backend": spec.backend,
        "revision": spec.revision,
        "ready": sum(replica.observed is Observed.READY for replica in wanted),
        "desired": len(wanted),
        "min_replicas": spec.min_replicas,
        "max_replicas": spec.max_replicas,
        "in_flight": loads.in_flight_by_model.get(spec.name, 0),
        "queued": queues[spec.name].waiting if spec.name in queues else 0,
        "status": _model_status(spec, view),
        "error": failure.cause if failure is not None else None,
        "retry_at": failure.retry_at if failure is not None else None,
        "requirement": asdict(requirement) if requirement is not None else None,
        "spec": spec_body(spec),
    }


def _model_status(spec: ModelSpec, view: RoutingView) -> str:
    if view.candidates.get(spec.name):
        return "ready"
    if coming_up(view, spec.name):
        return "loading"
    return "load_failed" if spec.name in view.state.failures else "not_loaded"


def _replica(replica: Replica, node: Node | None, loads: LoadStatistics, now: float) -> dict[str, Any]:
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
        "age": _age(replica.since, now),
        "error": replica.error,
    }
