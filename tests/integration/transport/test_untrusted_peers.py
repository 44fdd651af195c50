"""Peers that do not keep to the protocol, by malice, age or mistake: each is told, and hurts nobody else."""

import asyncio
import contextlib
import socket
from math import nan
from typing import Any

import psutil
import pytest
import trio
from google.protobuf.message import Message
from grpclib import GRPCError, Status

from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Observed
from gateway.domain.session import EndTail, Heartbeat, Leaving, SessionEnded, SessionRefused, TailLogs
from gateway.transport import client, server
from gateway.transport import codec as wire
from gateway.transport import limits as connections
from gateway.transport import stream_pump as pump
from gateway.transport.errors import SessionLost
from gateway.transport.node_credentials import session_metadata
from gateway.transport.pb import worker_pb2 as pb
from tests.fakes.raw_grpc import RawGatewayStream, RawWorkerStream, open_gateway_play, play_worker
from tests.fakes.relay import Relay, open_relay
from tests.fakes.session_gateway import SessionGateway, credential, hello, open_session_gateway

METADATA = session_metadata(credential(hello()), hello().node_id, hello().boot_id)
HELLO = wire.hello_message(hello()).SerializeToString()
HEARTBEAT = pb.FromWorker(heartbeat=pb.Heartbeat()).SerializeToString()
WELCOME = pb.ToWorker(heartbeat=pb.Heartbeat()).SerializeToString()
BEYOND = b"\xfa\x3e\x03new"
"""A message of a later version: one with a member (number 1007) that we do not know."""
GARBAGE = b"\xff\xff\xff"
TERSE_SECONDS = 1.0
"""Silence that a test waits for."""
LASTING_SECONDS = 2.0
"""Silence that must not come about: many times the pause between two messages."""
IDLE_SECONDS = 2.0
"""Many times what the hello of a session takes to come."""


async def says_nothing(_: RawWorkerStream) -> None:
    pass


async def says_hello(stream: RawWorkerStream) -> None:
    await stream.send_message(HELLO)


# Workers


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {**METADATA, "authorization": "Bearer"},
        {**METADATA, "authorization": METADATA["authorization"].removeprefix("Bearer ")},
        {**METADATA, "x-gateway-node": "node-2"},
        {**METADATA, "x-gateway-boot": "boot-0"},
    ],
)
async def test_a11_who_has_no_credential_is_refused_before_anything_is_read(metadata: dict[str, str]) -> None:
    async with open_session_gateway() as session_gateway:
        status, _ = await play_worker(session_gateway.bridge, session_gateway.port, says_nothing, metadata)
    assert status is Status.UNAUTHENTICATED


@pytest.mark.parametrize(("node_id", "boot_id"), [("node-2", "boot-1"), ("node-1", "boot-0")])
async def test_a11_a_node_can_not_speak_for_another(node_id: str, boot_id: str) -> None:
    other = hello(node_id, boot_id)

    async def says_another_hello(stream: RawWorkerStream) -> None:
        await stream.send_message(wire.hello_message(other).SerializeToString())

    async with open_session_gateway() as session_gateway:
        status, _ = await play_worker(session_gateway.bridge, session_gateway.port, says_another_hello, METADATA)
    assert status is Status.PERMISSION_DENIED


async def test_a_worker_that_does_not_say_hello_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HELLO_SECONDS", 0.1)
    async with open_session_gateway() as session_gateway:
        status, _ = await play_worker(session_gateway.bridge, session_gateway.port, says_nothing, METADATA)
    assert status is Status.DEADLINE_EXCEEDED


OTHER_PROTOCOL = pb.FromWorker(hello=pb.Hello(protocol=2, node_id="node-1", boot_id="boot-1"))


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        (HEARTBEAT, Status.FAILED_PRECONDITION),
        (OTHER_PROTOCOL.SerializeToString(), Status.FAILED_PRECONDITION),
        (BEYOND, Status.FAILED_PRECONDITION),
        (b"", Status.FAILED_PRECONDITION),
        (None, Status.FAILED_PRECONDITION),
        (GARBAGE, Status.INVALID_ARGUMENT),
        (b"x" * (pump.MESSAGE_BYTES_MAX + 1), Status.RESOURCE_EXHAUSTED),
    ],
)
async def test_what_is_no_hello_begins_no_session(first: bytes | None, expected: Status) -> None:
    async def play(stream: RawWorkerStream) -> None:
        if first is None:
            await stream.end()
        else:
            await stream.send_message(first)

    async with open_session_gateway() as session_gateway:
        status, _ = await play_worker(session_gateway.bridge, session_gateway.port, play, METADATA)
    assert status is expected


