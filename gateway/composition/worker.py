"""The composition root of `gateway worker`: the agent of this machine, and its membership in a fleet.

It opens what the two need, and ends them in order: first the replicas drain, then the worker says goodbye.
"""

import itertools
import random
import socket
import ssl
from contextlib import AsyncExitStack
from functools import partial
from urllib.parse import urlsplit

import httpx
import structlog
import trio

from gateway.backends.dial import Dial, dial
from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import open_bridge
from gateway.composition.joiner import Join, Joiner
from gateway.composition.tiny_model import write_tiny_model
from gateway.config.model import Config
from gateway.data_dir import StartupError, prepare_data_dir
from gateway.transport.tls import TlsError, client_context
from gateway.worker.agent import Agent, run_agent
from gateway.worker.artifacts.source import GatewaySource
from gateway.worker.identity import FolderInUse, holding_folder
from gateway.worker.membership import LEAVE_SECONDS, Membership, join_backoff
from gateway.worker.process.spawn import SpawnProcess, spawn_process
from gateway.worker.settings import worker_name, worker_settings

log = structlog.get_logger(__name__)


async def run_worker(
    config: Config,
    join: Join,
    stop: trio.Event,
    *,
    dial: Dial = dial,
    spawn: SpawnProcess = spawn_process,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs until `stop`, then drains and ends. Reports started, with the node's name, once it has joined.

    Raises `StartupError`, also when the first gateway that answers refuses it for good.
    """
    folder = config.server.data_dir / "worker"
    prepare_data_dir(folder)
    async with AsyncExitStack() as held:
        try:
            held.enter_context(holding_folder(folder))
            trusted = client_context(config.worker.tls_ca)
        except (FolderInUse, TlsError) as error:
            raise StartupError(str(error)) from error
        advertise = config.worker.advertise or await _own_address(join.urls)
        settings = worker_settings(
            config,
            folder,
            bind=config.worker.bind or advertise,
            advertise=advertise,
            gateway=GatewaySource(_http_context(config)),
        )
        bridge = await held.enter_async_context(open_bridge())
        http = await held.enter_async_context(httpx.AsyncClient(verify=_http_context(config)))
        async with trio.open_nursery() as services:
            control = GrpcBackendControl(bridge, dial)
            agent = await services.start(
                partial(run_agent, spawn=spawn, control=control, write_tiny_model=write_tiny_model), settings
            )
            joiner = Joiner(
                config=config, join=join, agent=agent, settings=settings, bridge=bridge, http=http, trusted=trusted
            )
            membership = _membership(config, join, agent, joiner)
            await services.start(membership.run)
            task_status.started(worker_name(config))
            await stop.wait()
            await _leave(agent, membership, config.server.drain_timeout, settings.stop_timeout_seconds)
            services.cancel_scope.cancel()


def _membership(config: Config, join: Join, agent: Agent, joiner: Joiner) -> Membership[str]:
    return Membership(
        gateways=itertools.cycle(join.urls),
        attend=joiner.attend,
        agent=agent,
        heartbeat_seconds=config.health.heartbeat,
        read_capacity=joiner.read_capacity,
        backoff=join_backoff(random.Random()),  # noqa: S311 - spreads load
    )


async def _leave(
    agent: Agent, membership: Membership[str], drain_timeout_seconds: float, stop_timeout_seconds: float
) -> None:
    """Drains the replicas, stops them, and ends the session once the gateway knows."""
    log.info("worker.draining", seconds=drain_timeout_seconds)
    agent.leave()
    with trio.move_on_after(drain_timeout_seconds + stop_timeout_seconds + LEAVE_SECONDS):
        await agent.wait_empty()
    await membership.say_goodbye()


def _http_context(config: Config) -> ssl.SSLContext:
    context = client_context(config.worker.tls_ca)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _own_address(urls: tuple[str, ...]) -> str:
    """Returns the address of this machine that faces the first gateway whose name can be resolved. It retries until one
    can be, because a machine that has just booted may have no network yet."""
    backoff = join_backoff(random.Random())  # noqa: S311 - spreads load
    while True:
        for url in urls:
            host, port = urlsplit(url).hostname or "", urlsplit(url).port or 443
            try:
                return await trio.to_thread.run_sync(_address_towards, host, port)
            except OSError as error:
                log.warning("worker.gateway_unreachable", url=url, error=str(error))
        await trio.sleep(backoff.next_seconds())


def _address_towards(host: str, port: int) -> str:
    """Returns the local address of the route to a host. Connecting a datagram socket chooses the route and sends
    nothing."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(address)
        own: str = way.getsockname()[0]
    return own
