"""The composition root: opens every part in order, hands each what it needs, closes them in reverse.

Read `open_gateway` from top to bottom: what is opened first dies last. Its three seams (`open_registry`, `dial`,
`spawn`) are all by which a gateway reaches the outside world. A simulation, which has no listener either, opens the
same parts and services by `open_parts` and `start_services`.
"""

from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from random import Random

import trio

from gateway.api.http.listener.open_files import connections_within_limit
from gateway.api.http.listener.retirement import Retirement
from gateway.api.http.listener.server import Listener, ListenerSettings
from gateway.backends.dial import Dial, dial
from gateway.backends.grpc.transport import Connect, connect
from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import open_bridge
from gateway.composition.embedded_worker import drain_embedded_worker
from gateway.composition.http_settings import listener_tls
from gateway.composition.http_sockets import HttpSockets, open_http_sockets
from gateway.composition.parts import Gateway, open_parts
from gateway.composition.services import estimate_requirement, leave_fleet, start_services
from gateway.config.model import Config
from gateway.data_dir import StartupError, prepare_data_dir
from gateway.process_place import ProcessPlace
from gateway.registry.open import open_registry
from gateway.registry.protocol import OpenRegistry
from gateway.worker.identity import FolderInUse, holding_folder
from gateway.worker.process.spawn import SpawnProcess, spawn_process


@asynccontextmanager
async def open_gateway(
    config: Config,
    *,
    place: ProcessPlace | None = None,
    open_registry: OpenRegistry = open_registry,
    dial: Dial = dial,
    connect: Connect = connect,
    spawn: SpawnProcess = spawn_process,
) -> AsyncIterator[Gateway]:
    """Opens a running gateway. Leaving the context stops it: the HTTP listener drains first, then the calls that other
    gateways have on the embedded worker, then the services end, then everything else.

    `place` is that of a process with a supervisor, which has opened the sockets.
    Raises `StartupError`, `RegistryError`.
    """
    prepare_data_dir(config.server.data_dir)
    with open_http_sockets(config.server, place) as sockets:
        async with (
            open_bridge() as bridge,
            open_registry(config.registry, bridge) as registry,
            _holding_data_dir(config),
            open_parts(
                config,
                registry,
                bridge,
                dial,
                Random(),  # noqa: S311 - breaks ties
                connect=connect,
                place=place,
            ) as gateway,
        ):
            try:
                async with trio.open_nursery() as services:
                    agent = await start_services(
                        gateway,
                        services,
                        control=GrpcBackendControl(bridge, dial),
                        spawn=spawn,
                        estimate=partial(estimate_requirement, config.worker.models_dir),
                    )
                    async with trio.open_nursery() as listener_nursery:
                        await _start_listeners(gateway, listener_nursery, sockets)
                        try:
                            yield gateway
                        finally:
                            gateway.shared.stop.set()
                            drained_at = trio.current_time() + config.server.drain_timeout
                    if agent is not None and gateway.shared.peers.has_peers:
                        await drain_embedded_worker(agent, drained_at)
                    services.cancel_scope.cancel()
            finally:
                await leave_fleet(gateway)


@asynccontextmanager
async def _holding_data_dir(config: Config) -> AsyncIterator[None]:
    """Holds the data folder for this process alone. Raises `StartupError` if another process has it."""
    with ExitStack() as held:
        try:
            held.enter_context(holding_folder(config.server.data_dir))
        except FolderInUse as error:
            raise StartupError(str(error)) from error
        yield


async def _start_listeners(gateway: Gateway, listener_nursery: trio.Nursery, sockets: HttpSockets) -> None:
    """Starts the listener for peers first, so that the public one makes the gateway known with its final address."""
    listeners, retirement = gateway.shared.listeners, gateway.shared.retirement
    if sockets.peers is not None:
        run = _listener(gateway, Retirement()).run
        listeners.open_peers(await listener_nursery.start(run, sockets.peers))
    run = _listener(gateway, retirement).run
    listeners.open_http(await listener_nursery.start(run, *sockets.public))


def _listener(gateway: Gateway, retirement: Retirement) -> Listener:
    server = gateway.shared.config.server
    return Listener(
        gateway.app,
        ListenerSettings(
            drain_seconds=server.drain_timeout,
            write_timeout_seconds=server.write_timeout,
            connections_max=connections_within_limit(server.connections_max),
            http2=server.http2,
        ),
        on_drain=gateway.app.drain,
        on_drain_end=gateway.app.end_streams,
        tls=listener_tls(gateway.shared.config, *(["h2"] if server.http2 else []), "http/1.1"),
        stop=gateway.shared.stop,
        retirement=retirement,
    )
