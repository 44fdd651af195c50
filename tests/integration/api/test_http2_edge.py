"""HTTP/2 at its edges: answers that nobody reads, floods of frames that cost their sender nothing, odd requests."""

import socket
import ssl
import struct
from pathlib import Path
from typing import Final

import httpx
import pytest
import trio
from trio.testing import MockClock

from gateway.api.http.listener.byte_stream import READ_BYTES
from gateway.api.http.listener.http2 import LIMITS, STREAMS_MAX
from gateway.domain.pacing import TokenBucket
from tests.fakes.certificates import make_authority
from tests.fakes.h2_client import HEAD, H2Client, raw_frame
from tests.fakes.listener_harness import NEVER, SOON, ListenerHarness, let_time_pass, open_listener, read_to_end
from tests.integration.harness import WAIT_SECONDS, running_gateway

CALM: Final = 11
CANCEL: Final = 8
PROTOCOL_ERROR: Final = 1
DATA, HEADERS, PRIORITY, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 7, 8, 9
MIB: Final = 1024 * 1024
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


async def connect(harness: ListenerHarness, window_bytes: int | None = None) -> H2Client:
    client = H2Client(await harness.connect())
    await client.start(window_bytes)
    return client


def abort(client: H2Client) -> None:
    client.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


# Answers that nobody reads


@pytest.mark.parametrize("path", ["/do", "/flood", "/stream"])
@pytest.mark.parametrize("end", ["fin", "abort", "goaway", "reset"])
async def test_no_handler_outlives_its_connection_or_stream(path: str, end: str) -> None:
    """Also one that has said all, and waits only for its client to read it."""
    async with open_listener() as harness:
        client = await connect(harness, window_bytes=0)
        streams = [await client.ask(path) for _ in range(4)]
        await client.read_until(lambda: len(client.statuses) == 4)
        await harness.handlers.wait(running=4, done=0)
        match end:
            case "reset":
                for stream in streams:
                    client.connection.reset_stream(stream, CANCEL)
                await client.flush()
            case "goaway":
                client.connection.close_connection()
                await client.flush()
            case _:
                if end == "abort":
                    abort(client)
                await client.stream.aclose()
        await harness.handlers.wait(running=0, done=4)
        if end != "reset":
            await harness.wait_connections(0)


@pytest.mark.parametrize("path", ["/do", "/flood", "/stream"])
async def test_a_stream_whose_client_reads_nothing_is_reset_and_no_other(path: str) -> None:
    async with open_listener(write_timeout_seconds=SOON) as harness:
        client = await connect(harness, window_bytes=0)
        stalled = await client.ask(path)
        await client.read_until(lambda: stalled in client.resets)
        assert client.resets == {stalled: CANCEL}
        await harness.handlers.wait(running=0, done=1)
        client.connection.increment_flow_control_window(65535)
        other = await client.begin("/do")
        client.connection.increment_flow_control_window(100, other)
        client.connection.send_data(other, b"{}", end_stream=True)
        await client.flush()
        await client.read_until(lambda: other in client.ended)
        assert (client.statuses[other], client.bodies[other]) == ("200", b"{}")


async def test_a_stream_that_is_quiet_is_not_one_that_is_not_read() -> None:
    async with open_listener(write_timeout_seconds=SOON) as harness:
        client = await connect(harness)
        quiet = await client.ask("/stream")
        await client.read_until(lambda: client.bodies[quiet] == b"part")
        stalled = await client.begin("/do")
        client.connection.send_data(stalled, b"{}", end_stream=True)
        await client.flush()
        await client.read_until(lambda: stalled in client.ended)
        unread_client = await connect(harness, window_bytes=0)
        unread = await unread_client.ask("/flood")
        # A stream that had begun to stall earlier would have been reset by now, too.
        await unread_client.read_until(lambda: unread in unread_client.resets)
        asked = await client.ask("/do")
        await client.read_until(lambda: asked in client.ended)
        await harness.handlers.wait(running=1, done=3)
        assert not client.resets


@pytest.mark.parametrize("path", ["/nothing", "/do"])
@pytest.mark.parametrize("end", ["fin", "timeout"])
async def test_a_body_that_nobody_reads_holds_no_connection(path: str, end: str) -> None:
    """It is refused (404, 413), the client does not read that, and sends on."""
    async with open_listener(write_timeout_seconds=SOON if end == "timeout" else NEVER) as harness:
        client = await connect(harness, window_bytes=0)
        refused = await client.begin(path)
        for _ in range(30):
            client.connection.send_data(refused, bytes(100))
        await client.flush()
        await client.read_until(lambda: refused in client.statuses)
        if end == "timeout":
            await client.read_until(lambda: refused in client.resets)
        else:
            await client.stream.aclose()
            await harness.wait_connections(0)


