"""The simulated installation: one gateway from the production parts, three machines, three models."""

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import open_bridge
from gateway.composition.parts import Gateway, open_parts
from gateway.composition.services import start_services
from gateway.config.load import parse_config
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.model_spec import ModelSpec
from tests.fakes.worker_parts import FakeSpawn
from tests.simulation.backend import SimBackend
from tests.simulation.call_ledger import CallLedger
from tests.simulation.clients import Clients, Request
from tests.simulation.machine import FOREIGN, OURS, Machine, SimProcess
from tests.simulation.network import Network, find_no_file
from tests.simulation.registry import SimRegistry
from tests.simulation.world import World

QUEUE_SECONDS: Final = 20.0
LOAD_WAIT_SECONDS: Final = 30.0
QUEUE_MAX: Final = 12
SECRET: Final = "a-secret-that-is-long-enough-for-a-test"
CONFIG: Final = f"""
[server]
data_dir = "{{folder}}"
[auth]
cluster_secret = "{SECRET}"
[registry]
url = "memory:"
[worker]
embedded = false
[routing]
queue_timeout = "{QUEUE_SECONDS:g}s"
load_wait = "{LOAD_WAIT_SECONDS:g}s"
queue_max = {QUEUE_MAX}
probe_ttl = "5s"
probe_timeout = "1s"
[backends.{OURS}]
command = ["{OURS}"]
refuses_when_full = true
drains_on_term = true
[backends.{FOREIGN}]
command = ["{FOREIGN}"]
"""
MODELS: Final = (
    ModelSpec(ModelName("steady"), OURS, "", parallel=2, min_replicas=2, max_replicas=3),
    ModelSpec(ModelName("rare"), OURS, "", parallel=1, min_replicas=0, max_replicas=2),
    ModelSpec(ModelName("foreign"), FOREIGN, "", parallel=1, min_replicas=2, max_replicas=2),
)


@dataclass(frozen=True)
class Entry:
    """A model of the configuration file."""

    spec: ModelSpec

    def to_spec(self) -> ModelSpec:
        return self.spec


@dataclass
class Installation:
    world: World
    network: Network
    gateway: Gateway
    registry: SimRegistry
    call_ledger: CallLedger
    machines: tuple[Machine, ...]
    clients: Clients
    specs: dict[ModelName, ModelSpec] = field(default_factory=lambda: {spec.name: spec for spec in MODELS})
    """What is declared, or is about to be."""
    on_pick: Callable[[RequestId], None] = lambda _request_id: None
    """Called just before a request gets a lease."""
    _declaring: trio.Lock = field(default_factory=trio.Lock)

    @property
    def live(self) -> dict[RequestId, Request]:
        return self.clients.live

    async def send(self, request: Request) -> None:
        await self.clients.run(request)

    def watch_picks(self, notify: Callable[[RequestId], None]) -> None:
        self.on_pick = notify

    def processes(self) -> list[SimProcess]:
        return [process for machine in self.machines for process in machine.living()]

    def backends(self) -> list[SimBackend]:
        return [process.backend for process in self.processes()]

    async def declare(self) -> None:
        """Makes the registry's models those of `specs`, as they are by then."""
        async with self._declaring:
            await self.registry.declare_models(list(self.specs.values()))


@asynccontextmanager
async def open_installation(world: World, folder: Path) -> AsyncIterator[Installation]:
    network, call_ledger = Network(world), CallLedger(world)
    registry = SimRegistry(world)
    config = parse_config(CONFIG.format(folder=folder), {}).model_copy(update={"models": tuple(map(Entry, MODELS))})
    async with (
        open_bridge() as bridge,
        open_parts(
            config, registry, bridge, network.dial, Random(world.seed), connect=network.open_transport
        ) as gateway,
    ):
        machines = tuple(_machine(world, network, call_ledger, folder, number) for number in range(3))
        installation = Installation(
            world, network, gateway, registry, call_ledger, machines, Clients(world, gateway.routing.router)
        )
        with network.replacing_sockets():
            async with trio.open_nursery() as services:
                await installation.declare()
                await start_services(
                    gateway,
                    services,
                    control=GrpcBackendControl(bridge, network.dial),
                    spawn=FakeSpawn(),
                    estimate=find_no_file,
                )
                for machine in machines:
                    services.start_soon(machine.run, gateway)
                try:
                    yield installation
                finally:
                    world.clock.autojump_threshold = 0  # nobody steps the clock any more for whoever waits now
                    services.cancel_scope.cancel()


def _machine(world: World, network: Network, call_ledger: CallLedger, folder: Path, number: int) -> Machine:
    """The port allocator really binds its ports, so each machine of each run needs a loopback address of its own."""
    host = f"127.{100 + number}.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
    return Machine(world, network, call_ledger, f"machine{number}", host, folder, replicas_max=1 + (number == 0))
