"""The gateway's side of sessions as a test plays it: real grpclib, and whatever `serve` the test wants."""

import ssl
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import trio

from gateway.api.http.listener.listening_socket import open_socket
from gateway.bridge import Bridge, open_bridge
from gateway.domain.ids import BootId, NodeId
from gateway.domain.session import FromWorker, Heartbeat, Hello, ToWorker
from gateway.transport.client import SessionChannels, open_session
from gateway.transport.node_credentials import is_credential, node_credential
from gateway.transport.server import SessionServer
from gateway.transport.session import Serve

SECRET = b"the cluster's secret"
PATIENCE_SECONDS = 30.0
"""No side gives up by itself within a test, unless the test says so."""


def hello(node_id: str = "node-1", boot_id: str = "boot-1") -> Hello:
    return Hello(NodeId(node_id), f"name of {node_id}", BootId(boot_id))


def credential(said: Hello) -> str:
    return node_credential(SECRET, said.node_id, said.boot_id)


@dataclass
class Served:
    """One session as the gateway has it."""

    hello: Hello
    to_worker: trio.MemorySendChannel[ToWorker]
    from_worker: trio.MemoryReceiveChannel[FromWorker]
    over: trio.Event = field(default_factory=trio.Event)
    """Serving has ended, whether by the test's `end` or by a cancel."""
    end: trio.Event = field(default_factory=trio.Event)


class SessionGateway:
    """Hands each session to the test, which then plays `serve`; or gets its own `serve`."""

    def __init__(self, bridge: Bridge) -> None:
        self.bridge = bridge
        self.port = 0
        self.scope = trio.CancelScope()
        """Of the server: cancel it, and the gateway stops."""
        self.closed = trio.Event()
        self._arrived, self._sessions = trio.open_memory_channel[Served](100)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def serve(
        self,
        said: Hello,
        to_worker: trio.MemorySendChannel[ToWorker],
        from_worker: trio.MemoryReceiveChannel[FromWorker],
    ) -> None:
        """Welcomes the worker, then leaves the channels to the test until it sets `end`."""
        served = Served(said, to_worker, from_worker)
        await to_worker.send(Heartbeat())
        await self._arrived.send(served)
        try:
            await served.end.wait()
        finally:
            served.over.set()

    async def next_session(self) -> Served:
        return await self._sessions.receive()

    def attach(
        self,
        said: Hello | None = None,
        *,
        address: str | None = None,
        credential_: str | None = None,
        silence_seconds: float = PATIENCE_SECONDS,
        tls: ssl.SSLContext | None = None,
    ) -> AbstractAsyncContextManager[SessionChannels]:
        """As a worker does it."""
        said = said or hello()
        return open_session(
            self.bridge,
            address or self.address,
            credential=credential(said) if credential_ is None else credential_,
            hello=said,
            silence_seconds=silence_seconds,
            tls=tls,
        )

    async def run(self, server: SessionServer, tls: ssl.SSLContext | None, task_status: trio.TaskStatus[int]) -> None:
        with self._arrived, self._sessions:
            with self.scope:
                await server.run([open_socket("127.0.0.1", 0)], tls=tls, task_status=task_status)
            self.closed.set()
            await trio.sleep_forever()


@asynccontextmanager
async def open_session_gateway(
    serve: Serve | None = None, *, silence_seconds: float = PATIENCE_SECONDS, tls: ssl.SSLContext | None = None
) -> AsyncIterator[SessionGateway]:
    """A session server of the test's own, on a free port."""
    async with open_bridge() as bridge, trio.open_nursery() as nursery:
        session_gateway = SessionGateway(bridge)
        server = SessionServer(
            bridge, serve or session_gateway.serve, partial(is_credential, SECRET), silence_seconds=silence_seconds
        )
        session_gateway.port = await nursery.start(lambda task_status: session_gateway.run(server, tls, task_status))
        with trio.fail_after(PATIENCE_SECONDS):
            yield session_gateway
        nursery.cancel_scope.cancel()
