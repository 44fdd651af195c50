"""The gateways of a worker's join list, reached over the network: it registers over HTTP with the join token, or with
what proves who it was at its last start, and then opens one stream for its session."""

import ssl
from dataclasses import dataclass, field, replace

import httpx
import structlog

from gateway.bridge import Bridge
from gateway.config.model import Config
from gateway.data_dir import StartupError
from gateway.domain.ids import BootId, NodeId, new_id
from gateway.domain.session import Hello, SessionRefused
from gateway.transport.client import open_session
from gateway.transport.errors import SessionLost
from gateway.transport.node_credentials import session_metadata
from gateway.transport.registration import JoinFailed, JoinRefused, RegistrationAnswer, RegistrationRequest, register
from gateway.worker.agent import Agent
from gateway.worker.capacity_reader import CapacityReader
from gateway.worker.identity import Identity, keep_identity, read_identity
from gateway.worker.membership import HoldSession, NoSession
from gateway.worker.settings import WorkerSettings, hello_of, worker_name

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Join:
    """The gateways that a worker may join, and the token that allows it."""

    urls: tuple[str, ...]
    token: str = field(repr=False)


class Joiner:
    """Registers this worker at gateways over HTTP, and opens its sessions over gRPC."""

    def __init__(
        self,
        *,
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
        self.read_capacity = CapacityReader(settings.models_dir)
        self._answers: dict[str, RegistrationAnswer] = {}
        """The results of earlier registrations, by the gateway's URL."""
        self._has_joined = False

    async def attend(self, url: str, hold: HoldSession) -> None:
        """Runs one session, from the registration to its end. Raises `NoSession`, and `StartupError` if this worker has
        never joined and is refused for good."""
        try:
            await self._run_session(url, hold)
        except (JoinFailed, SessionLost) as error:
            raise NoSession(str(error)) from error
        except (JoinRefused, SessionRefused) as error:
            self._record_refusal(url, error)

    def _record_refusal(self, url: str, error: JoinRefused | SessionRefused) -> None:
        """Handles a refusal. A worker that was never accepted ends with the reason; one that runs replicas keeps
        trying."""
        self._answers.pop(url, None)
        if isinstance(error, JoinRefused) and not self._has_joined:
            raise StartupError(f"{url} does not let this worker join: {error}") from error
        log.error("worker.refused", url=url, error=str(error))

    async def _run_session(self, url: str, hold: HoldSession) -> None:
        """Raises the errors of the transport."""
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
            self._has_joined = True
            await hold(link.send, link.receive, hello.capacity)
        if link.error is not None:
            raise link.error

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
        hello = hello_of(self._config, node_id, self._boot_id, await self.read_capacity())
        return replace(hello, replicas=self._agent.all_reports(), advertise=self._settings.advertise_host)
