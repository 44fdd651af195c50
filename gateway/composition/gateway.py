"""The composition root: opens every part in order, hands each what it needs, closes them in reverse.

Read `open_gateway` from top to bottom: what is opened first dies last. The three seams (`open_registry`, `dial`,
`spawn`) are what a simulation replaces; nothing else in the gateway reaches the outside world.
"""

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from functools import partial
from typing import Final

import structlog
import trio

from gateway.api.http.server import Listener, ListenerSettings, open_socket
from gateway.backends.channel_pool import ChannelPool, Dial, dial
from gateway.backends.grpc_control import GrpcBackendControl
from gateway.backends.grpc_probe import GrpcProbe
from gateway.bridge import Bridge, open_bridge
from gateway.composition.estimates import estimate_requirement
from gateway.composition.parts import Gateway
from gateway.composition.workers import drain_embedded_worker, listener_tls, start_embedded_worker, start_session_server
from gateway.config.model import Config
from gateway.control.resource_estimates import RequirementEstimates
from gateway.data_dir import StartupError, keep_cluster_secret, prepare_data_dir
from gateway.domain.routability import REFUSING, build_view
from gateway.registry.open import open_registry
from gateway.registry.protocol import OpenRegistry, Registry, RegistryError
from gateway.registry.snapshot import run_snapshot_watcher
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.probe_cache import open_probe_cache
from gateway.worker.agent import Agent
from gateway.worker.identity import FolderInUse, holding_folder
from gateway.worker.process.spawn import SpawnProcess, spawn_process

log = structlog.get_logger(__name__)

LEAVE_SECONDS: Final = 2.0


@asynccontextmanager
async def open_gateway(
    config: Config,
    *,
    open_registry: OpenRegistry = open_registry,
    dial: Dial = dial,
    spawn: SpawnProcess = spawn_process,
) -> AsyncIterator[Gateway]:
    """A running gateway. Leaving the context stops it: the front drains first, then what other gateways have on the
    embedded worker, then the services end, then the rest.

    Raises `StartupError`, `RegistryError`.
    """
    prepare_data_dir(config.server.data_dir)
    with _listening_socket(config) as listening:
        async with (
            open_bridge() as bridge,
            open_registry(config.registry, bridge) as registry,
            _holding_data_dir(config),
            _open_parts(config, registry, bridge, dial) as gateway,
        ):
            try:
                async with trio.open_nursery() as services:
                    agent = await _start_services(gateway, services, GrpcBackendControl(bridge, dial), spawn)
                    async with trio.open_nursery() as front:
                        await _start_front(gateway, front, listening)
                        try:
                            yield gateway
                        finally:
                            gateway.stop.set()
                            drained_at = trio.current_time() + config.server.drain_timeout
                    if agent is not None and gateway.exchange.has_peers:
                        await drain_embedded_worker(agent, drained_at)
                    services.cancel_scope.cancel()
            finally:
                await _leave_fleet(gateway)


@asynccontextmanager
async def _open_parts(config: Config, registry: Registry, bridge: Bridge, dial: Dial) -> AsyncIterator[Gateway]:
    """What the services stand on: connections to backends and the cache of what is known of them."""
    loads = LoadTracker()
    probe = GrpcProbe(bridge, config.routing.probe_timeout, dial)
    with closing(ChannelPool(dial)) as channels:
        ttl = config.routing.probe_ttl
        async with open_probe_cache(probe, ttl_seconds=ttl, in_flight=loads.in_flight) as probes:
            yield Gateway(
                config=config,
                registry=registry,
                bridge=bridge,
                channels=channels,
                loads=loads,
                probes=probes,
                cluster_secret=_cluster_secret(config),
            )


@asynccontextmanager
async def _holding_data_dir(config: Config) -> AsyncIterator[None]:
    """For this process alone. Raises `StartupError`."""
    with ExitStack() as held:
        try:
            held.enter_context(holding_folder(config.server.data_dir))
        except FolderInUse as error:
            raise StartupError(str(error)) from error
        yield


