"""The composition root of `gateway worker`: the agent of this machine, and its membership in a fleet.

The two do not depend on each other's health. The agent runs what it was last told to run, with or without a gateway;
the membership registers, holds a session, and when that breaks goes on to the next gateway of its list, for ever.
"""

import itertools
import random
import socket
import ssl
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final
from urllib.parse import urlsplit

import httpx
import structlog
import trio

from gateway.backends.channel_pool import Dial, dial
from gateway.backends.grpc_control import GrpcBackendControl
from gateway.bridge import Bridge, open_bridge
from gateway.composition.tiny_model import write_tiny_model
from gateway.config.model import Config
from gateway.data_dir import StartupError, prepare_data_dir
from gateway.domain.ids import BootId, NodeId, new_id
from gateway.domain.pacing import Backoff
from gateway.domain.session import Hello
from gateway.transport.client import open_session
from gateway.transport.errors import SessionLost, SessionRefused
from gateway.transport.node_credentials import session_metadata
from gateway.transport.registration import JoinFailed, JoinRefused, RegistrationAnswer, RegistrationRequest, register
from gateway.transport.tls import TlsError, client_context
from gateway.worker.agent import Agent, run_agent
from gateway.worker.artifacts.source import GatewaySource
from gateway.worker.capacity_reader import CapacityReader
from gateway.worker.identity import FolderInUse, Identity, holding_folder, keep_identity, read_identity
from gateway.worker.process.spawn import SpawnProcess, spawn_process
from gateway.worker.session import WorkerSession
from gateway.worker.settings import WorkerSettings, hello_of, worker_name, worker_settings

log = structlog.get_logger(__name__)

PAUSE_FIRST_SECONDS: Final = 0.2
PAUSE_MAX_SECONDS: Final = 10.0
"""The longest pause between two attempts to join: long enough for a gateway that restarts, short beside
`health.stale_after`."""
LASTING_SECONDS: Final = 10.0
"""The length of a session after which the next attempt begins without a pause."""
LEAVE_SECONDS: Final = 5.0
"""The time after the drain for processes that have to be killed and for the last reports."""


@dataclass(frozen=True)
class Join:
    """The gateways that a worker may join, and the token that allows it."""

    urls: tuple[str, ...]
    token: str = field(repr=False)


