"""Puts the HTTP application together from its parts, so that there is one place that knows every route."""

from gateway.api.admin.app import AdminApp
from gateway.api.admin.artifacts import ArtifactFiles
from gateway.api.admin.decisions import Decisions
from gateway.api.admin.registration import NodeRegistration
from gateway.api.admin.replica_logs import ReplicaLogs
from gateway.api.admin.routes import PAGE_ROUTES
from gateway.api.http.auth import Authenticator
from gateway.api.http.http_app import BodyLimits, HttpApp
from gateway.api.openai.routes import OpenAiApi
from gateway.observability.metrics import RequestMetrics


def build_http_app(
    openai: OpenAiApi,
    register: NodeRegistration,
    logs: ReplicaLogs,
    artifacts: ArtifactFiles,
    decisions: Decisions,
    pages: AdminApp,
    *,
    authenticator: Authenticator,
    metrics: RequestMetrics,
    limits: BodyLimits,
) -> HttpApp:
    """Builds the HTTP application from its handlers; it lists every route of the gateway."""
    return HttpApp(
        (*openai.routes(), *register.routes(), *logs.routes(), *artifacts.routes(), *decisions.routes()),
        PAGE_ROUTES,
        pages,
        authenticator=authenticator,
        metrics=metrics,
        limits=limits,
    )
