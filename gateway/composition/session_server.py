"""Listens for the sessions of workers on other machines, and hands each to the parts that keep sessions."""

from functools import partial

import trio

from gateway.api.http.listener.listening_socket import open_sockets
from gateway.composition.http_settings import listener_tls
from gateway.composition.parts import Gateway
from gateway.data_dir import StartupError
from gateway.domain.session import FromWorker, Hello, SessionRefused, ToWorker
from gateway.registry.protocol import NotRegistered
from gateway.transport.node_credentials import is_credential
from gateway.transport.server import SessionServer


async def start_session_server(gateway: Gateway, services: trio.Nursery) -> None:
    """Starts to listen for the sessions of remote workers.

    Raises `StartupError` if the port or the TLS files can't be used.
    """
    shared = gateway.shared
    config = shared.config
    server = SessionServer(
        shared.bridge,
        partial(_serve_session, gateway),
        partial(is_credential, shared.cluster_secret),
        silence_seconds=config.health.stale_after,
    )
    port = config.server.worker_port
    try:
        listening = open_sockets(config.server.hosts, port)
        run = partial(server.run, listening, tls=listener_tls(config, "h2"))
        shared.listeners.open_sessions(await services.start(run))
    except OSError as error:
        why = f"can't listen for workers on {', '.join(config.server.hosts)}:{port}: {error.strerror or error}"
        raise StartupError(f"{why}; set server.worker_port") from error


async def _serve_session(
    gateway: Gateway,
    hello: Hello,
    to_worker: trio.MemorySendChannel[ToWorker],
    from_worker: trio.MemoryReceiveChannel[FromWorker],
) -> None:
    """Refuses a session that cannot begin because its node is not registered."""
    try:
        await gateway.control.sessions.run_session(hello, to_worker, from_worker)
    except NotRegistered as error:
        raise SessionRefused(str(error), register_again=True) from error
