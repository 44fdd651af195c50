"""Puts the HTTP application together from its parts, so that there is one place that knows every route."""

from gateway.api.artifacts import ArtifactFiles
from gateway.api.auth import Authenticator
from gateway.api.decisions import Decisions
from gateway.api.http_app import BodyLimits, HttpApp
from gateway.api.node_register import NodeRegister
from gateway.api.openai.routes import OpenAiApi
from gateway.api.pages import PAGE_ROUTES
from gateway.api.pages_app import Pages
from gateway.api.replica_logs import ReplicaLogs
from gateway.observability.metrics import RequestMetrics


def build_http_app(
    openai: OpenAiApi,
    register: NodeRegister,
    logs: ReplicaLogs,
    artifacts: ArtifactFiles,
    decisions: Decisions,
    pages: Pages,
    *,
    authenticator: Authenticator,
    metrics: RequestMetrics,
    limits: BodyLimits,
) -> HttpApp:
    return HttpApp(
        (*openai.routes(), *register.routes(), *logs.routes(), *artifacts.routes(), *decisions.routes()),
        PAGE_ROUTES,
        pages,
        authenticator=authenticator,
        metrics=metrics,
        limits=limits,
    )
