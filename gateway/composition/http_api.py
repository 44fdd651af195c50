"""Puts the HTTP application together: every route, and what clients are told of the errors of other rooms."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from types import MappingProxyType
from typing import Final

import structlog

from gateway.api.admin.about import AboutPages
from gateway.api.admin.app import AdminApp
from gateway.api.admin.artifacts import ArtifactFiles
from gateway.api.admin.decisions import Decisions
from gateway.api.admin.documents import StatusSource
from gateway.api.admin.models import Loads, ModelService
from gateway.api.admin.peer_client import PeerClient
from gateway.api.admin.process_metrics import ProcessMetrics
from gateway.api.admin.registration import NodeRegistration
from gateway.api.admin.replica_logs import OpenTail, ReplicaLogs
from gateway.api.admin.routes import PAGE_ROUTES, Readiness, build_admin_app
from gateway.api.http.auth import Authenticator
from gateway.api.http.browser_guard import BrowserPolicy
from gateway.api.http.errors import ErrorPolicy
from gateway.api.http.http_app import BodyLimits, HttpApp
from gateway.api.http.stream_keepalive import StreamKeepalive
from gateway.api.openai.errors import error_object
from gateway.api.openai.routes import OpenAiApi
from gateway.api.openai.schema import body_schemas
from gateway.domain.errors import GatewayError, Unavailable
from gateway.domain.ids import GatewayId
from gateway.observability.metrics import Metrics, Reading
from gateway.registry.protocol import Registry, RegistryError, WritesRefused
from gateway.routing.admission import Admission
from gateway.routing.router import Router

log = structlog.get_logger(__name__)

REGISTRY_RETRY_AFTER_SECONDS: Final = 5.0
"""The `Retry-After` of requests that need the registry while it cannot be used."""


def _registry_unavailable(error: Exception) -> GatewayError:
    """Returns the error for the client. The cause names servers and users, so it goes to the log only."""
    log.warning("request.registry_unavailable", error=str(error))
    why = "can't be used now; its log says why"
    if isinstance(error, WritesRefused):
        why = f"refuses writes: {error.cause}"
    return Unavailable(
        f"The gateway's registry {why}. What is loaded is served on.",
        retry_after_seconds=REGISTRY_RETRY_AFTER_SECONDS,
        code="registry_unavailable",
    )


ERRORS: Final = ErrorPolicy(error_object, MappingProxyType({RegistryError: _registry_unavailable}))
"""The rules for errors. Paths that belong to no dialect write errors as OpenAI's API does."""


@dataclass(frozen=True)
class HttpSettings:
    """The configured values that the HTTP API needs."""

    gateway_id: GatewayId
    cluster_secret: bytes = field(repr=False)
    authenticator: Authenticator
    limits: BodyLimits
    models_dir: Path
    backends: Iterable[str]
    """The names of the backends that the configuration declares."""
    auto_approve: bool
    advertise_host: str | None
    has_tls: bool
    peer_tls: SSLContext | None
    """The TLS context for calls to peers. None means that the certificates which the system trusts are used."""
    expose_replica: bool
    ignore_unknown_parameters: bool
    browsers: BrowserPolicy = field(default_factory=BrowserPolicy)
    """The web pages that may use the gateway."""
    processes: ProcessMetrics | None = None
    """The processes of a gateway that consists of several."""


@dataclass(frozen=True)
class HttpParts:
    """The parts that the handlers of the HTTP API use."""

    registry: Registry
    router: Router
    admission: Admission
    source: StatusSource
    metrics: Metrics
    load_requests: Loads
    open_tail: OpenTail
    worker_port: Callable[[], int | None]
    read: Callable[[], Iterable[Reading]]
    """Reads the gauges of `/metrics`."""
    ready: Callable[[], Readiness]
    keepalive: StreamKeepalive | None = None
    """Sends comments to streams that wait. None means that nobody does."""


def build_http_app(settings: HttpSettings, parts: HttpParts) -> HttpApp:
    """Builds the HTTP application; it lists every route of the gateway."""
    fleet = parts.source.fleet
    peers = PeerClient(lambda: fleet.peers.states, settings.peer_tls)
    openai = OpenAiApi(
        parts.router,
        fleet.views,
        parts.metrics.requests,
        wall_clock=time.time,
        expose_replica=settings.expose_replica,
        ignore_unknown=settings.ignore_unknown_parameters,
        keepalive=parts.keepalive,
    )
    register = NodeRegistration(
        parts.registry,
        settings.gateway_id,
        settings.cluster_secret,
        auto_approve=settings.auto_approve,
        advertise_host=settings.advertise_host,
        worker_port=parts.worker_port,
        tls=settings.has_tls,
    )
    logs = ReplicaLogs(parts.open_tail, peers)
    artifacts = ArtifactFiles(lambda: fleet.view.state, settings.models_dir, peers)
    decisions = Decisions(parts.admission.decisions, peers)
    about = AboutPages(
        lambda: tuple(fleet.views.current.state.models),
        lambda: app.endpoints(),
        body_schemas,
        authenticator=settings.authenticator,
        browsers=settings.browsers,
    )
    app = HttpApp(
        (
            *openai.routes(),
            *about.routes(),
            *register.routes(),
            *logs.routes(),
            *artifacts.routes(),
            *decisions.routes(),
        ),
        PAGE_ROUTES,
        _build_admin(settings, parts),
        errors=ERRORS,
        authenticator=settings.authenticator,
        metrics=parts.metrics.requests,
        limits=settings.limits,
        browsers=settings.browsers,
    )
    return app


def _build_admin(settings: HttpSettings, parts: HttpParts) -> AdminApp:
    """Builds the application behind the page routes."""
    return build_admin_app(
        source=parts.source,
        admission=parts.admission,
        metrics=parts.metrics,
        read=parts.read,
        ready=parts.ready,
        registry=parts.registry,
        models=ModelService(
            registry=parts.registry,
            source=parts.source,
            loads=parts.load_requests,
            backends=tuple(settings.backends),
            models_dir=settings.models_dir.absolute(),
        ),
        errors=ERRORS,
        processes=settings.processes,
    )
