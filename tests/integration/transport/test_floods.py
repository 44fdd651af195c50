"""The workers' port against those who have no credential: how many, for how long, and how much they may send."""

from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import pytest
import trio

from gateway.domain.session import Leaving
from gateway.transport import limits as connections
from tests.fakes.h2_client import H2Client, raw_frame
from tests.fakes.raw_grpc import ATTACH
from tests.fakes.session_gateway import SessionGateway, open_session_gateway

CALM: Final = 11
HEADERS, PRIORITY, RESET, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 1, 2, 3, 4, 6, 8, 9
FLOODS: Final = {
    "ping": raw_frame(PING, bytes(8)),
    "settings": raw_frame(SETTINGS),
    "priority": raw_frame(PRIORITY, b"\0\0\0\0\x10", stream=101),
    "unknown": raw_frame(0xBB, b"x"),
    "window": raw_frame(WINDOW_UPDATE, b"\0\0\0\1"),
}
CALL: Final = [
    *[(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", ATTACH)],
    *[("te", "trailers"), ("content-type", "application/grpc+proto")],
]


async def connect(session_gateway: SessionGateway, held: AsyncExitStack) -> H2Client:
    """Until the end of the test at the latest."""
    client = H2Client(await held.enter_async_context(await trio.open_tcp_stream("127.0.0.1", session_gateway.port)))
    await client.start()
    return client


async def call(client: H2Client, *more: tuple[str, str]) -> int:
    stream = client.connection.get_next_available_stream_id()
    client.connection.send_headers(stream, [*CALL, *more])
    await client.flush()
    return stream


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_of_frames_is_sent_away_and_a_session_goes_on(flood: bytes) -> None:
    async with (
        open_session_gateway() as session_gateway,
        AsyncExitStack() as held,
        session_gateway.attach() as channels,
    ):
        served = await session_gateway.next_session()
        client = await connect(session_gateway, held)
        await client.stream.send_all(flood * 8000)
        await client.read_to_end()
        assert client.goaway == CALM
        await channels.send.send(Leaving())
        assert await served.from_worker.receive() == Leaving()
        served.end.set()


async def test_frames_of_a_kind_that_is_not_known_are_no_failure() -> None:
    async with open_session_gateway() as session_gateway, AsyncExitStack() as held:
        client = await connect(session_gateway, held)
        await client.stream.send_all(raw_frame(0xBB, b"x") * 3)
        refused = await call(client)
        await client.read_until(lambda: refused in client.statuses)


@pytest.mark.parametrize("resets", [False, True])
async def test_calls_without_a_credential_are_few(resets: bool) -> None:
    async with open_session_gateway() as session_gateway, AsyncExitStack() as held:
        client = await connect(session_gateway, held)
        try:
            for _ in range(100):
                stream = await call(client)
                if resets:
                    client.connection.reset_stream(stream)
                    await client.flush()
        except trio.BrokenResourceError:
            pass
        await client.read_to_end()
        assert client.goaway == CALM


async def test_an_unauthenticated_peer_has_its_time_once_however_often_it_tries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CREDENTIAL_SECONDS", 0.2)
    async with open_session_gateway() as session_gateway, AsyncExitStack() as held:
        client = await connect(session_gateway, held)
        for _ in range(3):
            await call(client, ("authorization", "Bearer wrong"))
        await client.read_to_end()


async def test_the_oldest_unauthenticated_peer_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNAUTHENTICATED_MAX", 2)
    async with open_session_gateway() as session_gateway, AsyncExitStack() as held:
        async with session_gateway.attach():
            served = await session_gateway.next_session()
            unknown_peers = [await connect(session_gateway, held) for _ in range(2)]
            for unknown_peer in unknown_peers:
                await unknown_peer.read_until(lambda unknown_peer=unknown_peer: unknown_peer.settled)  # type: ignore[misc]
            newest = await connect(session_gateway, held)
            await unknown_peers[0].read_to_end()
            await newest.read_until(lambda: newest.settled)
            served.end.set()
        async with session_gateway.attach():
            (await session_gateway.next_session()).end.set()


@pytest.mark.parametrize("size", [20_000, 70_000])
async def test_the_headers_of_a_call_are_bounded(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are sent as they are: to compress that much would take the client many seconds."""
    async with open_session_gateway() as session_gateway, AsyncExitStack() as held:
        client = await connect(session_gateway, held)
        encoder = client.connection.encoder
        monkeypatch.setattr(encoder, "encode", partial(encoder.encode, huffman=False))
        await call(client, ("authorization", "x" * size))
        await client.read_to_end()
        assert client.goaway == CALM