async def test_the_rests_of_refused_bodies_share_one_pace(mock_clock: MockClock) -> None:
    """Otherwise those who send them take the processor from everybody else."""
    clients, size, pace = 4, 2 * MIB, TokenBucket(MIB, burst=MIB)
    let_time_pass(mock_clock)
    async with open_listener(drop_pace=pace) as harness:
        begin = trio.current_time()

        async def send_much() -> None:
            client = await connect(harness)
            refused = await client.begin("/do")
            left = size
            while left:
                window = client.connection.local_flow_control_window(refused)
                part = min(left, window, client.connection.max_outbound_frame_size)
                if part:
                    client.connection.send_data(refused, bytes(part), end_stream=part == left)
                    await client.flush()
                    left -= part
                else:
                    await client._read()
            await client.read_until(lambda: refused in client.ended)
            assert client.statuses[refused] == "413"

        async with trio.open_nursery() as nursery:
            for _ in range(clients):
                nursery.start_soon(send_much)
        unpaced = 4 * READ_BYTES  # What comes before the refusal, and the last part, after which nothing is read.
        assert trio.current_time() - begin >= (clients * (size - unpaced) - pace.burst) / pace.per_second


# Floods


ASKED: Final = "asked"
"""In the place of a stream: one that is open."""
FLOODS: Final = {
    "ping": raw_frame(PING, bytes(8)),
    "ping_ack": raw_frame(PING, bytes(8), flags=1),
    "settings": raw_frame(SETTINGS),
    "settings_that_change": raw_frame(SETTINGS, b"\0\4\0\0\xff\xff"),
    "priority": raw_frame(PRIORITY, b"\0\0\0\0\x10", stream=101),
    "unknown": raw_frame(0xBB, b"x"),
    "empty_data": raw_frame(DATA, stream=1),
    "tiny_data": raw_frame(DATA, b" ", stream=1),
    "padding": raw_frame(DATA, b"\x20" + bytes(32), flags=8, stream=1),
    "window": raw_frame(WINDOW_UPDATE, b"\0\0\0\1"),
    "window_of_a_stream": raw_frame(WINDOW_UPDATE, b"\0\0\0\1", stream=1),
    "reset": raw_frame(RESET, b"\0\0\0\x08", stream=1),
}
ENOUGH: Final = 2000


@pytest.mark.parametrize("flood", FLOODS.values(), ids=FLOODS)
async def test_a_flood_of_frames_is_sent_away(flood: bytes) -> None:
    """And what its connection had open ends with it."""
    async with open_listener(body_bytes_max=10**6) as harness:
        client = await connect(harness)
        running = await client.begin("/do")
        assert running == 1
        other = await client.ask("/stream")
        await client.read_until(lambda: client.bodies[other] == b"part")
        await client.stream.send_all(flood * ENOUGH)
        await client.read_to_end()
        assert client.goaway == CALM
        await harness.handlers.wait(running=0, done=1)
        await harness.wait_connections(0)


async def test_a_header_block_without_end_is_sent_away() -> None:
    async with open_listener() as harness:
        client = await connect(harness)
        await client.stream.send_all(raw_frame(HEADERS, b"", stream=1))
        with trio.CancelScope() as scope:
            try:
                for _ in range(ENOUGH):
                    await client.stream.send_all(raw_frame(CONTINUATION, b"\x00\x01x\x7f\x00" + bytes(127), stream=1))
            except trio.BrokenResourceError:
                scope.cancel()
        await harness.wait_connections(0)


@pytest.mark.parametrize("body", [b"", b"{}"])
async def test_rapid_resets_are_sent_away_before_they_are_worked_on(body: bytes) -> None:
    """CVE-2023-44487: what was reset in the same moment is not even begun."""
    async with open_listener() as harness:
        client = await connect(harness)
        for _ in range(int(LIMITS.reset_streams.at_once) + 50):
            stream = client.connection.get_next_available_stream_id()
            client.connection.send_headers(stream, [*HEAD, (":path", "/stream")])
            if body:
                client.connection.send_data(stream, body, end_stream=True)
            client.connection.reset_stream(stream)
        await client.flush()
        await client.read_to_end()
        assert client.goaway == CALM
        await harness.wait_connections(0)
        assert harness.handlers.running == 0


async def test_resets_that_a_client_provokes_are_its_own() -> None:
    """CVE-2025-8671: here by letting a window overflow."""
    async with open_listener() as harness:
        client = await connect(harness)
        overflow = struct.pack(">I", 2**31 - 1)
        try:
            for _ in range(int(LIMITS.reset_streams.at_once) + 50):
                stream = await client.ask("/stream")
                await client.stream.send_all(raw_frame(WINDOW_UPDATE, overflow, stream=stream))
        except trio.BrokenResourceError:
            pass
        await client.read_to_end()
        assert client.goaway == CALM
        await harness.wait_connections(0)


async def test_a_flood_holds_up_nobody_else() -> None:
    """By the order of events: the other client has its answer while the flood is still being sent."""
    async with open_listener() as harness:
        good = await connect(harness)
        floods = [await connect(harness) for _ in range(10)]
        async with trio.open_nursery() as nursery:
            for client in floods:
                nursery.start_soon(send_without_end, client, raw_frame(PING, bytes(8)) * 200)
            for _ in range(20):
                stream = await good.ask("/do")
                await good.read_until(lambda stream=stream: stream in good.ended)  # type: ignore[misc]
            await harness.wait_connections(1)