@contextmanager
def _listening_socket(config: Config) -> Iterator[socket.socket]:
    """Bound before anything else is touched: a port that is taken is the commonest reason not to start."""
    host, port = config.server.host, config.server.port
    try:
        listening = open_socket(host, port)
    except OSError as error:
        raise StartupError(
            f"can't listen on {host}:{port}: {error.strerror or error}; set server.port or pass --port"
        ) from error
    with listening:
        yield listening


async def _start_services(
    gateway: Gateway, services: trio.Nursery, control: GrpcBackendControl, spawn: SpawnProcess
) -> Agent | None:
    """Returns the embedded worker's agent, if there is one."""
    build = partial(build_view, refusing=_refusing_backends(gateway.config))
    await services.start(run_snapshot_watcher, gateway.registry, gateway.views, build)
    services.start_soon(gateway.run_view_changes)
    await services.start(gateway.exchange.run)
    _refuse_other_fleet(gateway)
    await gateway.registry.declare_models([entry.to_spec() for entry in gateway.config.models])
    services.start_soon(gateway.complaints.run)
    services.start_soon(gateway.call_watch.run)
    services.start_soon(gateway.wishes.run)
    estimate = partial(estimate_requirement, gateway.config.worker.models_dir)
    services.start_soon(RequirementEstimates(gateway.registry, gateway.views, estimate).run)
    services.start_soon(gateway.lag.run)
    await services.start(gateway.leadership.run)
    await services.start(gateway.reconciler.run)
    await services.start(gateway.monitor.run)
    agent = None
    if gateway.config.worker.embedded:
        agent = await start_embedded_worker(gateway, services, control, spawn)
    if gateway.config.auth.join_token is not None:
        await start_session_server(gateway, services)
    return agent


def _refuse_other_fleet(gateway: Gateway) -> None:
    """Gateways with two secrets would each refuse the other's workers and replicas. Raises `StartupError`."""
    own = gateway.exchange.bulletin.secret_fingerprint
    others = [each for each in gateway.exchange.heard.others.values() if each.secret_fingerprint not in ("", own)]
    if others:
        where = others[0].url or others[0].gateway_id
        raise StartupError(
            f"the gateway {where} of this registry has another cluster secret; set auth.cluster_secret or "
            "auth.cluster_secret_file to the same one for all gateways of the fleet (if that gateway is gone, it is "
            f"forgotten after {gateway.config.registry.gateway_ttl:g} s)"
        )


async def _leave_fleet(gateway: Gateway) -> None:
    """Nobody has to wait until this gateway counts as dead. Without a registry they have to."""
    with trio.move_on_after(LEAVE_SECONDS, shield=True):
        try:
            await gateway.registry.leave(gateway.id)
        except RegistryError as error:
            log.info("peers.deregister_failed", error=str(error))


def _refusing_backends(config: Config) -> frozenset[str]:
    """Ours, unless a section takes the name, and those whose section says so."""
    said = {name for name, section in config.backends.items() if section.refuses_when_full}
    return frozenset(said | (REFUSING - config.backends.keys()))


async def _start_front(gateway: Gateway, front: trio.Nursery, listening: socket.socket) -> None:
    server = gateway.config.server
    listener = Listener(
        gateway.app,
        ListenerSettings(
            drain_seconds=server.drain_timeout,
            write_timeout_seconds=server.write_timeout,
            connections_max=server.connections_max,
            http2=server.http2,
        ),
        on_drain=gateway.app.drain,
        on_drain_end=gateway.app.end_streams,
        tls=listener_tls(gateway.config, *(["h2"] if server.http2 else []), "http/1.1"),
        stop=gateway.stop,
    )
    gateway.url = await front.start(listener.run, listening)


def _cluster_secret(config: Config) -> bytes:
    if config.auth.cluster_secret is not None:
        return config.auth.cluster_secret.get_secret_value().encode()
    return keep_cluster_secret(config.server.data_dir)
