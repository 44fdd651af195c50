"""Several `Front`s as gateways of one fleet: each listens on a port of this machine and has heard of all the others."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from gateway.api.http.server import Listener, ListenerSettings, open_socket
from gateway.domain.peers import PeerState
from tests.fakes.front import Front

PATIENCE_SECONDS = 20.0
"""After which a test gives up."""


@dataclass(frozen=True)
class ServedFront:
    front: Front
    listener: Listener

    async def cut_connections(self) -> None:
        """As the death of its process would."""
        for connection in tuple(self.listener._connections):
            await connection.close_now()


@asynccontextmanager
async def serving(*fronts: Front) -> AsyncIterator[tuple[ServedFront, ...]]:
    served = tuple(ServedFront(front, _listener(front)) for front in fronts)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for each in served:
                each.front.url = await nursery.start(each.listener.run, open_socket("127.0.0.1", 0))
            introduce(*fronts)
            yield served
            nursery.cancel_scope.cancel()


def introduce(*fronts: Front) -> None:
    for front in fronts:
        others = (each for each in fronts if each is not front)
        front.hear(*front.peers.states.values(), *(PeerState(other.gateway_id, other.url) for other in others))


def _listener(front: Front) -> Listener:
    settings = ListenerSettings(
        drain_seconds=0.0, write_timeout_seconds=PATIENCE_SECONDS, connections_max=100, end_grace_seconds=0.1
    )
    return Listener(front.app, settings, on_drain=front.app.drain, on_drain_end=front.app.end_streams)