async def send_without_end(client: H2Client, frames: bytes) -> None:
    try:
        while True:
            await client.stream.send_all(frames)
    except trio.BrokenResourceError:
        pass


# Odd requests


@pytest.mark.parametrize(
    "request_head",
    [
        [(":method", "CONNECT"), (":authority", "elsewhere:80")],
        [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/\xe9")],
        [(":method", "P\xd6ST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/do")],
        [
            *[(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/do")],
            *[("authorization", "Bearer a"), ("authorization", "Bearer b")],
        ],
    ],
    ids=["connect", "path", "method", "authorization_twice"],
)
async def test_an_odd_request_ends_its_own_stream_alone(request_head: list[tuple[str, str]]) -> None:
    async with open_listener() as harness:
        client = await connect(harness)
        running = await client.ask("/stream")
        await client.read_until(lambda: client.bodies[running] == b"part")
        odd = client.connection.get_next_available_stream_id()
        client.connection.send_headers(odd, request_head)
        await client.flush()
        await client.read_until(lambda: odd in client.resets)
        assert client.resets == {odd: PROTOCOL_ERROR}
        await client.read_until(lambda: True)
        await harness.handlers.wait(running=1, done=0)


# Connections without requests


@pytest.mark.parametrize("begin", ["nothing", "ping", "reset"])
async def test_a_connection_without_a_request_is_closed(begin: str) -> None:
    async with open_listener(header_timeout_seconds=SOON) as harness:
        client = await connect(harness)
        if begin == "ping":
            client.connection.ping(bytes(8))
        elif begin == "reset":
            stream = await client.ask("/stream")
            await client.read_until(lambda: client.bodies[stream] == b"part")
            client.connection.reset_stream(stream)
        await client.flush()
        await harness.wait_connections(0)


async def test_without_http2_its_preface_is_a_bad_request() -> None:
    async with open_listener(http2=False) as harness:
        client = await harness.connect()
        await client.send_all(PREFACE + raw_frame(SETTINGS))
        assert (await read_to_end(client)).startswith(b"HTTP/1.1 505 ")


# Clients of good will


async def test_a_hundred_streams_at_a_time_and_large_bodies_both_ways() -> None:
    size = 3_000_000
    async with open_listener(body_bytes_max=size) as harness:
        url, json = f"http://127.0.0.1:{harness.port}/do", {"content-type": "application/json"}
        async with httpx.AsyncClient(http1=False, http2=True, timeout=60) as client:
            assert len(harness.listener._connections) == 0
            answers: list[tuple[str, int, int]] = []

            async def ask(body: bytes) -> None:
                answer = await client.post(url, content=body, headers=json)
                answers.append((answer.http_version, answer.status_code, len(answer.content)))

            await ask(b"{}")
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(ask, bytes(2000))
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(ask, bytes(size))
            assert len(harness.listener._connections) == 1
    assert sorted(answers) == [("HTTP/2", 200, 2), *[("HTTP/2", 200, 2000)] * 100, *[("HTTP/2", 200, size)] * 3]


async def test_a_client_may_give_up_all_that_it_has_at_once() -> None:
    async with open_listener() as harness:
        client = await connect(harness)
        streams = [await client.ask("/stream") for _ in range(STREAMS_MAX)]
        await harness.handlers.wait(running=STREAMS_MAX, done=0)
        for stream in streams:
            client.connection.reset_stream(stream)
        await client.flush()
        await harness.handlers.wait(running=0, done=STREAMS_MAX)
        last = await client.ask("/do")
        await client.read_until(lambda: last in client.ended)
        assert client.goaway is None


@pytest.mark.parametrize(
    ("setting", "spoken", "version"), [("true", "h2", "HTTP/2"), ("false", "http/1.1", "HTTP/1.1")]
)
def test_tls_offers_http2_only_where_the_configuration_allows_it(
    tmp_path: Path, setting: str, spoken: str, version: str
) -> None:
    authority = make_authority(tmp_path / "ca")
    cert, key = authority.issue("127.0.0.1")
    config = f'[server]\nhttp2 = {setting}\ntls_cert = "{cert}"\ntls_key = "{key}"\n'
    with running_gateway(tmp_path / "gateway", config) as gateway:
        context = ssl.create_default_context(cafile=str(authority.cert))
        context.set_alpn_protocols(["h2", "http/1.1"])
        address = httpx.URL(gateway.url)
        with (
            socket.create_connection((address.host, address.port), WAIT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=address.host) as client,
        ):
            assert client.selected_alpn_protocol() == spoken
        with httpx.Client(http2=True, verify=context, timeout=WAIT_SECONDS) as able:
            answer = able.get(f"{gateway.url}/healthz")
        assert (answer.status_code, answer.http_version) == (200, version)
