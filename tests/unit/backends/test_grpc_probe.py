"""The classifier of replicas' lives against real sockets and real processes."""

import errno
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
import trio
from grpclib import Status
from grpclib.client import Channel
from grpclib.server import Server
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived

from gateway.backends.dial import Dial, dial
from gateway.backends.grpc_probe import CONNECT_SHARE, GrpcProbe, can_connect
from gateway.backends.metadata import REFUSED, TOKEN_VARIABLE
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.protocol import Target
from gateway.bridge import open_bridge
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.ids import Address, ModelName, ReplicaId
from tests.fakes.in_memory_backend import InMemoryBackend, ServerStream, open_in_memory
from tests.fakes.ports import free_port

TOKEN = "secret"
PATIENT_SECONDS = 30.0
"""For probes that are answered: a slow machine must not make them silent."""
SHORT_SECONDS = 0.4
"""For probes that do not get through."""
SILENT_SECONDS = 2.0
"""For probes that nobody answers: they have to have got through by then."""
NEARLY_HALF = 0.498
"""As `connect_share` of `PATIENT_SECONDS`: an instant for the question, the rest for the connects."""


def target(address: str, token: str = TOKEN) -> Target:
    return Target(ReplicaId("r1"), ModelName("m"), Address(address), token)


async def probe(
    address: str,
    timeout_seconds: float,
    *,
    token: str = TOKEN,
    dial: Dial = dial,
    connect_share: float = CONNECT_SHARE,
) -> ProbeOutcome:
    async with open_bridge() as bridge:
        ask = GrpcProbe(bridge, timeout_seconds, dial, connect_share=connect_share)
        return await ask(target(address, token))


def address_of(listening: socket.socket) -> str:
    host, port = listening.getsockname()
    return f"{host}:{port}"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Its kernel takes connections; nobody else does anything with them."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:
        yield listening


@dataclass
class Backend:
    address: str
    process: "subprocess.Popen[bytes]"


@pytest.fixture
def backend() -> Iterator[Backend]:
    """A scripted backend process that listens."""
    address = f"127.0.0.1:{free_port()}"
    from_server, log = os.pipe()
    environment = {"SCRIPT": json.dumps({"ignore_stdin": True}), "SCRIPT_LOG": f"/dev/fd/{log}", TOKEN_VARIABLE: TOKEN}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.fakes.scripted_backend", "--addr", address],
        env={**os.environ, **environment},
        pass_fds=[log],
        stdin=subprocess.DEVNULL,
    )
    try:
        os.close(log)
        wait_until_it_says(from_server, b"listening")
        yield Backend(address, process)
    finally:
        process.kill()
        process.wait()
        os.close(from_server)


def wait_until_it_says(pipe: int, word: bytes) -> None:
    said = b""
    while word not in said:
        assert select.select([pipe], [], [], PATIENT_SECONDS)[0], f"it only said {said!r}"
        said += os.read(pipe, 4096)


async def test_a_backend_that_answers_is_alive(backend: Backend) -> None:
    assert await probe(backend.address, PATIENT_SECONDS) is ProbeOutcome.ALIVE


async def test_h5_one_that_does_not_know_our_token_is_somebody_else(backend: Backend) -> None:
    assert await probe(backend.address, PATIENT_SECONDS, token="other") is ProbeOutcome.GONE


async def test_h1_a_stopped_process_is_busy_until_it_goes_on(backend: Backend) -> None:
    os.kill(backend.process.pid, signal.SIGSTOP)
    assert await probe(backend.address, SILENT_SECONDS) is ProbeOutcome.BUSY
    os.kill(backend.process.pid, signal.SIGCONT)
    assert await probe(backend.address, PATIENT_SECONDS) is ProbeOutcome.ALIVE


async def test_a_killed_process_is_gone(backend: Backend) -> None:
    backend.process.kill()
    backend.process.wait()
    assert await probe(backend.address, PATIENT_SECONDS) is ProbeOutcome.GONE


