"""The worker that is part of the gateway's own process: its agent, and its sessions over memory channels."""

from dataclasses import replace
from functools import partial
from typing import Final

import structlog
import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.composition.parts import Gateway
from gateway.composition.tiny_model import write_tiny_model
from gateway.data_dir import keep_node_id
from gateway.domain.ids import BootId, new_id
from gateway.domain.session import FromWorker, Hello, Registration, SessionRefused, ToWorker
from gateway.registry.protocol import RegistryError
from gateway.worker.agent import Agent, run_agent
from gateway.worker.capacity_reader import CapacityReader
from gateway.worker.process.spawn import SpawnProcess
from gateway.worker.session import WorkerSession
from gateway.worker.settings import hello_of, worker_settings

log = structlog.get_logger(__name__)

MESSAGES_MAX: Final = 64
"""The number of messages of the embedded worker's session that may wait to be read, in each direction."""
LOOPBACK: Final = "127.0.0.1"
"""The address at which backends of the embedded worker listen unless the configuration says something else."""
EMBEDDED_PAUSE_SECONDS: Final = 1.0
"""The pause between two sessions of the embedded worker."""


async def start_embedded_worker(
    gateway: Gateway, services: trio.Nursery, control: GrpcBackendControl, spawn: SpawnProcess
) -> Agent:
    """Starts the agent and its sessions, which memory channels join instead of a connection."""
    config = gateway.shared.config
    data_dir, bind = config.server.data_dir, config.worker.bind or LOOPBACK
    settings = worker_settings(config, data_dir, bind=bind, advertise=config.worker.advertise or bind)
    agent: Agent = await services.start(
        partial(run_agent, spawn=spawn, control=control, write_tiny_model=write_tiny_model), settings
    )
    read = CapacityReader(config.worker.models_dir)
    hello = hello_of(config, keep_node_id(data_dir), BootId(new_id()), await read())
    await services.start(_run_embedded_sessions, gateway, agent, read, hello)
    return agent


async def drain_embedded_worker(agent: Agent, until: float) -> None:
    """Lets the backends finish the calls of other gateways, until `drained_at` (Trio's clock) at most."""
    agent.leave()
    with trio.move_on_at(until):
        await agent.wait_empty()


async def _run_embedded_sessions(
    gateway: Gateway,
    agent: Agent,
    read_capacity: CapacityReader,
    hello: Hello,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs one session after the other. A session usually lasts as long as the gateway, but an admin may remove the
    node and the registry may fail. Raises `RegistryError` only if the first session does not begin."""
    has_begun = False
    while True:
        try:
            await gateway.shared.registry.register_node(Registration(hello.name, hello.boot_id, hello.node_id))
            async with trio.open_nursery() as nursery:
                await _start_embedded_session(gateway, nursery, agent, read_capacity, hello)
                if not has_begun:
                    task_status.started()
                    has_begun = True
        except* (SessionRefused, RegistryError) as group:
            if not has_begun:
                raise
            log.warning("worker.embedded_session_ended", error=str(group.exceptions[0]))
        await trio.sleep(EMBEDDED_PAUSE_SECONDS)


async def _start_embedded_session(
    gateway: Gateway, nursery: trio.Nursery, agent: Agent, read_capacity: CapacityReader, hello: Hello
) -> None:
    read = replace(hello, capacity=await read_capacity(), replicas=agent.all_reports())
    to_worker, from_gateway = trio.open_memory_channel[ToWorker](MESSAGES_MAX)
    to_gateway, from_worker = trio.open_memory_channel[FromWorker](MESSAGES_MAX)
    heartbeat = gateway.shared.config.health.heartbeat
    session = WorkerSession(
        agent=agent,
        outgoing=to_gateway,
        incoming=from_gateway,
        heartbeat_seconds=heartbeat,
        read_capacity=read_capacity,
        reported_capacity=read.capacity,
    )
    nursery.start_soon(session.run)
    await nursery.start(
        partial(gateway.control.sessions.run_session, read, to_worker, from_worker, ends_with_gateway=True)
    )