async def run_worker(
    config: Config,
    join: Join,
    stop: trio.Event,
    *,
    dial: Dial = dial,
    spawn: SpawnProcess = spawn_process,
    task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Runs until `stop`, then drains and ends. Reports started, with the node's name, once it has joined.

    Raises `StartupError`, also when the first gateway that answers refuses it for good.
    """
    folder = config.server.data_dir / "worker"
    prepare_data_dir(folder)
    async with AsyncExitStack() as held:
        try:
            held.enter_context(holding_folder(folder))
            trusted = client_context(config.worker.tls_ca)
        except (FolderInUse, TlsError) as error:
            raise StartupError(str(error)) from error
        advertise = config.worker.advertise or await _own_address(join.urls)
        settings = worker_settings(
            config,
            folder,
            bind=config.worker.bind or advertise,
            advertise=advertise,
            gateway=GatewaySource(_http_context(config)),
        )
        bridge = await held.enter_async_context(open_bridge())
        http = await held.enter_async_context(httpx.AsyncClient(verify=_http_context(config)))
        async with trio.open_nursery() as services:
            control = GrpcBackendControl(bridge, dial)
            agent = await services.start(
                partial(run_agent, spawn=spawn, control=control, write_tiny_model=write_tiny_model), settings
            )
            membership = Membership(
                config=config, join=join, agent=agent, settings=settings, bridge=bridge, http=http, trusted=trusted
            )
            task_status.started(await services.start(membership.run))
            await stop.wait()
            log.info("worker.draining", seconds=config.server.drain_timeout)
            agent.leave()
            with trio.move_on_after(config.server.drain_timeout + settings.stop_timeout_seconds + LEAVE_SECONDS):
                await agent.wait_empty()
            await membership.say_goodbye()
            services.cancel_scope.cancel()


class Membership:
    """Keeps one session with one of the gateways."""

    def __init__(
        self,
        config: Config,
        join: Join,
        agent: Agent,
        settings: WorkerSettings,
        bridge: Bridge,
        http: httpx.AsyncClient,
        trusted: ssl.SSLContext,
    ) -> None:
        self._config = config
        self._join = join
        self._agent = agent
        self._settings = settings
        self._bridge = bridge
        self._http = http
        self._trusted = trusted
        self._name = worker_name(config)
        self._boot_id = BootId(new_id())
        self._identity = read_identity(settings.state_folder)
        self._read_capacity = CapacityReader(settings.models_dir)
        self._answers: dict[str, RegistrationAnswer] = {}
        """The results of earlier registrations, by the gateway's URL."""
        self._session: WorkerSession | None = None
        self._has_joined = False
        self._is_leaving = False
        self._connected = trio.Event()
        """Set as soon as a session has begun."""
        self._ended = trio.Event()
        """Set as soon as `run` has returned."""

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Runs until cancelled, or until `say_goodbye`."""
        backoff = _join_backoff()
        for url in itertools.cycle(self._join.urls):
            began = trio.current_time()
            try:
                await self._attend(url, task_status)
            except (JoinFailed, SessionLost) as error:
                if not self._is_leaving:
                    log.warning("worker.join_failed", url=url, error=str(error))
            except (JoinRefused, SessionRefused) as error:
                self._record_refusal(url, error)
            if self._is_leaving:
                self._ended.set()
                return
            if trio.current_time() - began > LASTING_SECONDS:
                backoff.reset()
            await trio.sleep(backoff.next_seconds())

    def _record_refusal(self, url: str, error: JoinRefused | SessionRefused) -> None:
        """Handles a refusal. A worker that was never accepted ends with the reason; one that runs replicas keeps
        trying."""
        self._answers.pop(url, None)
        if isinstance(error, JoinRefused) and not self._has_joined:
            raise StartupError(f"{url} does not let this worker join: {error}") from error
        log.error("worker.refused", url=url, error=str(error))

    async def _attend(self, url: str, task_status: trio.TaskStatus[str]) -> None:
        """Runs one session, from the registration to its end. Raises the errors of the transport."""
        answer = self._answers.get(url) or await self._register(url)
        # Only for as long as it works: whatever goes wrong, the next attempt asks again.
        self._answers.pop(url, None)
        if not answer.tls and self._config.worker.tls_ca is not None:
            raise JoinRefused("its sessions are not encrypted, as worker.tls_ca asks for; set server.tls_cert there")
        if self._settings.gateway is not None:
            proof = session_metadata(answer.credential, answer.node_id, self._boot_id)
            self._settings.gateway.point_at(url, proof)
        hello = await self._hello(answer.node_id)
        health = self._config.health
        async with open_session(
            self._bridge,
            answer.session_address,
            credential=answer.credential,
            hello=hello,
            silence_seconds=health.misses * health.heartbeat,
            tls=self._trusted if answer.tls else None,
        ) as link:
            self._answers[url] = answer
            log.info("worker.joined", url=url, node_id=answer.node_id, name=self._name, approved=answer.approved)
            if not self._has_joined:
                self._has_joined = True
                task_status.started(self._name)
            self._session = WorkerSession(
                agent=self._agent,
                outgoing=link.send,
                incoming=link.receive,
                heartbeat_seconds=health.heartbeat,
                read_capacity=self._read_capacity,
                reported_capacity=hello.capacity,
            )
            self._connected.set()
            self._connected = trio.Event()
            await self._session.run()
        self._session = None
        if link.error is not None:
            raise link.error

    async def say_goodbye(self) -> None:
        """Ends the session once all reports are sent; then `run` returns. Between two sessions it waits for the next
        one, for as long as a goodbye may take at all."""
        with trio.move_on_after(LEAVE_SECONDS):
            while self._session is None:
                await self._connected.wait()
            self._is_leaving = True
            await self._session.finish()
            await self._ended.wait()

    async def _register(self, url: str) -> RegistrationAnswer:
        try:
            answer = await self._ask(url, self._identity)
        except JoinRefused as error:
            if error.code != "invalid_node_credential" or self._identity is None:
                raise
            # The fleet's secret has changed, and with it the proof of who we were.
            log.warning("worker.identity_refused", url=url, node_id=self._identity.node_id)
            answer = await self._ask(url, None)
        self._identity = Identity(answer.node_id, self._boot_id, answer.credential)
        keep_identity(self._settings.state_folder, self._identity)
        return answer

    async def _ask(self, url: str, identity: Identity | None) -> RegistrationAnswer:
        request = RegistrationRequest(self._name, self._boot_id)
        if identity is not None:
            proof = identity.node_id, identity.boot_id, identity.credential
            request = RegistrationRequest(self._name, self._boot_id, *proof)
        return await register(self._http, url, self._join.token, request)

    async def _hello(self, node_id: NodeId) -> Hello:
        hello = hello_of(self._config, node_id, self._boot_id, await self._read_capacity())
        return replace(hello, replicas=self._agent.all_reports(), advertise=self._settings.advertise_host)


def _http_context(config: Config) -> ssl.SSLContext:
    context = client_context(config.worker.tls_ca)
    context.set_alpn_protocols(["http/1.1"])
    return context


async def _own_address(urls: tuple[str, ...]) -> str:
    """Returns the address of this machine that faces the first gateway whose name can be resolved. It retries until one
    can be, because a machine that has just booted may have no network yet."""
    backoff = _join_backoff()
    while True:
        for url in urls:
            host, port = urlsplit(url).hostname or "", urlsplit(url).port or 443
            try:
                return await trio.to_thread.run_sync(_address_towards, host, port)
            except OSError as error:
                log.warning("worker.gateway_unreachable", url=url, error=str(error))
        await trio.sleep(backoff.next_seconds())


def _address_towards(host: str, port: int) -> str:
    """Returns the local address of the route to a host. Connecting a datagram socket chooses the route and sends
    nothing."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as way:
        way.connect(address)
        own: str = way.getsockname()[0]
    return own


def _join_backoff() -> Backoff:
    """Makes the pauses between attempts. They vary, so that the workers of a gateway that comes back do not all come at
    once."""
    return Backoff(PAUSE_FIRST_SECONDS, PAUSE_MAX_SECONDS, random.Random())  # noqa: S311 - spreads load
