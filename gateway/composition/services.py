"""Starts the services of a gateway in order, and takes it out of its fleet at the end."""

from collections.abc import Collection
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.composition.embedded_worker import start_embedded_worker
from gateway.composition.parts import Gateway
from gateway.composition.session_server import start_session_server
from gateway.config.model import Config
from gateway.control.resource_estimates import EstimateRequirement, RequirementEstimates
from gateway.data_dir import StartupError
from gateway.domain.builtin_backends import refusing_backends
from gateway.domain.ids import ReplicaId
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Requirement
from gateway.domain.routability import ViewBuilder
from gateway.gguf.errors import BrokenHeader
from gateway.gguf.files import read_requirement
from gateway.registry.protocol import RegistryError
from gateway.registry.snapshot import run_snapshot_watcher
from gateway.worker.agent import Agent
from gateway.worker.artifacts.store import local_file
from gateway.worker.process.spawn import SpawnProcess

log = structlog.get_logger(__name__)

LEAVE_SECONDS: Final = 2.0


async def estimate_requirement(models_dir: Path, spec: ModelSpec) -> Requirement | None:
    """Estimates what a model needs by reading its file in a thread. With its first argument given it is an
    `EstimateRequirement`."""
    return await trio.to_thread.run_sync(_read_requirement, models_dir, spec, abandon_on_cancel=True)


def _read_requirement(models_dir: Path, spec: ModelSpec) -> Requirement | None:
    """Returns None if the file is not on this machine or is broken. The load will name the fault."""
    try:
        path = local_file(spec, models_dir)
        return read_requirement(path, spec) if path is not None else None
    except (OSError, BrokenHeader) as error:
        log.info("model.estimate_failed", model=spec.name, cause=str(error))
        return None


async def start_services(
    gateway: Gateway,
    services: trio.Nursery,
    *,
    control: GrpcBackendControl,
    spawn: SpawnProcess,
    estimate: EstimateRequirement,
) -> Agent | None:
    """Starts everything but the HTTP listener. Returns the agent of the embedded worker, if there is one.

    Raises `StartupError`, `RegistryError`.
    """
    shared, loops = gateway.shared, gateway.control
    config, registry = shared.config, shared.registry
    builder = ViewBuilder(refusing=_refusing_backends(config))
    await services.start(run_snapshot_watcher, registry, shared.views, builder.build)
    services.start_soon(_run_view_changes, gateway)
    await services.start(loops.sync.run)
    _refuse_other_fleet(gateway)
    await registry.declare_models([entry.to_spec() for entry in config.models])
    services.start_soon(shared.failure_reporter.run)
    services.start_soon(gateway.routing.call_watch.run)
    services.start_soon(loops.load_requests.run)
    services.start_soon(RequirementEstimates(registry, shared.views, estimate).run)
    services.start_soon(gateway.lag.run)
    if gateway.keepalive is not None:
        services.start_soon(gateway.keepalive.run)
    await services.start(shared.election.run)
    await services.start(loops.reconciler.run)
    await services.start(loops.monitor.run)
    agent = await start_embedded_worker(gateway, services, control, spawn) if config.worker.embedded else None
    if config.auth.join_token is not None:
        await start_session_server(gateway, services)
    return agent


async def _run_view_changes(gateway: Gateway) -> None:
    """Tells every part that keeps state about replicas when the view changes."""
    shared, control = gateway.shared, gateway.control
    keepers = _keepers(gateway)
    view = shared.views.current
    while True:
        for _ in gateway.routing.admission.prepare_view():
            await trio.lowlevel.checkpoint()
        view = shared.views.current
        gateway.routing.admission.apply_view_change()
        for keeper in keepers:
            keeper.keep_only(view.state.replicas)
        control.load_requests.wake.set()
        shared.planner_wake.set()
        view = await shared.views.wait_change(view)


class _ReplicaKeeper(Protocol):
    """Keeps something for each replica, for as long as the replica is in the fleet."""

    def keep_only(self, fleet: Collection[ReplicaId], /) -> None:
        """Forgets everything about replicas that are not in `fleet`."""


def _keepers(gateway: Gateway) -> tuple[_ReplicaKeeper, ...]:
    """Returns every part that has to forget replicas, in the order in which they do."""
    routing, shared = gateway.routing, gateway.shared
    return (
        routing.admission.loads,
        routing.probes,
        routing.call_watch,
        routing.connections,
        shared.progress,
        shared.failure_reporter,
    )


def _refuse_other_fleet(gateway: Gateway) -> None:
    """Raises `StartupError` if a peer has another cluster secret, because each would refuse the other's workers and
    replicas."""
    peers = gateway.shared.peers
    own = peers.own.secret_fingerprint
    others = [each for each in peers.states.values() if each.secret_fingerprint not in ("", own)]
    if others:
        where = others[0].url or others[0].gateway_id
        raise StartupError(
            f"the gateway {where} of this registry has another cluster secret; set auth.cluster_secret or "
            "auth.cluster_secret_file to the same one for all gateways of the fleet (if that gateway is gone, it is "
            f"forgotten after {gateway.shared.config.registry.gateway_ttl:g} s)"
        )


async def leave_fleet(gateway: Gateway) -> None:
    """Removes this gateway from the registry, so that no peer has to wait until it counts as dead. Does nothing if the
    registry is away."""
    with trio.move_on_after(LEAVE_SECONDS, shield=True):
        try:
            await gateway.shared.registry.leave(gateway.shared.id)
        except RegistryError as error:
            log.info("peers.deregister_failed", error=str(error))


def _refusing_backends(config: Config) -> frozenset[str]:
    """Returns the backends that refuse calls when they are full: ours, unless a section replaces one, and those whose
    section says so."""
    configured = frozenset(name for name, section in config.backends.items() if section.refuses_when_full)
    return refusing_backends(config.backends, configured)
