"""The gateway's end of sessions: it listens for workers, accepts those with a credential, and has each session served.

grpclib runs each `Attach` as an asyncio task, which owns the stream. The Trio task that serves the session is a child
of `SessionServer.run`. An `Attach` ends with a status and never by a cancel, because a worker does not learn of a
cancel (pitfall 37).
"""

import asyncio
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final

import structlog
import trio
from grpclib import Status
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import ProtocolError

from gateway.bridge import Bridge
from gateway.domain.ids import BootId, NodeId
from gateway.domain.session import Hello
from gateway.transport import codec as wire
from gateway.transport import stream_pump as pump
from gateway.transport.advertised import AdvertisedHost
from gateway.transport.errors import MessageRefused
from gateway.transport.limits import BoundedServer, bound_messages, cut, in_use
from gateway.transport.node_credentials import AUTHORIZATION, BOOT, NODE, IsCredential, bearer_token
from gateway.transport.pb.worker_grpc import WorkerSessionBase
from gateway.transport.session import CLOSING, AttachStream, Serve, Session, SessionEnd
from gateway.transport.stream_pump import StreamFailed

log = structlog.get_logger(__name__)

SESSIONS_MAX: Final = 1024
"""The largest number of open sessions, including those whose hello has not come yet."""
HELLO_SECONDS: Final = 10.0
"""How long an accepted worker may take to send its hello."""
END_SECONDS: Final = 1.0
"""How long telling the end of a session may take. A worker that does not read is disconnected."""
CLOSE_SECONDS: Final = 5.0
"""How long the server may take to close. It is never reached unless something is wrong."""


