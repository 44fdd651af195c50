"""The output of a replica's backend process: its last lines as text, or every further one as an event stream.

The lines come through the session of the replica's node, so a gateway that does not hold it asks the one that does.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, Protocol

import trio
from pydantic_core import to_json

from gateway.api.admin.nodes import replica_not_found
from gateway.api.admin.peer_client import PeerClient, was_relayed
from gateway.api.http.auth import Caller, Role
from gateway.api.http.event_stream import event
from gateway.api.http.exchange import Exchange
from gateway.api.http.http_app import Route
from gateway.api.http.query_params import count_of, flag_of
from gateway.domain.cluster import ClusterState, Node
from gateway.domain.errors import Unavailable
from gateway.domain.ids import GatewayId, NodeId, ReplicaId
from gateway.domain.session import LOG_LINES_MAX, LogChunk

LINES_DEFAULT: Final = 100
KEEP_ALIVE_SECONDS: Final = 15.0
"""The longest pause in an event stream, because proxies and clients take a quiet stream for a dead one."""
ANSWER_SECONDS: Final = 10.0
"""How long a worker may take to send the last lines."""
RETRY_AFTER_SECONDS: Final = 5.0

TEXT: Final = b"text/plain; charset=utf-8"
KEEP_ALIVE: Final = b": nothing new\n\n"
END: Final = b'event: end\ndata: {"lines":[],"skipped":0}\n\n'
"""The last event: the process is gone. Its data is that of an empty event, for readers that see data only."""


class HeldAtPeer(Unavailable):
    """The session of the replica's node is not at this gateway. None means that it is at none."""

    def __init__(self, gateway_id: GatewayId | None, message: str) -> None:
        super().__init__(message, retry_after_seconds=RETRY_AFTER_SECONDS)
        self.gateway_id = gateway_id


class OpenTail(Protocol):
    """Opens a reader of a replica's output: chunks until one has `ended`. If the channel ends without such a chunk, the
    node's session is over. Leaving the context ends the stream.

    Raises `NotFound`, `HeldAtPeer`.
    """

    def __call__(
        self, replica_id: ReplicaId, lines: int, /, *, follow: bool
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[LogChunk]]: ...


class OpenNodeTail(Protocol):
    """Opens the same reader as `OpenTail` for a node, or yields None if the node has no session at this gateway."""

    def __call__(
        self, node_id: NodeId, replica_id: ReplicaId, lines: int, /, *, follow: bool
    ) -> AbstractAsyncContextManager[trio.MemoryReceiveChannel[LogChunk] | None]: ...


@asynccontextmanager
async def open_replica_tail(
    state: Callable[[], ClusterState], open_node_tail: OpenNodeTail, replica_id: ReplicaId, lines: int, *, follow: bool
) -> AsyncIterator[trio.MemoryReceiveChannel[LogChunk]]:
    """Opens a reader of a replica's output. It is an `OpenTail` once its first two arguments are given."""
    replica = state().replicas.get(replica_id)
    if replica is None:
        raise replica_not_found(replica_id)
    async with open_node_tail(replica.node_id, replica_id, lines, follow=follow) as tail:
        if tail is None:
            raise _held_at_peer(state().nodes.get(replica.node_id))
        yield tail


def _held_at_peer(node: Node | None) -> HeldAtPeer:
    if node is None or node.gateway_id is None:
        return HeldAtPeer(None, "The node of this replica has no session now; it may have one again in a moment.")
    return HeldAtPeer(
        node.gateway_id,
        f"The session of node '{node.name}' was last at gateway '{node.gateway_id}', and is not at this one.",
    )


class ReplicaLogs:
    """Serves the output of replicas, through the gateway with the session of the replica's node if that is another
    one."""

    def __init__(self, open_tail: OpenTail, peers: PeerClient) -> None:
        self._open_tail = open_tail
        self._peers = peers

    def routes(self) -> Sequence[Route]:
        """Returns the route of `/api/replicas/{id}/logs`. It asks for the admin role and ends when a drain begins."""
        return (Route("GET", "/api/replicas/{id}/logs", Role.ADMIN, self._logs, ends_with_service=True),)

    async def _logs(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        replica_id = ReplicaId(exchange.params["id"])
        query = exchange.query
        lines = count_of(query, "lines", LINES_DEFAULT, LOG_LINES_MAX)
        follow = flag_of(query, "follow")
        try:
            async with self._open_tail(replica_id, lines, follow=follow) as tail:
                if follow:
                    await _relay(exchange, tail)
                else:
                    await exchange.respond(200, await _read_all(tail), content_type=TEXT)
                return
        except HeldAtPeer as held:
            if held.gateway_id is None or was_relayed(exchange):
                raise
            holder = held.gateway_id
        await self._peers.relay(exchange, holder)


async def _read_all(tail: trio.MemoryReceiveChannel[LogChunk]) -> bytes:
    """Returns the last lines. Raises `Unavailable` if the worker does not answer in time or is lost."""
    text: list[str] = []
    with trio.move_on_after(ANSWER_SECONDS):
        async for chunk in tail:
            if chunk.skipped:
                text.append(f"... {chunk.skipped} lines left out ...\n")
            text.extend(f"{line}\n" for line in chunk.lines)
            if chunk.ended:
                return "".join(text).encode(errors="replace")
        raise _session_lost()
    raise Unavailable(
        f"The replica's node did not send the lines within {ANSWER_SECONDS:g} s.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


async def _relay(exchange: Exchange, tail: trio.MemoryReceiveChannel[LogChunk]) -> None:
    """Sends the output until the process is gone. Raises `Unavailable` if the node is lost before."""
    await exchange.start_event_stream()
    await exchange.send_part(KEEP_ALIVE)  # The response begins now, whenever the first line comes.
    while True:
        chunk = await _next_chunk(tail)
        if chunk is None:
            await exchange.send_part(KEEP_ALIVE)
            continue
        if chunk.lines or chunk.skipped:
            await exchange.send_part(event(to_json({"lines": chunk.lines, "skipped": chunk.skipped})))
        if chunk.ended:
            await exchange.end_stream(END)
            return


async def _next_chunk(tail: trio.MemoryReceiveChannel[LogChunk]) -> LogChunk | None:
    """Returns the next chunk, or None if nothing came for `KEEP_ALIVE_SECONDS`. Raises `Unavailable` at the end of the
    channel."""
    with trio.move_on_after(KEEP_ALIVE_SECONDS):
        try:
            return await tail.receive()
        except trio.EndOfChannel:
            raise _session_lost() from None
    return None


def _session_lost() -> Unavailable:
    return Unavailable(
        "The session of the replica's node ended; more may be read once it is back.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
