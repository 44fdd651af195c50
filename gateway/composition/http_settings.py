"""Translates the configuration of HTTP into the settings of its parts: who may call, limits, certificates."""

from functools import partial
from ssl import SSLContext

from gateway.api.admin.process_metrics import ProcessMetrics
from gateway.api.http.auth import Authenticator, Key, Role, sha256
from gateway.api.http.browser_guard import BrowserPolicy
from gateway.api.http.http_app import BodyLimits
from gateway.composition.http_api import HttpSettings
from gateway.config.model import Config
from gateway.data_dir import StartupError
from gateway.domain.ids import GatewayId
from gateway.process_place import ProcessPlace
from gateway.transport.node_credentials import is_credential
from gateway.transport.tls import TlsError, peer_context, server_context


def http_settings(
    config: Config, gateway_id: GatewayId, cluster_secret: bytes, place: ProcessPlace | None = None
) -> HttpSettings:
    """Reads the settings of the HTTP API. Raises `StartupError` if a certificate can't be used."""
    server = config.server
    return HttpSettings(
        gateway_id=gateway_id,
        cluster_secret=cluster_secret,
        authenticator=_authenticator(config, cluster_secret),
        limits=BodyLimits(server.max_body, server.body_timeout, server.bodies_max),
        models_dir=config.worker.models_dir,
        backends=config.backends.keys(),
        auto_approve=config.auth.auto_approve_nodes,
        advertise_host=server.advertise,
        has_tls=server.tls_cert is not None,
        peer_tls=_peer_tls(config),
        expose_replica=config.routing.expose_replica_header,
        browsers=BrowserPolicy(origins=server.allowed_origins, hosts=server.allowed_hosts),
        ignore_unknown_parameters=config.server.unknown_parameters == "ignore",
        processes=_process_metrics(config, place) if place is not None and place.has_siblings else None,
    )


def _process_metrics(config: Config, place: ProcessPlace) -> ProcessMetrics:
    """Siblings show this gateway's own certificate at an address of this machine, which need not be in it."""
    context = _peer_tls(config) if config.server.tls_cert is not None else None
    if context is not None:
        context.check_hostname = False
    return ProcessMetrics(place.number, place.urls, context)


def listener_tls(config: Config, *protocols: str) -> SSLContext | None:
    """Returns the TLS context of a listener that speaks `protocols` (their ALPN names).

    Returns None if no certificate is configured. Raises `StartupError` if the configured one can't be used.
    """
    server = config.server
    if server.tls_cert is None or server.tls_key is None:
        return None
    try:
        context = server_context(server.tls_cert, server.tls_key)
    except TlsError as error:
        raise StartupError(str(error)) from error
    context.set_alpn_protocols(protocols)
    return context


def api_keys(config: Config) -> list[Key]:
    """Returns the configured API keys, by their hashes."""
    return [Key(key.name, bytes.fromhex(key.digest), Role[key.role.upper()]) for key in config.auth.api_keys]


def _authenticator(config: Config, cluster_secret: bytes) -> Authenticator:
    token = config.auth.join_token
    return Authenticator(
        api_keys(config),
        allow_anonymous=config.auth.allow_anonymous,
        join_token_sha256=sha256(token.get_secret_value()) if token is not None else None,
        is_credential=partial(is_credential, cluster_secret),
    )


def _peer_tls(config: Config) -> SSLContext | None:
    """Returns the TLS context for calls to peers: it trusts the certificate that they all show, or the authority that
    has signed theirs. Returns None if neither is configured. Raises `StartupError`."""
    named = [path for path in (config.server.tls_cert, config.worker.tls_ca) if path is not None]
    try:
        return peer_context(named) if named else None
    except TlsError as error:
        raise StartupError(str(error)) from error
