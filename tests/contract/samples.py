"""Small records that the registry tests are made of, and the clock they are stamped with."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.domain.cluster import Node, Replica
from gateway.domain.ids import BootId, GatewayId, ModelName, NodeId, ReplicaId, Revision
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.plan_write import ControlWrite
from gateway.domain.session import Hello, Registration
from gateway.registry.protocol import Registry

GATEWAY = GatewayId("gateway-1")
OTHER_GATEWAY = GatewayId("gateway-2")
NODE = NodeId("node-1")
OTHER_NODE = NodeId("node-2")
MODEL = ModelName("tiny")
REPLICA = ReplicaId("replica-1")
OTHER_REPLICA = ReplicaId("replica-2")


@dataclass
class SettableClock:
    """Stands until a test sets it; may be read on any thread."""

    seconds: float = 1000.0

    def __call__(self) -> float:
        return self.seconds


def spec(name: str = MODEL, **changes: object) -> ModelSpec:
    fields: dict[str, object] = {"name": ModelName(name), "backend": "llama-cpp", "artifact": "builtin:tiny", **changes}
    return ModelSpec(**fields)  # type: ignore[arg-type] # named by the tests


def hello(node_id: NodeId = NODE, boot_id: str = "boot-1", **changes: object) -> Hello:
    fields: dict[str, object] = {
        "node_id": node_id,
        "name": f"name of {node_id}",
        "boot_id": BootId(boot_id),
        **changes,
    }
    return Hello(**fields)  # type: ignore[arg-type] # named by the tests


def registration(node_id: NodeId | None = NODE, boot_id: str = "boot-1", **changes: object) -> Registration:
    """Of a worker that has proved to be `node_id`."""
    fields: dict[str, object] = {
        "node_id": node_id,
        "name": f"name of {node_id}",
        "boot_id": BootId(boot_id),
        **changes,
    }
    return Registration(**fields)  # type: ignore[arg-type] # named by the tests


def replica(replica_id: ReplicaId = REPLICA, **changes: object) -> Replica:
    fields: dict[str, object] = {
        "id": replica_id,
        "model": MODEL,
        "node_id": NODE,
        "slot": 0,
        "revision": Revision("r1"),
        "desired": Desired.RUN,
        "observed": Observed.PLACED,
        "parallel": 4,
        "since": 1.0,
        **changes,
    }
    return Replica(**fields)  # type: ignore[arg-type] # named by the tests


async def join(registry: Registry, introduction: Hello | None = None, gateway_id: GatewayId = GATEWAY) -> int:
    """What a worker does to serve: it registers as what it introduces itself as, and begins a session."""
    introduction = introduction or hello()
    await registry.register_node(Registration(introduction.name, introduction.boot_id, node_id=introduction.node_id))
    return await registry.join_node(introduction, gateway_id)


TERM_SECONDS = 10.0
"""Of a leader, by a clock that stands."""


async def lead(registry: Registry, gateway_id: GatewayId = GATEWAY) -> int:
    """The epoch of a gateway that leads from now on; whoever did so far has left."""
    for other in {GATEWAY, OTHER_GATEWAY} - {gateway_id}:
        await registry.leave(other)
    epoch = await registry.acquire_or_renew(gateway_id, TERM_SECONDS)
    assert epoch is not None
    return epoch


async def place(registry: Registry, *replicas: Replica) -> None:
    await registry.apply(await lead(registry), ControlWrite(create=replicas))


async def stored_node(registry: Registry, node_id: NodeId = NODE) -> Node:
    return (await registry.read_state()).nodes[node_id]


async def stored(registry: Registry, replica_id: ReplicaId = REPLICA) -> Replica:
    return (await registry.read_state()).replicas[replica_id]


@asynccontextmanager
async def bumping(registry: Registry, versions: int) -> AsyncIterator[None]:
    """What happens inside bumps the version exactly so many times, and every reader agrees about it."""
    before = (await registry.read_state()).version
    yield
    assert (await registry.read_state()).version == before + versions
    assert registry.statistics().version == before + versions