async def test_nobody_at_the_port_is_gone() -> None:
    with closing(socket.socket()) as bound:
        bound.bind(("127.0.0.1", 0))
        assert await probe(address_of(bound), PATIENT_SECONDS) is ProbeOutcome.GONE


async def test_a_listener_that_never_answers_is_busy(listener: socket.socket) -> None:
    assert await probe(address_of(listener), SILENT_SECONDS) is ProbeOutcome.BUSY


async def test_one_that_hangs_up_is_gone(listener: socket.socket) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()  # so that it was a connection, and then none

    async with trio.open_nursery() as nursery:
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        nursery.start_soon(trio.serve_listeners, hang_up, [accepting])
        assert await probe(address_of(listener), PATIENT_SECONDS) is ProbeOutcome.GONE
        nursery.cancel_scope.cancel()


@pytest.fixture
def silent_address() -> Iterator[Address]:
    """A listener whose backlog is full: Linux answers no further connect at all, as a firewall that drops."""
    with closing(socket.create_server(("127.0.0.1", 0), backlog=0)) as full, closing(socket.socket()) as first:
        first.connect(full.getsockname())
        yield Address(address_of(full))


async def test_a_machine_that_takes_no_connection_is_unreachable(silent_address: Address) -> None:
    assert await probe(silent_address, SHORT_SECONDS) is ProbeOutcome.UNREACHABLE


class NoWayChannel(Channel):
    """Connecting ends with what the network says."""

    def __init__(self, error: OSError) -> None:
        super().__init__("127.0.0.1", 1)
        self._error = error

    async def _create_connection(self) -> Any:
        raise self._error


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (OSError(errno.EHOSTUNREACH, "no route to host"), ProbeOutcome.UNREACHABLE),
        (OSError(errno.ENETUNREACH, "network is unreachable"), ProbeOutcome.UNREACHABLE),
        (socket.gaierror(socket.EAI_NONAME, "unknown name"), ProbeOutcome.UNREACHABLE),
        (ConnectionRefusedError(errno.ECONNREFUSED, "refused"), ProbeOutcome.GONE),
        (ConnectionResetError(errno.ECONNRESET, "reset"), ProbeOutcome.GONE),
        (OSError("Multiple exceptions: refused, refused"), ProbeOutcome.GONE),
    ],
)
async def test_no_way_to_the_machine_is_not_taken_for_a_dead_replica(error: OSError, outcome: ProbeOutcome) -> None:
    assert await probe("127.0.0.1:1", PATIENT_SECONDS, dial=lambda _address: NoWayChannel(error)) is outcome


@pytest.mark.parametrize("status", [status for status in Status if status is not Status.OK])
async def test_h2_an_error_is_no_answer_of_a_healthy_backend_except_by_one_that_is_too_busy(status: Status) -> None:
    """A server whose threads all stream lives by what it streams; it is not to be given up for that."""
    too_busy = status in {Status.RESOURCE_EXHAUSTED, Status.DEADLINE_EXCEEDED}
    assert await probe_error(status, {}) is (ProbeOutcome.BUSY if too_busy else ProbeOutcome.GONE)


@pytest.mark.parametrize("status", [Status.UNAVAILABLE, Status.RESOURCE_EXHAUSTED])
@pytest.mark.parametrize("why", ["full", "draining"])
async def test_r13_who_refuses_all_calls_alike_lives_and_finishes_those_it_has(status: Status, why: str) -> None:
    assert await probe_error(status, {REFUSED: why}) is ProbeOutcome.ALIVE


async def probe_error(status: Status, trailers: dict[str, str]) -> ProbeOutcome:
    async def answer(stream: ServerStream, _request: object) -> None:
        await stream.send_trailing_metadata(status=status, metadata=trailers)

    async with open_bridge() as bridge:
        service = InMemoryBackend()
        service.answer = answer
        async with open_in_memory(bridge, service) as channel:
            outcome = await GrpcProbe(bridge, PATIENT_SECONDS, lambda _address: channel)(target("a:1"))
        assert service.metadata[0]["authorization"] == f"Bearer {TOKEN}"
        return outcome


