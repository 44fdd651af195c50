"""Small fleets for tests of the router and the planner."""

from collections.abc import Callable, Generator, Iterable
from dataclasses import replace
from itertools import count
from typing import TypeVar

from gateway.domain.cluster import ClusterState, Demand, LoadFailure, Node, NodeStatus, Replica
from gateway.domain.ids import Address, BootId, GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Requirement
from gateway.domain.routability import FleetView, build_view

MODEL = ModelName("m")
NODE = NodeId("n1")
GATEWAY = GatewayId("g1")
T = TypeVar("T")


def spec(name: str = MODEL, **changes: object) -> ModelSpec:
    return replace(ModelSpec(ModelName(name), "llama-cpp", "builtin:tiny"), **changes)  # type: ignore[arg-type]


def node(node_id: str = NODE, status: NodeStatus = NodeStatus.HEALTHY, **changes: object) -> Node:
    """One that has the status: a pending one waits for its approval, any other is so by its link."""
    approved = status is not NodeStatus.PENDING
    link = status if approved else NodeStatus.HEALTHY
    base = Node(NodeId(node_id), f"name-{node_id}", BootId("boot"), link, approved=approved)
    return replace(base, **changes)  # type: ignore[arg-type]


def replica(replica_id: str, of: ModelSpec | None = None, **changes: object) -> Replica:
    """A ready one on `NODE`."""
    of = of or spec()
    base = Replica(
        ReplicaId(replica_id),
        of.name,
        NODE,
        0,
        of.revision,
        Desired.RUN,
        Observed.READY,
        of.slots,
        Address("127.0.0.1:1"),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def state(
    replicas: Iterable[Replica] = (),
    *,
    specs: Iterable[ModelSpec] | None = None,
    nodes: Iterable[Node] | None = None,
    demand: Iterable[Demand] = (),
    failures: dict[ModelName, LoadFailure] | None = None,
    version: int = 1,
    requirements: dict[ModelName, Requirement] | None = None,
    unloads: dict[ModelName, float] | None = None,
) -> ClusterState:
    return ClusterState(
        version,
        {each.name: each for each in (specs if specs is not None else [spec()])},
        failures or {},
        {each.id: each for each in (nodes if nodes is not None else [node()])},
        {each.id: each for each in replicas},
        tuple(demand),
        requirements or {},
        unloads or {},
    )


def view(*replicas: Replica, **parts: object) -> FleetView:
    return build_view(state(replicas, **parts))  # type: ignore[arg-type]


def at_once(build: Callable[[ClusterState], T]) -> Callable[[ClusterState], Generator[None, None, T]]:
    """For `run_snapshot_watcher`: builds the value in one part."""

    def parts(state: ClusterState) -> Generator[None, None, T]:
        yield from ()
        return build(state)

    return parts


def demand(model: str = MODEL, waiting: int = 1, since: float = 0.0) -> Demand:
    return Demand(GATEWAY, ModelName(model), waiting, since)


class Ids:
    """Replica ids r1, r2, ..."""

    def __init__(self) -> None:
        self._numbers = count(1)

    def __call__(self) -> ReplicaId:
        return ReplicaId(f"r{next(self._numbers)}")
