"""The whole HTTP application over a registry in memory, with a view, tails and credentials that the test sets."""

import hashlib
import math
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePath
from typing import Final, cast

import trio

from gateway.api.admin.artifacts import ArtifactFiles
from gateway.api.admin.decisions import Decisions
from gateway.api.admin.documents import StatusSource
from gateway.api.admin.models import ModelService
from gateway.api.admin.peer_client import PeerClient
from gateway.api.admin.registration import NodeRegistration
from gateway.api.admin.replica_logs import ReplicaLogs
from gateway.api.admin.routes import Readiness, build_pages
from gateway.api.http.auth import Authenticator, Key, Role, sha256
from gateway.api.http.http_app import BodyLimits, HttpApp
from gateway.api.openai.routes import OpenAiApi
from gateway.composition.http import build_http_app
from gateway.domain.cluster import Progress
from gateway.domain.errors import GatewayError
from gateway.domain.ids import GatewayId, ModelName, ReplicaId
from gateway.domain.peers import PeerState, PendingReason
from gateway.domain.routability import EMPTY_VIEW, FleetView, build_view
from gateway.domain.session import LogChunk
from gateway.observability.metrics import Metrics
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.admission import Admission
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.router import Router
from gateway.transport.credentials import is_credential
from tests.fakes.asgi import AsgiRequest
from tests.fakes.routing_bench import idle_admission

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
MODELS_DIR: Final = PurePath("/srv/models")


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
        self.progress: dict[ReplicaId, Progress] = {}
        self.unsatisfiable: dict[ModelName, str] = {}
        self.waits: dict[ModelName, PendingReason] = {}

    def want(self, model: ModelName) -> None:
        self.wanted[model] = trio.Event()

    def drop(self, model: ModelName) -> None:
        if (over := self.wanted.pop(model, None)) is not None:
            over.set()

    async def wait_over(self, model: ModelName) -> None:
        if (over := self.wanted.get(model)) is not None:
            await over.wait()


@dataclass
class Front:
    registry: MemoryRegistry = field(default_factory=lambda: MemoryRegistry(lambda: NOW))
    tails: FakeTails = field(default_factory=FakeTails)
    views: SnapshotStore[FleetView] = field(default_factory=lambda: SnapshotStore(EMPTY_VIEW))
    loads: FakeLoads = field(default_factory=FakeLoads)
    worker_port: int | None = 8081
    advertise_host: str | None = None
    auto_approve: bool = True
    keys: tuple[Key, ...] = KEYS
    join_token: str | None = JOIN_TOKEN
    models_dir: Path = Path("/srv/models")
    gateway_id: GatewayId = GATEWAY_ID
    url: str = ""
    is_leader: bool = True
    others: dict[GatewayId, PeerState] = field(default_factory=dict)
    peer_tls: ssl.SSLContext | None = None
    admission: Admission = field(default_factory=idle_admission)
    load_table: LoadTracker = field(default_factory=LoadTracker)
    body_bytes_max: int = 64 * 1024

    def __post_init__(self) -> None:
        metrics = Metrics(list)
        source = StatusSource(
            self.gateway_id,
            lambda: self.is_leader,
            lambda: self.views.current,
            self.load_table.statistics,
            self.admission.statistics,
            lambda: NOW + 60,
            own_progress_of=self.loads.progress.get,
            own_wish=lambda model: model in self.loads.wanted,
            own_unsatisfiable=lambda: self.loads.unsatisfiable,
            own_waits=lambda: self.loads.waits,
            own_url=lambda: self.url,
            peers=lambda: self.others,
        )
        peers = PeerClient(lambda: self.others, self.peer_tls)
        desk = ModelService(self.registry, source, self.views, self.loads, ("other",), MODELS_DIR)
        openai = OpenAiApi(
            cast("Router", None),
            SnapshotStore(EMPTY_VIEW),
            metrics.requests,
            wall_clock=time.time,
            expose_replica=False,
        )
        register = NodeRegistration(
            self.registry,
            self.gateway_id,
            CLUSTER_SECRET,
            auto_approve=self.auto_approve,
            advertise_host=self.advertise_host,
            worker_port=lambda: self.worker_port,
            tls=False,
        )
        self.app: HttpApp = build_http_app(
            openai,
            register,
            ReplicaLogs(self.tails, peers),
            ArtifactFiles(lambda: self.views.current.state, self.models_dir, peers),
            Decisions(self.admission.decisions, peers),
            build_pages(source, self.admission, metrics, lambda: READY, self.registry, desk),
            authenticator=Authenticator(
                self.keys,
                allow_anonymous=False,
                join_token_sha256=sha256(self.join_token) if self.join_token is not None else None,
                is_credential=partial(is_credential, CLUSTER_SECRET),
            ),
            metrics=metrics.requests,
            limits=BodyLimits(self.body_bytes_max, 5.0, 16 * self.body_bytes_max),
        )

    async def look(self) -> None:
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