@pytest.mark.parametrize("said", [b"", b"ok", b"OK\n", b"<html>"])
async def test_what_does_not_say_ok_is_no_backend_of_ours(said: bytes) -> None:
    async def answer(stream: ServerStream, _request: object) -> None:
        await stream.send_message(pb.Reply(message=said))

    async with open_bridge() as bridge:
        service = InMemoryBackend()
        service.answer = answer
        async with open_in_memory(bridge, service) as channel:
            asked = GrpcProbe(bridge, PATIENT_SECONDS, lambda _address: channel)
            assert await asked(target("a:1")) is ProbeOutcome.GONE


async def probe_other_server(
    listening: socket.socket,
    serve: Callable[[trio.SocketStream], Awaitable[None]],
    connect_share: float = CONNECT_SHARE,
) -> object:
    async with trio.open_nursery() as nursery:
        accepting = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        nursery.start_soon(trio.serve_listeners, serve, [accepting])
        outcome = await probe(address_of(listening), PATIENT_SECONDS, connect_share=connect_share)
        nursery.cancel_scope.cancel()
    return outcome


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n", b"\0" * 64])
async def test_who_does_not_speak_http2_is_gone(listener: socket.socket, answer: bytes) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(answer)
        await trio.sleep_forever()

    assert await probe_other_server(listener, serve, NEARLY_HALF) is ProbeOutcome.GONE


@pytest.mark.parametrize(
    "headers",
    [
        [(":status", "200"), ("content-type", "text/html")],
        [(":status", "200")],
        [(":status", "503"), ("content-type", "application/grpc")],
        [(":status", "502")],
        [(":status", "418")],
    ],
)
async def test_who_speaks_http2_and_no_grpc_is_gone(listener: socket.socket, headers: list[tuple[str, str]]) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        async for data in stream:
            for event in connection.receive_data(data):
                if isinstance(event, RequestReceived):
                    connection.send_headers(event.stream_id, headers, end_stream=True)
            await stream.send_all(connection.data_to_send())

    assert await probe_other_server(listener, serve) is ProbeOutcome.GONE


async def test_a_grpc_server_of_somebody_else_is_gone() -> None:
    async def start_aio() -> Server:
        server = Server([])
        await server.start("127.0.0.1", 0)
        return server

    async with open_bridge() as bridge:
        server = await bridge.run(start_aio)
        port = server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        try:
            assert await GrpcProbe(bridge, PATIENT_SECONDS)(target(f"127.0.0.1:{port}")) is ProbeOutcome.GONE
        finally:
            server.close()


async def test_each_probe_has_a_connection_of_its_own_and_closes_it() -> None:
    """H3: on the connection of the requests it would wait behind them."""

    async def answer(stream: ServerStream, _request: object) -> None:
        await stream.send_message(pb.Reply(message=b"OK"))

    async with open_bridge() as bridge:
        service, dialled = InMemoryBackend(), list[Address]()
        service.answer = answer
        for _ in range(2):
            async with open_in_memory(bridge, service) as channel:

                def once(address: Address, channel: Channel = channel) -> Channel:
                    dialled.append(address)
                    return channel

                await GrpcProbe(bridge, PATIENT_SECONDS, once)(target("a:1"))
                assert channel._protocol is None
        assert dialled == ["a:1", "a:1"]


async def test_a_connect_is_judged_by_itself(listener: socket.socket) -> None:
    address = Address(address_of(listener))
    assert await can_connect(address, PATIENT_SECONDS)
    listener.close()
    assert not await can_connect(address, PATIENT_SECONDS)


async def test_a_connect_without_an_answer_takes_no_longer_than_its_time(silent_address: Address) -> None:
    with trio.fail_after(PATIENT_SECONDS):
        assert not await can_connect(silent_address, 0.1)