@pytest.mark.parametrize(
    ("bad", "expected"),
    [(GARBAGE, Status.INVALID_ARGUMENT), (b"x" * (pump.MESSAGE_BYTES_MAX + 1), Status.RESOURCE_EXHAUSTED)],
)
async def test_a_message_that_is_none_ends_its_session_only(bad: bytes, expected: Status) -> None:
    async def play(stream: RawWorkerStream) -> None:
        await stream.send_message(HELLO)
        await stream.send_message(bad)

    async with open_session_gateway() as session_gateway, session_gateway.attach(hello("node-2")) as other:
        stays = await session_gateway.next_session()
        status, _ = await play_worker(session_gateway.bridge, session_gateway.port, play, METADATA)
        assert status is expected
        goes = await session_gateway.next_session()
        with pytest.raises(trio.EndOfChannel):
            await goes.from_worker.receive()
        goes.end.set()
        await other.send.send(Leaving())
        assert await stays.from_worker.receive() == Leaving()
        stays.end.set()


async def test_the_head_of_too_large_a_message_is_enough() -> None:
    """Nothing of it is kept, and nobody waits for the rest."""

    async def play(stream: RawWorkerStream) -> None:
        head = b"\0" + (2**32 - 1).to_bytes(4, "big")
        await stream._stream.send_data(head)

    async with open_session_gateway() as session_gateway:
        status, message = await play_worker(session_gateway.bridge, session_gateway.port, play, METADATA)
    assert (status, "at most 16777216 are allowed" in message) == (Status.RESOURCE_EXHAUSTED, True)


def changed(**fields: Any) -> bytes:
    message = wire.hello_message(hello())
    message.hello.MergeFrom(pb.Hello(**fields))
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("first", "named"),
    [
        (changed(vram_budget=pb.VramBudget(share=nan)), "VramBudget.share"),
        (changed(vram_budget=pb.VramBudget(share=1e300)), "VramBudget.share"),
        (changed(capacity=pb.Capacity(ram_bytes=-(2**63))), "Capacity.ram_bytes"),
        (changed(capacity=pb.Capacity(gpus=[pb.Gpu(vram_bytes=2**63 - 1)])), "Gpu.vram_bytes"),
        (changed(max_replicas_per_model=-1), "Hello.max_replicas_per_model"),
        (changed(advertise="169.254.169.254"), "Hello.advertise"),
        (changed(replicas=[pb.Report(replica_id="r" * 1000)]), "Report.replica_id"),
    ],
)
async def test_a_hello_that_says_what_can_not_be_begins_no_session(first: bytes, named: str) -> None:
    async def play(stream: RawWorkerStream) -> None:
        await stream.send_message(first)

    async with open_session_gateway() as session_gateway:
        status, message = await play_worker(session_gateway.bridge, session_gateway.port, play, METADATA)
    assert (status, named in message) == (Status.INVALID_ARGUMENT, True)


async def test_a_capacity_that_can_not_be_ends_its_session() -> None:
    async def play(stream: RawWorkerStream) -> None:
        await stream.send_message(HELLO)
        await stream.send_message(pb.FromWorker(capacity=pb.Capacity(disk_bytes=-1)).SerializeToString())

    async with open_session_gateway() as session_gateway:
        status, message = await play_worker(session_gateway.bridge, session_gateway.port, play, METADATA)
        (await session_gateway.next_session()).end.set()
    assert (status, "Capacity.disk_bytes" in message) == (Status.INVALID_ARGUMENT, True)


async def test_a_report_that_can_not_be_is_the_end_of_its_replica_and_of_nothing_else() -> None:
    """Where a replica may be is judged by what the session's hello advertises, in the hello and after it."""
    reports = [
        pb.Report(replica_id="elsewhere", observed="ready", address="127.0.0.2:9", parallel=1),
        pb.Report(replica_id="absurd", observed="ready", address="127.0.0.1:9", parallel=2**63 - 1),
        pb.Report(replica_id="good", observed="ready", address="127.0.0.1:9", parallel=1),
    ]

    async def play(stream: RawWorkerStream) -> None:
        await stream.send_message(changed(advertise="127.0.0.1", replicas=reports))
        for report in reports:
            await stream.send_message(pb.FromWorker(report=report).SerializeToString())
        await stream.end()

    async with open_session_gateway() as session_gateway, trio.open_nursery() as nursery:
        nursery.start_soon(play_worker, session_gateway.bridge, session_gateway.port, play, METADATA)
        served = await session_gateway.next_session()
        said = [record async for record in served.from_worker]
        assert said == list(served.hello.replicas)
        assert [(each.replica_id, each.observed) for each in served.hello.replicas] == [
            ("elsewhere", Observed.FAILED),
            ("absurd", Observed.FAILED),
            ("good", Observed.READY),
        ]
        served.end.set()


