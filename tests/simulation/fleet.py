"""The simulated fleet: several gateways from the production parts over one registry, three machines, three models."""

import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random
from typing import Final
from unittest.mock import patch

import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.backends.metadata import replica_token
from gateway.bridge import Bridge, open_bridge
from gateway.composition.parts import Gateway, open_parts
from gateway.composition.services import leave_fleet, start_services
from gateway.config.load import parse_config
from gateway.domain.ids import GatewayId, ModelName, ReplicaId, RequestId
from gateway.domain.model_spec import ModelSpec
from gateway.domain.session import Hello, Registration, SessionRefused
from gateway.registry.protocol import RegistryError
from tests.fakes.worker_parts import FakeSpawn
from tests.simulation.backend import SimBackend
from tests.simulation.call_ledger import CallLedger
from tests.simulation.clients import Clients, Request
from tests.simulation.faulty_registry import FaultyRegistry
from tests.simulation.fleet_registry import FleetRegistry
from tests.simulation.installation import CONFIG, MODELS, SECRET, Installation
from tests.simulation.joiner import Host, Link
from tests.simulation.machine import SimProcess
from tests.simulation.network import Network, find_no_file
from tests.simulation.sim_worker import SimWorker
from tests.simulation.world import World

SYNC_SECONDS: Final = 0.2
"""Coarser than in production: each exchange is a step of the simulation."""
TTL_SECONDS: Final = 15.0
DRAIN_SECONDS: Final = 30.0
RESTART_SECONDS_MAX: Final = 20.0
FLEET_CONFIG: Final = CONFIG.replace(
    "[registry]",
    f'[registry]\nlease_sync_interval = "{SYNC_SECONDS * 1000:g}ms"\ngateway_ttl = "{TTL_SECONDS:g}s"',
)


class Post:
    """One gateway, for as long as it lives."""

    def __init__(
        self, number: int, installation: Installation, faulty_registry: FaultyRegistry, services: trio.Nursery
    ) -> None:
        self.number = number
        self.installation = installation
        self.gateway: Gateway = installation.gateway
        self.faulty_registry = faulty_registry
        self.ends = trio.Event()
        """It is told to end."""
        self.is_gone = False
        self.began_at = trio.current_time()
        self._services = services
        self._links: list[Link] = []

    def __str__(self) -> str:
        return f"gateway {self.number} ({self.gateway.shared.id[:6]})"

    @property
    def is_well(self) -> bool:
        return not self.faulty_registry.is_dead and trio.current_time() >= self.faulty_registry.disturbed_until

    @property
    def takes_requests(self) -> bool:
        return not self.ends.is_set()

    async def wait_continued(self) -> None:
        await self.faulty_registry.wait_continued()

    async def register(self, registration: Registration) -> None:
        await self.gateway.shared.registry.register_node(registration)

    def serve(self, link: Link, hello: Hello) -> None:
        if self.is_gone:
            link.ended.set()
            link.cut()
            return
        self._links = [*(each for each in self._links if not each.ended.is_set()), link]
        self._services.start_soon(self._serve, link, hello)

    async def _serve(self, link: Link, hello: Hello) -> None:
        try:
            async with link.orders_out, link.reports:
                with link.at_gateway:
                    await self.gateway.control.sessions.run_session(hello, link.orders_out, link.reports)
        except (SessionRefused, RegistryError) as error:
            self.installation.world.note(f"{self} ends the session of {hello.name}: {error}")
        finally:
            link.ended.set()

    def kill(self) -> None:
        """As SIGKILL: whatever it would still say or do, nobody hears."""
        self.faulty_registry.die()
        self.ends.set()
        for link in self._links:
            link.cut()
        for request in list(self.installation.clients.live.values()):
            request.leave.cancel()