class SessionServer:
    """Accepts and serves the sessions of workers while `run` runs. It may run once."""

    def __init__(self, bridge: Bridge, serve: Serve, is_credential: IsCredential, *, silence_seconds: float) -> None:
        """A worker from which nothing came, or which took nothing, for `silence_seconds` is given up."""
        self._bridge = bridge
        self._serve = serve
        self._accepted, self._to_serve = trio.open_memory_channel[Session](SESSIONS_MAX)
        self._attachments = _Attachments(self._accepted, is_credential, silence_seconds)

    async def run(
        self,
        listening: Sequence[socket.socket],
        *,
        tls: ssl.SSLContext | None = None,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serves the sessions of workers at the sockets `listening`, which it closes, until cancelled. Then it sends
        every worker to another gateway. Reports started with the port, which all sockets share."""
        with ExitStack() as sockets, self._accepted, self._to_serve:
            for each in listening:
                sockets.enter_context(each)
            servers = [await self._bridge.run(_start_aio, self._attachments, each, tls) for each in listening]
            try:
                task_status.started(listening[0].getsockname()[1])
                async with trio.open_nursery() as nursery:
                    try:
                        async for session in self._to_serve:
                            nursery.start_soon(session.run, self._serve)
                    finally:
                        self._attachments.close()
            finally:
                with trio.move_on_after(CLOSE_SECONDS, shield=True):
                    await self._bridge.run(self._close_aio, servers)

    async def _close_aio(self, servers: Sequence[BoundedServer]) -> None:
        await self._attachments.wait_sessions_ended_aio()
        for server in servers:
            await server.close_aio(END_SECONDS)


async def _start_aio(service: WorkerSessionBase, listening: socket.socket, tls: ssl.SSLContext | None) -> BoundedServer:
    server = BoundedServer([service])
    await server.start(sock=listening, ssl=tls)
    return server


class _Attachments(WorkerSessionBase):
    """The asyncio side: it decides who may attach, and ends the calls."""

    def __init__(
        self, accepted: trio.MemorySendChannel[Session], is_credential: IsCredential, silence_seconds: float
    ) -> None:
        self._accepted = accepted
        self._is_credential = is_credential
        self._silence_seconds = silence_seconds
        self._open: dict[asyncio.Task[Any], Session | None] = {}
        """The sessions by the task that runs the call. The value is None while its hello has not come."""
        self._closing = False

    def close(self) -> None:
        """Ends every session. A worker that comes now gets the same answer."""
        self._closing = True
        for session in self._open.values():
            if session is not None:
                session.end(CLOSING)

    async def wait_sessions_ended_aio(self) -> None:
        """Waits until the workers know that their sessions end. Those that do not read are disconnected meanwhile."""
        tasks = [task for task, session in self._open.items() if session is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=2 * END_SECONDS)

    async def Attach(self, stream: AttachStream) -> None:  # noqa: N802 - named by worker.proto
        """Serves one session from its call to its end, and sends the worker how it ended."""
        with ExitStack() as use:
            how = await self._attach_aio(stream, use)
            try:
                async with asyncio.timeout(END_SECONDS):
                    await stream.send_trailing_metadata(status=how.status, status_message=how.message or None)
            except (TimeoutError, ProtocolError):
                cut(stream)

    async def _attach_aio(self, stream: AttachStream, use: ExitStack) -> SessionEnd:
        """Serves one call. `use` is entered with the connection's first valid credential; until then the peer is
        unknown."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - grpclib's handlers are tasks
        try:
            node_id, boot_id = self._authenticate(stream.metadata or {})
            use.enter_context(in_use(stream))
            self._open[task] = None
            hello = await self._hello_aio(stream, node_id, boot_id)
            session = self._open[task] = _session(hello, _peer(stream))
            self._accepted.send_nowait(session)
            return await session.run_aio(stream, self._silence_seconds)
        except StreamFailed as refusal:
            log.info("session.refused", reason=str(refusal), peer=_peer(stream))
            return SessionEnd(refusal.status, str(refusal))
        except StreamTerminatedError as lost:
            return SessionEnd(Status.ABORTED, str(lost))
        finally:
            self._open.pop(task, None)

    def _authenticate(self, metadata: Mapping[str, Any]) -> tuple[NodeId, BootId]:
        """Returns the node and boot id of a valid credential, before anything of the stream is read. Raises
        `StreamFailed`."""
        if self._closing:
            raise StreamFailed(CLOSING.status, CLOSING.message)
        node_id, boot_id = NodeId(str(metadata.get(NODE, ""))), BootId(str(metadata.get(BOOT, "")))
        if not self._is_credential(node_id, boot_id, bearer_token(str(metadata.get(AUTHORIZATION, "")))):
            raise StreamFailed(Status.UNAUTHENTICATED, "the credential is not valid for this node and this start of it")
        if len(self._open) >= SESSIONS_MAX:
            raise StreamFailed(
                Status.RESOURCE_EXHAUSTED, f"this gateway has {SESSIONS_MAX} sessions, which is its limit"
            )
        return node_id, boot_id

    async def _hello_aio(self, stream: AttachStream, node_id: NodeId, boot_id: BootId) -> Hello:
        """Returns the worker's hello. Raises `StreamFailed`."""
        bound_messages(stream)
        message = await pump.receive_aio(stream, HELLO_SECONDS)
        hello = None if message is None else pump.understood(wire.read_hello, message)
        if hello is None:
            raise StreamFailed(
                Status.FAILED_PRECONDITION, f"the session did not begin with a hello of protocol {wire.PROTOCOL}"
            )
        if (hello.node_id, hello.boot_id) != (node_id, boot_id):
            raise StreamFailed(Status.PERMISSION_DENIED, "the hello is another node's than the credential")
        if self._closing:
            raise StreamFailed(CLOSING.status, CLOSING.message)
        return hello


def _session(hello: Hello, peer: str) -> Session:
    """Makes the session for a hello. Raises `StreamFailed`."""
    try:
        return Session(hello, AdvertisedHost.of_hello(hello, peer))
    except MessageRefused as error:
        raise StreamFailed(Status.INVALID_ARGUMENT, f"the hello was refused: {error}") from error


def _peer(stream: AttachStream) -> str:
    address = stream.peer.addr()
    return address[0] if address else "unknown"