async def test_who_sends_too_fast_is_read_slowly_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate is so low that each wait would be one of hours, however slow this machine is."""
    monkeypatch.setattr(pump, "BURST_BYTES", 10 * pump.MESSAGE_COST_BYTES)
    monkeypatch.setattr(pump, "BYTES_PER_SECOND", pump.MESSAGE_COST_BYTES / 10_000)
    waits, sleep = list[float](), asyncio.sleep

    async def note(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", note)

    async def play(stream: RawWorkerStream) -> None:
        for message in [HELLO, *[HEARTBEAT] * 30]:
            await stream.send_message(message)
        await stream.end()

    async with open_session_gateway() as session_gateway, trio.open_nursery() as nursery:
        nursery.start_soon(play_worker, session_gateway.bridge, session_gateway.port, play, METADATA)
        served = await session_gateway.next_session()
        assert [record async for record in served.from_worker] == [Heartbeat()] * 30
        served.end.set()
    assert len([seconds for seconds in waits if seconds > 3600]) > 15


async def test_a_newer_worker_says_by_unknown_messages_that_it_lives() -> None:
    async def play(stream: RawWorkerStream) -> None:
        await stream.send_message(HELLO)
        for _ in range(25):
            await asyncio.sleep(LASTING_SECONDS / 20)
            await stream.send_message(BEYOND)
        await stream.send_message(HEARTBEAT)
        await stream.end()

    async with open_session_gateway(silence_seconds=LASTING_SECONDS) as session_gateway, trio.open_nursery() as nursery:
        nursery.start_soon(play_worker, session_gateway.bridge, session_gateway.port, play, METADATA)
        served = await session_gateway.next_session()
        assert [record async for record in served.from_worker] == [Heartbeat()]
        served.end.set()


async def test_a_worker_that_ends_its_side_is_served_to_the_end() -> None:
    got: list[bytes | None] = []

    async def play(stream: RawWorkerStream) -> None:
        await stream.send_message(HELLO)
        await stream.end()
        got.extend([await stream.recv_message() for _ in range(2)])

    async def serve(session_gateway: SessionGateway) -> None:
        served = await session_gateway.next_session()
        with pytest.raises(trio.EndOfChannel):
            await served.from_worker.receive()
        await served.to_worker.send(EndTail(1))
        served.end.set()

    async with open_session_gateway() as session_gateway, trio.open_nursery() as nursery:
        nursery.start_soon(serve, session_gateway)
        status, _ = await play_worker(session_gateway.bridge, session_gateway.port, play, METADATA)
    assert status is Status.OK
    assert got == [WELCOME, wire.to_worker_message(EndTail(1)).SerializeToString()]


async def test_no_other_method_exists() -> None:
    """grpclib's answer to it lacks a header, so that its client may find it without a known status."""
    async with open_session_gateway() as session_gateway:
        status, _ = await play_worker(
            session_gateway.bridge,
            session_gateway.port,
            says_nothing,
            METADATA,
            "/gateway.worker.v1.WorkerSession/Detach",
        )
    assert status in {Status.UNIMPLEMENTED, Status.UNKNOWN}


