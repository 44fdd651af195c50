"""The HTTP APIs of several gateways of one fleet: each listens on a port of this machine and knows all the others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from gateway.api.http.listener.listening_socket import open_socket
from gateway.api.http.listener.server import Listener, ListenerSettings
from gateway.domain.peers import PeerState
from tests.fakes.api_harness import ApiHarness

PATIENCE_SECONDS = 20.0
"""After which a test gives up."""


@dataclass(frozen=True)
class ServedApi:
    harness: ApiHarness
    listener: Listener

    async def cut_connections(self) -> None:
        """As the death of its process would."""
        for connection in tuple(self.listener._connections):
            await connection.close_now()


@asynccontextmanager
async def serving(*harnesses: ApiHarness) -> AsyncIterator[tuple[ServedApi, ...]]:
    served = tuple(ServedApi(harness, _listener(harness)) for harness in harnesses)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for each in served:
                each.harness.url = await nursery.start(each.listener.run, open_socket("127.0.0.1", 0))
            introduce(*harnesses)
            yield served
            nursery.cancel_scope.cancel()


def introduce(*harnesses: ApiHarness) -> None:
    for harness in harnesses:
        others = (each for each in harnesses if each is not harness)
        harness.set_peers(*harness.peers.states.values(), *(PeerState(other.gateway_id, other.url) for other in others))


def _listener(harness: ApiHarness) -> Listener:
    settings = ListenerSettings(
        drain_seconds=0.0, write_timeout_seconds=PATIENCE_SECONDS, connections_max=100, end_grace_seconds=0.1
    )
    return Listener(harness.app, settings, on_drain=harness.app.drain, on_drain_end=harness.app.end_streams)
