"""Makes the documents of the admin API and of `gateway status`: the fleet, as this gateway and its peers know it.
Pure."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gateway.api.admin.model_body import spec_body
from gateway.control.fleet_status import FleetStatus
from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import NOTHING_KNOWN, ModelSpec, context_warning
from gateway.domain.routability import FleetView, coming_up
from gateway.routing.admission import ModelQueueStatistics
from gateway.routing.load_tracker import LoadStatistics


@dataclass(frozen=True)
class StatusSource:
    """The source of the documents: the state of the fleet, and the usage of this gateway."""

    fleet: FleetStatus
    loads: Callable[[], LoadStatistics]
    queues: Callable[[], Mapping[ModelName, ModelQueueStatistics]]
    clock: Callable[[], float]
    """The registry's clock in seconds, by which ages are computed (H11)."""
    own_load_request: Callable[[ModelName], bool] = lambda _model: False
    """Whether this gateway has an open load request for the model."""
    own_url: Callable[[], str] = str
    """The URL at which other gateways reach this one. It is empty if there is none."""

    def requested(self, model: ModelName) -> bool:
        """Returns whether there is an open load request for the model, or requests wait for it at another gateway."""
        return self.own_load_request(model) or any(
            demand.model == model for peer in self.fleet.peers.states.values() for demand in peer.demand
        )


@dataclass(frozen=True)
class _Use:
    """The usage of the whole fleet: open requests of each replica and each model, and waiting requests of each
    model."""

    in_flight: Counter[ReplicaId]
    in_flight_by_model: Counter[ModelName]
    queued: Counter[ModelName]


def _use(source: StatusSource, view: FleetView) -> _Use:
    loads, replicas = source.loads(), view.state.replicas
    use = _Use(
        Counter(loads.in_flight),
        Counter(loads.in_flight_by_model),
        Counter({model: queue.waiting for model, queue in source.queues().items()}),
    )
    for peer in source.fleet.peers.states.values():
        use.in_flight.update(peer.leases)
        use.queued.update({demand.model: demand.waiting for demand in peer.demand})
        for replica_id, leases in peer.leases.items():
            if (replica := replicas.get(replica_id)) is not None:
                use.in_flight_by_model[replica.model] += leases
    return use


def status_document(source: StatusSource) -> dict[str, Any]:
    """Returns the answer of `/api/status`: lists of the fleet's gateways, nodes, models and replicas."""
    return {
        "gateways": gateway_objects(source),
        "nodes": node_objects(source),
        "models": model_objects(source),
        "replicas": replica_objects(source),
    }


def gateway_objects(source: StatusSource) -> list[dict[str, Any]]:
    """Returns every gateway as a JSON object, this one first and the others sorted by id."""
    peers = source.fleet.peers
    others = sorted(peers.states.items())
    urls = [(peers.own.gateway_id, source.own_url()), *((gateway_id, peer.url) for gateway_id, peer in others)]
    leader = source.fleet.view.state.leader
    return [{"id": gateway_id, "leader": gateway_id == leader, "url": url or None} for gateway_id, url in urls]


def node_objects(source: StatusSource) -> list[dict[str, Any]]:
    """Returns every node as a JSON object, sorted by name."""
    nodes, now = source.fleet.view.state.nodes.values(), source.clock()
    return [node_object(node, now) for node in sorted(nodes, key=lambda node: node.name)]


def model_objects(source: StatusSource) -> list[dict[str, Any]]:
    """Returns every model as a JSON object, sorted by name."""
    view = source.fleet.view
    use = _use(source, view)
    return [_model(spec, view, use) for spec in sorted(view.state.models.values(), key=lambda spec: spec.name)]


def replica_objects(source: StatusSource) -> list[dict[str, Any]]:
    """Returns every replica as a JSON object, sorted by its model and then by its `since`."""
    view, now = source.fleet.view, source.clock()
    state, use = view.state, _use(source, view)
    return [
        _replica(replica, state.nodes.get(replica.node_id), use, now)
        for replica in sorted(state.replicas.values(), key=lambda replica: (replica.model, replica.since))
    ]


def node_object(node: Node, now: float) -> dict[str, Any]:
    """Returns one node as a JSON object. `now` is the time of the registry's clock in seconds."""
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
    """Returns the capacity as a JSON object. What is unknown is null."""
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
    """Returns an age in seconds, or None if it is not known. It is never negative, although the clocks of two machines
    differ."""
    return round(max(0.0, now - since), 3) if since else None


def model_object(source: StatusSource, view: FleetView, spec: ModelSpec) -> dict[str, Any]:
    """Returns one model of `view` as a JSON object: its spec, its status, and its use in the whole fleet."""
    return _model(spec, view, _use(source, view))


def _model(spec: ModelSpec, view: FleetView, use: _Use) -> dict[str, Any]:
    wanted = [
        replica
        for replica in view.state.replicas.values()
        if replica.model == spec.name and replica.desired is Desired.RUN and replica.revision == spec.revision
    ]
    failure, requirement = view.state.failures.get(spec.name), view.state.requirements.get(spec.name)
    capabilities = view.state.capabilities.get(spec.name, NOTHING_KNOWN)
    warning = context_warning(spec, capabilities.context_tokens)
    return {
        "name": spec.name,
        "source": spec.source,
        "backend": spec.backend,
        "revision": spec.revision,
        "ready": sum(replica.observed is Observed.READY for replica in wanted),
        "desired": len(wanted),
        "min_replicas": spec.min_replicas,
        "max_replicas": spec.max_replicas,
        "in_flight": use.in_flight_by_model[spec.name],
        "queued": use.queued[spec.name],
        "status": _model_status(spec, view),
        "error": failure.cause if failure is not None else None,
        "retry_at": failure.retry_at if failure is not None else None,
        "requirement": asdict(requirement) if requirement is not None else None,
        "capabilities": capabilities.known(),
        "context_tokens": capabilities.context_tokens or spec.context_tokens,
        "warnings": [] if warning is None else [warning],
        "spec": spec_body(spec),
    }


def _model_status(spec: ModelSpec, view: FleetView) -> str:
    if view.candidates.get(spec.name):
        return "ready"
    if coming_up(view, spec.name):
        return "loading"
    return "load_failed" if spec.name in view.state.failures else "not_loaded"


def _replica(replica: Replica, node: Node | None, use: _Use, now: float) -> dict[str, Any]:
    return {
        "id": replica.id,
        "model": replica.model,
        "node": node.name if node is not None else replica.node_id,
        "state": replica.observed.value,
        "desired": replica.desired.value,
        "in_flight": use.in_flight[replica.id],
        "slots": replica.parallel,
        "address": replica.address,
        "pid": replica.pid,
        "since": replica.since,
        "age": _age(replica.since, now),
        "error": replica.error,
    }