async def end_of(connection: trio.SocketStream) -> None:
    """Returns when the other side has hung up."""
    try:
        while await connection.receive_some():
            pass
    except trio.BrokenResourceError:
        pass


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"])
async def test_a_connection_without_a_session_is_cut(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a session that says nothing is not cut, though it is there for longer: it has its own bound."""
    monkeypatch.setattr(connections, "CREDENTIAL_SECONDS", IDLE_SECONDS)
    monkeypatch.setattr(connections, "IDLE_SECONDS", IDLE_SECONDS)
    async with open_session_gateway() as session_gateway, session_gateway.attach() as channels:
        async with await trio.open_tcp_stream("127.0.0.1", session_gateway.port) as idle:
            if said:
                await idle.send_all(said)
            await end_of(idle)
        await channels.send.send(Leaving())
        served = await session_gateway.next_session()
        assert await served.from_worker.receive() == Leaving()
        served.end.set()


async def test_the_number_of_connections_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "CONNECTIONS_MAX", 1)
    async with open_session_gateway() as session_gateway:
        async with session_gateway.attach():
            async with await trio.open_tcp_stream("127.0.0.1", session_gateway.port) as further:
                await end_of(further)
            (await session_gateway.next_session()).end.set()
        async with session_gateway.attach():
            (await session_gateway.next_session()).end.set()


async def test_a_worker_that_hangs_up_the_hard_way_is_nothing_special() -> None:
    async with open_session_gateway() as session_gateway:
        for _ in range(3):
            rude = socket.create_connection(("127.0.0.1", session_gateway.port))
            rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            rude.close()
        async with session_gateway.attach():
            (await session_gateway.next_session()).end.set()


async def test_h8_a_worker_that_stands_still_on_a_full_connection_is_cut() -> None:
    """Not even the status gets through to it."""

    async def send_much(session_gateway: SessionGateway, relay: Relay) -> None:
        served = await session_gateway.next_session()
        relay.down.hold()
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await served.to_worker.send(TailLogs(1, ReplicaId("r" * 2**20), 1, follow=False))
        served.end.set()
        while server_connections(session_gateway.port):  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.05)
        nursery.cancel_scope.cancel()

    async with (
        open_session_gateway(silence_seconds=TERSE_SECONDS) as session_gateway,
        open_relay(session_gateway.port) as relay,
        trio.open_nursery() as nursery,
    ):
        port = int(relay.address.rpartition(":")[2])
        nursery.start_soon(play_worker, session_gateway.bridge, port, says_hello, METADATA)
        await send_much(session_gateway, relay)


def server_connections(port: int) -> int:
    """That the server at `port` of this process still has."""
    found = psutil.Process().net_connections("tcp")
    return sum(each.laddr.port == port and each.status != psutil.CONN_LISTEN for each in found)


# Gateways


async def send_first(stream: RawGatewayStream, message: Message | bytes) -> None:
    await stream.recv_message()
    await stream.send_message(message if isinstance(message, bytes) else message.SerializeToString())
    await asyncio.Event().wait()


async def test_a_gateway_that_sends_garbage_is_left() -> None:
    async def play(stream: RawGatewayStream) -> None:
        await send_first(stream, GARBAGE)

    async with open_session_gateway() as session_gateway, open_gateway_play(session_gateway.bridge, play) as address:
        with pytest.raises(SessionLost, match="no message of a session"):
            async with session_gateway.attach(address=address):
                pass


async def test_a_gateway_that_sends_too_much_is_left() -> None:
    async def play(stream: RawGatewayStream) -> None:
        await send_first(stream, b"x" * (pump.MESSAGE_BYTES_MAX + 1))

    async with open_session_gateway() as session_gateway, open_gateway_play(session_gateway.bridge, play) as address:
        with pytest.raises(SessionLost, match="at most 16777216 are allowed"):
            async with session_gateway.attach(address=address):
                pass


async def test_a_newer_gateway_may_welcome_by_an_unknown_message() -> None:
    async def play(stream: RawGatewayStream) -> None:
        await send_first(stream, BEYOND)

    async with open_session_gateway() as session_gateway, open_gateway_play(session_gateway.bridge, play) as address:
        with trio.CancelScope() as scope:
            async with session_gateway.attach(address=address) as channels:
                with pytest.raises(trio.WouldBlock):
                    channels.receive.receive_nowait()
                scope.cancel()
                await trio.sleep_forever()
        assert scope.cancelled_caught


async def test_leaving_a_gateway_that_never_ends_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FLUSH_SECONDS", 0.1)

    async def play(stream: RawGatewayStream) -> None:
        await send_first(stream, WELCOME)

    async with (
        open_session_gateway() as session_gateway,
        open_gateway_play(session_gateway.bridge, play) as address,
        session_gateway.attach(address=address) as channels,
    ):
        await channels.send.send(Leaving())


@pytest.mark.parametrize(
    ("status", "refused", "again"),
    [
        (Status.UNAUTHENTICATED, True, True),
        (Status.NOT_FOUND, True, True),
        (Status.PERMISSION_DENIED, True, False),
        (Status.FAILED_PRECONDITION, True, False),
        (Status.UNAVAILABLE, False, False),
        (Status.ABORTED, False, False),
        (Status.UNKNOWN, False, False),
    ],
)
async def test_what_a_gateways_status_means(status: Status, refused: bool, again: bool) -> None:
    async def play(stream: RawGatewayStream) -> None:
        raise GRPCError(status, "the gateway's words")

    async with open_session_gateway() as session_gateway, open_gateway_play(session_gateway.bridge, play) as address:
        with pytest.raises(SessionRefused if refused else SessionLost, match="the gateway's words") as caught:
            async with session_gateway.attach(address=address):
                pass
    assert getattr(caught.value, "register_again", False) is again


async def test_what_has_no_sessions_is_no_gateway() -> None:
    async def play(_: RawGatewayStream) -> None:
        pass

    async with (
        open_session_gateway() as session_gateway,
        open_gateway_play(session_gateway.bridge, play, "/backend.Backend/Health") as address,
    ):
        with pytest.raises(SessionEnded):
            async with session_gateway.attach(address=address):
                pass


async def test_a_gateway_that_ends_at_once_is_lost() -> None:
    async def play(_: RawGatewayStream) -> None:
        pass

    async with open_session_gateway() as session_gateway, open_gateway_play(session_gateway.bridge, play) as address:
        with pytest.raises(SessionLost, match="ended the session"):
            async with session_gateway.attach(address=address):
                pass