@dataclass
class Fleet:
    world: World
    network: Network
    registry: FleetRegistry
    call_ledger: CallLedger
    folder: Path
    bridge: Bridge
    places: int
    """Gateways that there are when all is well."""
    config: str = FLEET_CONFIG
    machines: tuple[SimWorker, ...] = ()
    posts: dict[int, Post] = field(default_factory=dict)
    """By place: those that live."""
    specs: dict[ModelName, ModelSpec] = field(default_factory=lambda: {spec.name: spec for spec in MODELS})
    dead: dict[GatewayId, float] = field(default_factory=dict)
    """When each that lives no longer died (Trio's clock)."""
    on_post: Callable[[Post], None] = lambda _post: None
    """Called with each gateway before it takes requests."""
    _on_pick: Callable[[RequestId], None] = lambda _request_id: None
    _declaring: trio.Lock = field(default_factory=trio.Lock)

    @property
    def gateway(self) -> Gateway:
        return self.world.random.choice(list(self.posts.values())).gateway

    @property
    def live(self) -> dict[RequestId, Request]:
        return {name: each for post in self.posts.values() for name, each in post.installation.clients.live.items()}

    @property
    def ended(self) -> dict[RequestId, Request]:
        return {name: each for post in self.posts.values() for name, each in post.installation.clients.ended.items()}

    async def send(self, request: Request) -> None:
        """To any that takes requests; with none of them there is nobody who has accepted it."""
        takers = [post for post in self.posts.values() if post.takes_requests]
        if takers:
            await self.world.random.choice(takers).installation.send(request)

    def watch_picks(self, notify: Callable[[RequestId], None]) -> None:
        self._on_pick = notify

    def token_of(self, replica_id: ReplicaId) -> str:
        return replica_token(SECRET.encode(), replica_id)

    def processes(self) -> list[SimProcess]:
        return [process for machine in self.machines for process in machine.living()]

    def backends(self) -> list[SimBackend]:
        return [process.backend for process in self.processes()]

    async def declare(self) -> None:
        async with self._declaring:
            await self.registry.declare_models(list(self.specs.values()))

    def take_registry_away(self, seconds: float) -> None:
        self.registry.away_until = max(self.registry.away_until, trio.current_time() + seconds)
        for post in self.posts.values():
            post.faulty_registry.note_break()

    def join_list(self, first: int) -> Iterator[Host | None]:
        for number in count(first):
            yield self.posts.get(number % self.places)

    async def run_place(self, number: int) -> None:
        """One gateway after the other, each with an id of its own."""
        while True:
            try:
                await self._run_gateway(number)
            except* RegistryError as group:
                self.world.note(f"gateway {number} does not start: {group.exceptions[0]}")
            await trio.sleep(self.world.random.uniform(0.5, RESTART_SECONDS_MAX))

    async def _run_gateway(self, number: int) -> None:
        """Raises `RegistryError`, in a group, if it does not come up."""
        config = parse_config(self.config.format(folder=self.folder), {})
        faulty_registry = FaultyRegistry(self.world, self.registry, lambda: list(self.specs.values()))
        rng = Random(self.world.seed + number)
        opened = open_parts(
            config,
            faulty_registry.as_registry(),
            self.bridge,
            self.network.dial,
            rng,
            connect=self.network.open_transport,
        )
        async with opened as gateway:
            faulty_registry.gateway_id = gateway.shared.id
            try:
                async with trio.open_nursery() as services:
                    await start_services(
                        gateway,
                        services,
                        control=GrpcBackendControl(self.bridge, self.network.dial),
                        spawn=FakeSpawn(),
                        estimate=find_no_file,
                    )
                    await self._serve(self._post(number, gateway, faulty_registry, services))
                    services.cancel_scope.cancel()
            finally:
                if not faulty_registry.is_dead:
                    await leave_fleet(gateway)

    def _post(self, number: int, gateway: Gateway, faulty_registry: FaultyRegistry, services: trio.Nursery) -> Post:
        clients = Clients(self.world, gateway.routing.router)
        installation = Installation(
            self.world, self.network, gateway, self.registry, self.call_ledger, self.machines, clients, self.specs
        )
        installation.watch_picks(self._note_pick)
        return Post(number, installation, faulty_registry, services)

    def _note_pick(self, request_id: RequestId) -> None:
        if request_id in self.live:  # else its gateway is just being killed
            self._on_pick(request_id)

    async def _serve(self, post: Post) -> None:
        self.world.note(f"{post} begins")
        self.posts[post.number] = post
        self.on_post(post)
        try:
            await post.ends.wait()
            if not post.faulty_registry.is_dead:
                await self._drain(post)
        finally:
            self.world.note(f"{post} ends")
            self.dead[post.gateway.shared.id] = trio.current_time()
            del self.posts[post.number]
            post.is_gone = True
        while post.installation.clients.live:  # noqa: ASYNC110 - of one that is killed, which are all cancelled
            await trio.sleep(0.001)

    async def _drain(self, post: Post) -> None:
        """As the listener does: what is there may end, for a while."""
        post.gateway.shared.stop.set()
        with trio.move_on_after(DRAIN_SECONDS):
            while post.installation.clients.live and not post.faulty_registry.is_dead:  # noqa: ASYNC110 - requests have no event
                await trio.sleep(0.5)
        for request in list(post.installation.clients.live.values()):
            request.leave.cancel()


@asynccontextmanager
async def open_fleet(
    world: World,
    folder: Path,
    gateways: int,
    prepare: Callable[[Fleet], object] = lambda _fleet: None,
    *,
    specs: Sequence[ModelSpec] = MODELS,
    config: str = FLEET_CONFIG,
) -> AsyncIterator[Fleet]:
    """`prepare` is called before anything begins."""
    network, call_ledger, registry = Network(world), CallLedger(world), FleetRegistry(world)
    async with open_bridge() as bridge:
        fleet = Fleet(world, network, registry, call_ledger, folder, bridge, gateways, config)
        fleet.specs = {spec.name: spec for spec in specs}
        fleet.machines = tuple(_sim_worker(fleet, number) for number in range(3))
        prepare(fleet)
        with network.replacing_sockets(), patch("time.time", world.skewed_clock):
            async with trio.open_nursery() as places:
                await fleet.declare()
                for number in range(gateways):
                    places.start_soon(fleet.run_place, number)
                for number, machine in enumerate(fleet.machines):
                    places.start_soon(machine.run_sim_worker, bridge, lambda first=number: fleet.join_list(first))
                try:
                    yield fleet
                finally:
                    world.clock.autojump_threshold = 0  # whoever hangs now does so in time of its own
                    places.cancel_scope.cancel()


def _sim_worker(fleet: Fleet, number: int) -> SimWorker:
    """The port allocator really binds its ports, so each machine of each run needs a loopback address of its own."""
    host = f"127.{110 + number}.{os.getpid() // 250 % 250}.{os.getpid() % 250 + 1}"
    name = f"machine{number}"
    return SimWorker(
        fleet.world, fleet.network, fleet.call_ledger, name, host, fleet.folder, 1 + (number == 0), fleet.places
    )
