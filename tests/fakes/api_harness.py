"""The HTTP API of one gateway as composition builds it, over a registry in memory. The test sets the parts below it."""

import hashlib
import math
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, cast

import trio

from gateway.api.admin.documents import StatusSource
from gateway.api.admin.routes import Readiness
from gateway.api.http.auth import Authenticator, Key, Role, sha256
from gateway.api.http.http_app import BodyLimits, HttpApp
from gateway.composition.http_api import HttpParts, HttpSettings, build_http_app
from gateway.control.fleet_status import FleetStatus
from gateway.control.plan_outcome import PlanOutcome
from gateway.domain.errors import GatewayError
from gateway.domain.ids import GatewayId, ModelName, ReplicaId
from gateway.domain.peers import PeerState, PeerStates
from gateway.domain.routability import EMPTY_VIEW, FleetView, build_view
from gateway.domain.session import LogChunk
from gateway.observability.metrics import Metrics
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.admission import Admission
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.router import Router
from gateway.transport.node_credentials import is_credential
from tests.fakes.asgi import AsgiRequest
from tests.fakes.fleet_status import KnownProgress, peer_table
from tests.fakes.routing_harness import idle_admission

INFERENCE_KEY: Final = "sk-inference"
ADMIN_KEY: Final = "sk-admin"
JOIN_TOKEN: Final = "join-token"
CLUSTER_SECRET: Final = b"cluster secret"
KEYS: Final = (
    Key("chat", hashlib.sha256(INFERENCE_KEY.encode()).digest(), Role.INFERENCE),
    Key("ops", hashlib.sha256(ADMIN_KEY.encode()).digest(), Role.ADMIN),
)
NOW: Final = 10_000.0
GATEWAY_ID: Final = GatewayId("g")
READY: Final = Readiness({"registry": True}, can_serve=True)
MODELS_DIR: Final = Path("/srv/models")


class FakeTails:
    """Tails that the test writes to; remembers what was asked for and what is still open."""

    def __init__(self) -> None:
        self.asked: list[tuple[ReplicaId, int, bool]] = []
        self.open: list[trio.MemorySendChannel[LogChunk]] = []
        self.refuse: GatewayError | None = None
        self.ready: tuple[LogChunk, ...] = ()
        """What each tail begins with."""

    @asynccontextmanager
    async def __call__(
        self, replica_id: ReplicaId, lines: int, *, follow: bool
    ) -> AsyncIterator[trio.MemoryReceiveChannel[LogChunk]]:
        self.asked.append((replica_id, lines, follow))
        if self.refuse is not None:
            raise self.refuse
        send, receive = trio.open_memory_channel[LogChunk](math.inf)
        for chunk in self.ready:
            send.send_nowait(chunk)
        self.open.append(send)
        try:
            yield receive
        finally:
            self.open.remove(send)


class FakeLoads:
    """Loads that somebody asked for; they are over when the test says so."""

    def __init__(self) -> None:
        self.wanted: dict[ModelName, trio.Event] = {}

    def request(self, model: ModelName) -> None:
        self.wanted[model] = trio.Event()

    def cancel(self, model: ModelName) -> None:
        if (over := self.wanted.pop(model, None)) is not None:
            over.set()

    async def wait_over(self, model: ModelName) -> None:
        if (over := self.wanted.get(model)) is not None:
            await over.wait()


@dataclass
class ApiHarness:
    """Opens `build_http_app` with a view, peers, log tails, loads and credentials that the test sets, and asks it."""

    registry: MemoryRegistry = field(default_factory=lambda: MemoryRegistry(lambda: NOW))
    tails: FakeTails = field(default_factory=FakeTails)
    views: SnapshotStore[FleetView] = field(default_factory=lambda: SnapshotStore(EMPTY_VIEW))
    loads: FakeLoads = field(default_factory=FakeLoads)
    worker_port: int | None = 8081
    advertise_host: str | None = None
    auto_approve: bool = True
    keys: tuple[Key, ...] = KEYS
    join_token: str | None = JOIN_TOKEN
    models_dir: Path = MODELS_DIR
    gateway_id: GatewayId = GATEWAY_ID
    url: str = ""
    is_leader: bool = True
    peer_tls: ssl.SSLContext | None = None
    admission: Admission = field(default_factory=idle_admission)
    load_table: LoadTracker = field(default_factory=LoadTracker)
    body_bytes_max: int = 64 * 1024
    ignore_unknown_parameters: bool = False

    def __post_init__(self) -> None:
        self.peers = peer_table(self.gateway_id)
        self.progress, self.outcome = KnownProgress(), PlanOutcome()
        fleet = FleetStatus(
            views=self.views,
            peers=self.peers,
            outcome=self.outcome,
            progress=self.progress,
            is_leader=lambda: self.is_leader,
            now=lambda: NOW,
        )
        source = StatusSource(
            fleet=fleet,
            loads=self.load_table.statistics,
            queues=self.admission.statistics,
            clock=lambda: NOW + 60,
            own_load_request=lambda model: model in self.loads.wanted,
            own_url=lambda: self.url,
        )
        parts = HttpParts(
            registry=self.registry,
            router=cast("Router", None),
            admission=self.admission,
            source=source,
            metrics=Metrics(),
            load_requests=self.loads,
            open_tail=self.tails,
            worker_port=lambda: self.worker_port,
            read=tuple,
            ready=lambda: READY,
        )
        self.app: HttpApp = build_http_app(self._settings(), parts)

    def _settings(self) -> HttpSettings:
        return HttpSettings(
            gateway_id=self.gateway_id,
            cluster_secret=CLUSTER_SECRET,
            authenticator=Authenticator(
                self.keys,
                allow_anonymous=False,
                join_token_sha256=sha256(self.join_token) if self.join_token is not None else None,
                is_credential=partial(is_credential, CLUSTER_SECRET),
            ),
            limits=BodyLimits(self.body_bytes_max, 5.0, 16 * self.body_bytes_max),
            models_dir=self.models_dir,
            backends=("other",),
            auto_approve=self.auto_approve,
            advertise_host=self.advertise_host,
            has_tls=False,
            peer_tls=self.peer_tls,
            expose_replica=False,
            ignore_unknown_parameters=self.ignore_unknown_parameters,
        )

    def set_peers(self, *others: PeerState) -> None:
        """Exactly these other gateways live."""
        self.peers.update(PeerStates(0.0, 0, {each.gateway_id: each for each in others}))

    async def update_view(self) -> None:
        """The view follows the registry."""
        self.views.publish(build_view(await self.registry.read_state()))

    async def ask(self, method: str, path: str, body: bytes = b"", *, key: str | None = ADMIN_KEY) -> AsgiRequest:
        return await self.request(method, path, body, key=key).run(self.app)

    def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        key: str | None = ADMIN_KEY,
        headers: Mapping[str, str] | None = None,
    ) -> AsgiRequest:
        credentials = {"authorization": f"Bearer {key}"} if key is not None else {}
        declared = {"content-type": "application/json"} if body else {}
        named = {"host": "gateway.example:8080", **credentials, **declared, **(headers or {})}
        return AsgiRequest(method, path, named, [body])
