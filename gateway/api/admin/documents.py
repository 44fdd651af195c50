"""What the admin API and `gateway status` show: the fleet, as this gateway and those it hears of know it. Pure."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gateway.api.admin.model_body import spec_body
from gateway.domain.cluster import Node, Progress, Replica
from gateway.domain.ids import GatewayId, ModelName, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.peers import PeerState, PendingReason
from gateway.domain.routability import FleetView
from gateway.routing.admission import ModelQueueStatistics
from gateway.routing.load_tracker import LoadStatistics
from gateway.routing.rejections import ProgressOf, coming_up, no_progress


@dataclass(frozen=True)
class StatusSource:
    """Where the documents come from: this gateway's own parts, and what the others have said. The methods tell of the
    whole fleet."""

    gateway_id: GatewayId
    is_leader: Callable[[], bool]
    """Whether this gateway plans."""
    view: Callable[[], FleetView]
    loads: Callable[[], LoadStatistics]
    queues: Callable[[], Mapping[ModelName, ModelQueueStatistics]]
    clock: Callable[[], float]
    """Seconds of the registry's clock: ages are told by it (H11)."""
    own_progress_of: ProgressOf = no_progress
    own_wish: Callable[[ModelName], bool] = lambda _model: False
    """Whether somebody has asked for a load here that has come to nothing yet."""
    own_unsatisfiable: Callable[[], Mapping[ModelName, str]] = dict
    """Models that can't have what they have to have, and why, as this gateway's planner sees it."""
    own_waits: Callable[[], Mapping[ModelName, PendingReason]] = dict
    """Models of which a replica is wanted that can't be started now, and why, as this gateway's planner sees it."""
    own_url: Callable[[], str] = str
    """Where other gateways reach this one; empty: nowhere."""
    peers: Callable[[], Mapping[GatewayId, PeerState]] = dict
    """The newest bulletin of each other gateway that lives."""

    def progress_of(self, replica_id: ReplicaId) -> Progress | None:
        """How far a load is: whoever holds the node's session knows. None: nobody has said anything."""
        if (own := self.own_progress_of(replica_id)) is not None:
            return own
        told = (peer.progress.get(replica_id) for peer in self.peers().values())
        return next((progress for progress in told if progress is not None), None)

    def requested(self, model: ModelName) -> bool:
        """Whether somebody has asked for a load that has come to nothing yet, or another gateway's requests wait."""
        return self.own_wish(model) or any(
            demand.model == model for peer in self.peers().values() for demand in peer.demand
        )

    def unsatisfiable(self) -> Mapping[ModelName, str]:
        """Models that can't have what they have to have, and why, as the leader sees it."""
        leader = self._other_leader()
        return self.own_unsatisfiable() if leader is None else leader.unsatisfiable

    def waits(self) -> Mapping[ModelName, PendingReason]:
        """Models of which a replica is wanted that can't be started now, and why, as the leader sees it."""
        leader = self._other_leader()
        return self.own_waits() if leader is None else leader.waits

    def shortage_of(self, model: ModelName) -> str | None:
        """Why no node has room for the model, if it waits for room and nothing is under way that makes any."""
        wait = self.waits().get(model)
        return wait.because if wait is not None and wait.is_shortage else None

    def _other_leader(self) -> PeerState | None:
        leader = self.view().state.leader
        return None if leader is None or self.is_leader() else self.peers().get(leader)


@dataclass(frozen=True)
class _Use:
    """Use of the whole fleet: open requests of each replica and each model, and requests that wait for a model."""

    in_flight: Counter[ReplicaId]
    in_flight_by_model: Counter[ModelName]
    queued: Counter[ModelName]


def _use(source: StatusSource) -> _Use:
    loads, replicas = source.loads(), source.view().state.replicas
    use = _Use(
        Counter(loads.in_flight),
        Counter(loads.in_flight_by_model),
        Counter({model: queue.waiting for model, queue in source.queues().items()}),
    )
    for peer in source.peers().values():
        use.in_flight.update(peer.leases)
        use.queued.update({demand.model: demand.waiting for demand in peer.demand})
        for replica_id, leases in peer.leases.items():
            if (replica := replicas.get(replica_id)) is not None:
                use.in_flight_by_model[replica.model] += leases
    return use


def status_document(source: StatusSource) -> dict[str, Any]:
    """Return the answer of `/api/status`: lists of the fleet's gateways, nodes, models and replicas."""
    return {
        "gateways": gateway_objects(source),
        "nodes": node_objects(source),
        "models": model_objects(source),
        "replicas": replica_objects(source),
    }


def gateway_objects(source: StatusSource) -> list[dict[str, Any]]:
    """Return every gateway as a JSON object, this one first and the others sorted by id."""
    others = sorted(source.peers().items())
    urls = [(source.gateway_id, source.own_url()), *((gateway_id, peer.url) for gateway_id, peer in others)]
    leader = source.view().state.leader
    return [{"id": gateway_id, "leader": gateway_id == leader, "url": url or None} for gateway_id, url in urls]


def node_objects(source: StatusSource) -> list[dict[str, Any]]:
    """Return every node as a JSON object, sorted by name."""
    nodes, now = source.view().state.nodes.values(), source.clock()
    return [node_object(node, now) for node in sorted(nodes, key=lambda node: node.name)]


def model_objects(source: StatusSource) -> list[dict[str, Any]]:
    """Return every model as a JSON object, sorted by name."""
    view, use = source.view(), _use(source)
    return [_model(spec, view, use) for spec in sorted(view.state.models.values(), key=lambda spec: spec.name)]


def replica_objects(source: StatusSource) -> list[dict[str, Any]]:
    """Return every replica as a JSON object, sorted by its model and then by its `since`."""
    state, use, now = source.view().state, _use(source), source.clock()
    return [
        _replica(replica, state.nodes.get(replica.node_id), use, now)
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
    """Return one model as a JSON object: its spec, its status, and its use in the whole fleet."""
    return _model(spec, source.view(), _use(source))


def _model(spec: ModelSpec, view: FleetView, use: _Use) -> dict[str, Any]:
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
        "in_flight": use.in_flight_by_model[spec.name],
        "queued": use.queued[spec.name],
        "status": _model_status(spec, view),
        "error": failure.cause if failure is not None else None,
        "retry_at": failure.retry_at if failure is not None else None,
        "requirement": asdict(requirement) if requirement is not None else None,
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
