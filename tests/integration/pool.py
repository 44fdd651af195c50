"""Several replicas of one scripted model on one machine, behind a real gateway, and looks at them one by one."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from gateway.backends.dial import dial
from gateway.backends.metadata import bearer, replica_token
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.bridge import open_bridge
from gateway.domain.ids import Address, ReplicaId
from tests.integration.harness import SCRIPTED, GatewayProcess, running_gateway, scripted_config, wait_for

SECRET: Final = "the-secret-of-the-routing-fault-tests"
NODE: Final = "box"


@contextmanager
def running_pool(
    folder: Path,
    script: Mapping[str, object],
    *,
    replicas: int = 2,
    model: str = "",
    routing: str = "",
    backend: str = "",
) -> Iterator[GatewayProcess]:
    """A gateway whose model `scripted` has that many replicas, all of them ready; it tells which one has answered.

    `model` and `routing` are further lines of those tables; `backend` takes the place of the usual backend's section.
    Events of the backends are in `folder / "events"`.
    """
    more = f"""
[auth]
cluster_secret = "{SECRET}"
[worker]
name = "{NODE}"
max_replicas_per_model = {replicas}
[routing]
expose_replica_header = true
{routing}
"""
    config = scripted_config(script, log=folder / "events", model=f"min_replicas = {replicas}\n{model}", more=more)
    with running_gateway(folder, config.replace(SCRIPTED, backend or SCRIPTED)) as gateway:
        wait_for(lambda: len(ready(gateway)) == replicas, "all replicas")
        yield gateway


def ready(gateway: GatewayProcess) -> dict[str, dict[str, Any]]:
    """The replicas that are ready and to stay, by id, as `/api/status` shows them."""
    replicas = gateway.status()["replicas"]
    return {each["id"]: each for each in replicas if (each["state"], each["desired"]) == ("ready", "run")}


def replica_of(answer: httpx.Response) -> str:
    """Which replica has served a request. Fails if none has."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-gateway-node"] == NODE
    return str(answer.headers["x-gateway-replica"])


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def unload(replica: Mapping[str, Any]) -> None:
    """Frees the replica's model, as whoever can reach its port and knows its token."""
    token = replica_token(SECRET.encode(), ReplicaId(replica["id"]))

    async def free_aio() -> None:
        channel = dial(Address(replica["address"]))
        try:
            await BackendStub(channel).Free(pb.HealthMessage(), metadata=bearer(token))
        finally:
            channel.close()

    async def free() -> None:
        async with open_bridge() as bridge:
            await bridge.run(free_aio)

    trio.run(free)
