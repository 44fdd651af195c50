"""Sessions between workers and a gateway over real connections: what arrives, and every way in which one can end."""

import socket
import ssl
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import ModelSpec
from gateway.domain.resources import Capacity, Gpu
from gateway.domain.session import (
    DesiredReplica,
    DesiredSet,
    EndTail,
    FromWorker,
    Heartbeat,
    Hello,
    Leaving,
    LogChunk,
    Report,
    SessionEnded,
    SessionRefused,
    TailLogs,
    ToWorker,
)
from gateway.transport import client, server, session
from gateway.transport import stream_pump as pump
from gateway.transport.client import SessionChannels
from gateway.transport.errors import SessionLost
from gateway.transport.tls import client_context, server_context
from tests.fakes.certificates import Authority, make_authority
from tests.fakes.relay import open_relay
from tests.fakes.session_gateway import credential, hello, open_session_gateway

TERSE_SECONDS = 1.0
"""Silence that a test waits for."""
LASTING_SECONDS = 2.0
"""Silence that must not come about: many times the pause between two messages."""
ToWorkers = trio.MemorySendChannel[ToWorker]
FromWorkers = trio.MemoryReceiveChannel[FromWorker]

SAID: tuple[FromWorker, ...] = (
    Report(ReplicaId("r1"), Observed.FAILED, pid=7, exit_code=-9, error="killed"),
    Heartbeat(),
    Capacity(gpus=(Gpu("nvidia", "L4", "uuid", 24 * 2**30),), ram_bytes=2**40),
    LogChunk(3, ("one", "two"), skipped=5, ended=True),
    Leaving(),
)


def desired_set(count: int, epoch: int = 1) -> DesiredSet:
    spec = ModelSpec(ModelName("m"), "llama-cpp", "file:/models/m.gguf", options={"a": "b"}, parallel=4)
    replicas = (DesiredReplica(ReplicaId(f"r{index}"), spec, Desired.RUN, "t" * 64) for index in range(count))
    return DesiredSet(epoch, tuple(replicas))


ASKED: tuple[ToWorker, ...] = (
    desired_set(2),
    Heartbeat(),
    TailLogs(3, ReplicaId("r1"), 100, follow=True),
    EndTail(3),
)


async def wait_end(channels: SessionChannels) -> SessionEnded:
    """Reads to the end and says why it ended."""
    async for _ in channels.receive:
        pass
    assert channels.error is not None
    return channels.error


async def collect(receive: trio.MemoryReceiveChannel[Any], count: int) -> tuple[Any, ...]:
    return tuple([await receive.receive() for _ in range(count)])


# What arrives


async def test_all_that_is_said_arrives_in_order() -> None:
    async with open_session_gateway() as session_gateway, session_gateway.attach() as channels:
        served = await session_gateway.next_session()
        assert served.hello == hello()
        assert await channels.receive.receive() == Heartbeat()
        for said in SAID:
            await channels.send.send(said)
        for asked in ASKED:
            await served.to_worker.send(asked)
        assert await collect(served.from_worker, len(SAID)) == SAID
        assert await collect(channels.receive, len(ASKED)) == ASKED
        served.end.set()


async def test_a_big_desired_set_arrives() -> None:
    async with open_session_gateway() as session_gateway, session_gateway.attach() as channels:
        served = await session_gateway.next_session()
        wanted = desired_set(5000)
        await served.to_worker.send(wanted)
        assert (await collect(channels.receive, 2))[1] == wanted
        served.end.set()


async def test_twenty_workers_at_once() -> None:
    async def echo(said: Hello, to_worker: ToWorkers, from_worker: FromWorkers) -> None:
        await to_worker.send(Heartbeat())
        async for record in from_worker:
            assert isinstance(record, Report)
            await to_worker.send(TailLogs(record.pid or 0, ReplicaId(said.node_id), 1, follow=False))

    async def work(number: int) -> None:
        async with session_gateway.attach(hello(f"node-{number}")) as channels:
            waiting.discard(number)
            if not waiting:
                together.set()
            await together.wait()
            await channels.send.send(Report(ReplicaId("r"), Observed.READY, pid=number))
            answers.append((await collect(channels.receive, 2))[1])

    waiting, together, answers = set(range(20)), trio.Event(), list[ToWorker]()
    async with open_session_gateway(echo) as session_gateway, trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(work, number)
    assert {(answer.tail, answer.replica_id) for answer in answers if isinstance(answer, TailLogs)} == {
        (number, f"node-{number}") for number in range(20)
    }


async def test_a_slow_reader_slows_the_worker_and_is_no_silence_of_it() -> None:
    chunk = LogChunk(1, ("x" * 2**20,))
    async with (
        open_session_gateway(silence_seconds=TERSE_SECONDS) as session_gateway,
        session_gateway.attach() as channels,
    ):
        served = await session_gateway.next_session()
        sent = 0
        with trio.move_on_after(3 * TERSE_SECONDS):
            while sent < 1000:
                await channels.send.send(chunk)
                sent += 1
        assert sent < 1000
        assert await collect(served.from_worker, sent) == (chunk,) * sent
        served.end.set()


# Who is let in


@pytest.mark.parametrize("given", ["", "nonsense", credential(hello("node-2")), credential(hello(boot_id="boot-0"))])
async def test_a11_a_wrong_credential_is_refused_and_may_be_renewed(given: str) -> None:
    async def nobody(*_: object) -> None:
        raise AssertionError("served")

    async with open_session_gateway(nobody) as session_gateway:
        with pytest.raises(SessionRefused, match="credential is not valid") as caught:
            async with session_gateway.attach(credential_=given):
                pass
    assert caught.value.register_again


async def test_a_node_that_is_unknown_now_registers_again_and_one_that_is_not_wanted_does_not() -> None:
    async def refuse(said: Hello, *_: object) -> None:
        raise SessionRefused(f"no {said.node_id}", register_again=said.node_id == "node-1")

    async with open_session_gateway(refuse) as session_gateway:
        for node_id, again in (("node-1", True), ("node-2", False)):
            with pytest.raises(SessionRefused, match=f"no {node_id}") as caught:
                async with session_gateway.attach(hello(node_id)):
                    pass
            assert caught.value.register_again is again


async def test_a_session_may_be_refused_in_its_middle() -> None:
    async def refuse_later(_hello: Hello, to_worker: ToWorkers, from_worker: FromWorkers) -> None:
        await to_worker.send(Heartbeat())
        await from_worker.receive()
        async with trio.open_nursery():  # so that it arrives in a group
            raise SessionRefused("the node was removed", register_again=True)

    async with open_session_gateway(refuse_later) as session_gateway, session_gateway.attach() as channels:
        await channels.send.send(Heartbeat())
        error = await wait_end(channels)
    assert isinstance(error, SessionRefused)
    assert error.register_again
    assert "the node was removed" in str(error)


async def test_the_number_of_sessions_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SESSIONS_MAX", 1)
    async with open_session_gateway() as session_gateway:
        async with session_gateway.attach():
            with pytest.raises(SessionLost, match="limit"):
                async with session_gateway.attach(hello("node-2")):
                    pass
            (await session_gateway.next_session()).end.set()
        async with session_gateway.attach(hello("node-2")):
            (await session_gateway.next_session()).end.set()


# How it ends: properly


async def test_what_was_sent_before_leaving_arrives() -> None:
    got: list[FromWorker] = []

    async def listen(_hello: Hello, to_worker: ToWorkers, from_worker: FromWorkers) -> None:
        await to_worker.send(Heartbeat())
        got.extend([record async for record in from_worker])

    async with open_session_gateway(listen) as session_gateway:
        async with session_gateway.attach() as channels:
            for said in SAID:
                channels.send.send_nowait(said)
        assert tuple(got) == SAID, "the gateway has them by the time the worker has left"


async def test_when_serving_ends_what_it_sent_arrives_and_senders_fail() -> None:
    async with open_session_gateway() as session_gateway, session_gateway.attach() as channels:
        served = await session_gateway.next_session()
        for asked in ASKED:
            served.to_worker.send_nowait(asked)
        served.end.set()
        assert (await collect(channels.receive, 1 + len(ASKED)))[1:] == ASKED
        assert "ended the session" in str(await wait_end(channels))
        with pytest.raises(trio.BrokenResourceError):
            await channels.send.send(Heartbeat())


async def test_a_gateway_that_stops_tells_every_worker_at_once() -> None:
    release = trio.Event()

    async def slow_to_end(_hello: Hello, to_worker: ToWorkers, _: FromWorkers) -> None:
        await to_worker.send(Heartbeat())
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await release.wait()

    async with (
        open_session_gateway(slow_to_end) as session_gateway,
        session_gateway.attach(hello("node-1")) as one,
        session_gateway.attach(hello("node-2")) as two,
    ):
        session_gateway.scope.cancel()
        for channels in (one, two):
            error = await wait_end(channels)
            assert isinstance(error, SessionLost)
            assert "the gateway stops" in str(error)
        assert not session_gateway.closed.is_set(), "the workers need not wait for what the gateway still does"
        release.set()
        await session_gateway.closed.wait()
        with pytest.raises(SessionLost, match="can't connect"):
            async with session_gateway.attach(hello("node-3")):
                pass


async def test_an_exception_of_the_worker_stays_what_it_was() -> None:
    async with open_session_gateway() as session_gateway:
        with pytest.raises(KeyError, match="mine"):
            async with session_gateway.attach():
                raise KeyError("mine")
        served = await session_gateway.next_session()
        with pytest.raises(trio.EndOfChannel):
            await served.from_worker.receive()
        served.end.set()


async def test_a_cancelled_worker_leaves_at_once_though_the_gateway_does_not_end() -> None:
    async with open_session_gateway() as session_gateway:
        with trio.CancelScope() as scope:
            async with session_gateway.attach():
                served = await session_gateway.next_session()
                scope.cancel()
                await trio.sleep_forever()
        assert not served.over.is_set()
        served.end.set()


async def test_leaving_a_gateway_that_does_not_end_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "FLUSH_SECONDS", 0.1)
    monkeypatch.setattr(session, "END_SECONDS", 0.1)
    async with open_session_gateway() as session_gateway:
        with capture_logs() as logs:
            async with session_gateway.attach():
                served = await session_gateway.next_session()
            await served.over.wait()
            await trio.testing.wait_all_tasks_blocked()
    assert [line["event"] for line in logs] == ["session.handler_timeout"]


# How it ends: otherwise


async def test_a_session_that_fails_hurts_no_other() -> None:
    async def serve(said: Hello, to_worker: ToWorkers, from_worker: FromWorkers) -> None:
        await to_worker.send(Heartbeat())
        async for _ in from_worker:
            if said.node_id == "node-1":
                raise ValueError("a bug")
            await to_worker.send(EndTail(1))

    async with open_session_gateway(serve) as session_gateway, session_gateway.attach(hello("node-2")) as other:
        with capture_logs() as logs:
            async with session_gateway.attach(hello("node-1")) as channels:
                await channels.send.send(Heartbeat())
                error = await wait_end(channels)
        assert isinstance(error, SessionLost)
        assert "a bug" not in str(error)
        assert [line["event"] for line in logs] == ["session.handler_failed"]
        await other.send.send(Heartbeat())
        assert await collect(other.receive, 2) == (Heartbeat(), EndTail(1))


async def test_a_worker_that_vanishes_ends_its_session_only() -> None:
    async with (
        open_session_gateway() as session_gateway,
        open_relay(session_gateway.port) as relay,
        session_gateway.attach(hello("node-2")) as other,
    ):
        stays = await session_gateway.next_session()
        async with session_gateway.attach(hello("node-1"), address=relay.address) as channels:
            goes = await session_gateway.next_session()
            await relay.hang_up()
            with pytest.raises(trio.EndOfChannel):
                await goes.from_worker.receive()
            with pytest.raises(trio.BrokenResourceError):
                await goes.to_worker.send(Heartbeat())
            goes.end.set()
            assert "broke" in str(await wait_end(channels)), "to the worker it is the gateway that has vanished"
        await other.send.send(Leaving())
        assert await stays.from_worker.receive() == Leaving()
        stays.end.set()


@pytest.mark.parametrize("end", ["worker vanishes", "gateway stops"])
async def test_an_end_while_nobody_takes_what_was_sent_is_an_end_all_the_same(end: str) -> None:
    async with open_session_gateway() as session_gateway, open_relay(session_gateway.port) as relay:
        async with session_gateway.attach(address=relay.address) as channels:
            served = await session_gateway.next_session()
            with trio.move_on_after(TERSE_SECONDS):
                await chatter(channels.send, LogChunk(1, ("x" * 2**20,)))
            await (relay.hang_up() if end == "worker vanishes" else cancel(session_gateway.scope))
            served.end.set()
            assert isinstance(await wait_end(channels), SessionLost)
        await served.over.wait()


async def cancel(scope: trio.CancelScope) -> None:
    scope.cancel()


async def test_a_gateway_that_only_talks_keeps_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it does not take is dropped, and still says that the worker lives."""
    monkeypatch.setattr(session, "END_SECONDS", 0.1)
    async with (
        open_session_gateway(silence_seconds=LASTING_SECONDS) as session_gateway,
        session_gateway.attach() as channels,
    ):
        served = await session_gateway.next_session()
        served.from_worker.close()
        with trio.move_on_after(1.25 * LASTING_SECONDS):
            await chatter(channels.send, Heartbeat())
        await served.to_worker.send(EndTail(1))
        assert await collect(channels.receive, 2) == (Heartbeat(), EndTail(1))
        served.end.set()


async def chatter(send: trio.MemorySendChannel[Any], record: object) -> None:
    """A side that goes on talking."""
    try:
        while True:
            await send.send(record)
            await trio.sleep(TERSE_SECONDS / 20)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def test_h8_a_silent_worker_is_given_up_and_gets_the_reason() -> None:
    async with (
        open_session_gateway(silence_seconds=TERSE_SECONDS) as session_gateway,
        open_relay(session_gateway.port) as relay,
        session_gateway.attach(address=relay.address) as channels,
        trio.open_nursery() as nursery,
    ):
        served = await session_gateway.next_session()
        relay.up.hold()
        nursery.start_soon(chatter, channels.send, Heartbeat())
        nursery.start_soon(chatter, served.to_worker, Heartbeat())
        with pytest.raises(trio.EndOfChannel):
            await served.from_worker.receive()
        assert "nothing was heard" in str(await wait_end(channels))
        served.end.set()


async def test_h8_a_silent_gateway_is_given_up() -> None:
    async with open_session_gateway() as session_gateway, open_relay(session_gateway.port) as relay:
        async with (
            session_gateway.attach(address=relay.address, silence_seconds=TERSE_SECONDS) as channels,
            trio.open_nursery() as nursery,
        ):
            served = await session_gateway.next_session()
            relay.down.hold()
            nursery.start_soon(chatter, channels.send, Heartbeat())
            error = await wait_end(channels)
            assert isinstance(error, SessionLost)
            assert "nothing was heard" in str(error)
        async for _ in served.from_worker:
            pass
        served.end.set()


async def test_h8_a_worker_that_takes_nothing_is_given_up() -> None:
    """It still says that it lives, so silence would not tell; and as it does not read, the connection is cut."""
    async with (
        open_session_gateway(silence_seconds=TERSE_SECONDS) as session_gateway,
        open_relay(session_gateway.port) as relay,
        session_gateway.attach(address=relay.address) as channels,
        trio.open_nursery() as nursery,
    ):
        served = await session_gateway.next_session()
        relay.down.hold()
        nursery.start_soon(chatter, channels.send, Heartbeat())
        nursery.start_soon(chatter, served.to_worker, desired_set(20_000))
        async for _ in served.from_worker:
            pass
        served.end.set()
        relay.down.release()
        assert isinstance(await wait_end(channels), SessionLost)


async def test_h8_a_gateway_that_takes_nothing_is_given_up() -> None:
    async with open_session_gateway() as session_gateway, open_relay(session_gateway.port) as relay:
        async with (
            session_gateway.attach(address=relay.address, silence_seconds=TERSE_SECONDS) as channels,
            trio.open_nursery() as nursery,
        ):
            served = await session_gateway.next_session()
            relay.up.hold()
            nursery.start_soon(chatter, served.to_worker, Heartbeat())
            nursery.start_soon(chatter, channels.send, LogChunk(1, ("x" * 2**22,)))
            error = await wait_end(channels)
            assert "nothing was taken" in str(error)
            nursery.cancel_scope.cancel()
        relay.up.release()
        async for _ in served.from_worker:
            pass
        served.end.set()


# Entering


async def test_a_gateway_that_stands_still_does_not_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pitfall 38: the kernel makes the connection for it."""
    monkeypatch.setattr(client, "WELCOME_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as still:
        async with open_session_gateway() as session_gateway:
            with pytest.raises(SessionLost, match="did not answer within"):
                async with session_gateway.attach(address=f"127.0.0.1:{still.getsockname()[1]}"):
                    pass


async def test_a_gateway_that_never_welcomes_does_not_count_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "WELCOME_SECONDS", 0.2)

    async def say_nothing(*_: object) -> None:
        await trio.sleep_forever()

    async with open_session_gateway(say_nothing) as session_gateway:
        with pytest.raises(SessionLost, match="did not answer within"):
            async with session_gateway.attach():
                pass


@pytest.mark.parametrize("address", ["", "nowhere", ":80", "host:", "host:99999", "host:-1"])
async def test_an_address_that_is_none_is_named(address: str) -> None:
    async with open_session_gateway() as session_gateway:
        with pytest.raises(SessionLost, match="no address of a gateway"):
            async with session_gateway.attach(address=address or "x"):
                pass


async def test_too_large_a_message_is_not_sent() -> None:
    async with open_session_gateway() as session_gateway, session_gateway.attach() as channels:
        served = await session_gateway.next_session()
        await served.to_worker.send(TailLogs(1, ReplicaId("r" * (pump.MESSAGE_BYTES_MAX + 1)), 1, follow=False))
        assert "ended the session: a message of" in str(await wait_end(channels)), "the gateway itself has refused it"
        served.end.set()


# TLS


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))


async def test_a_session_over_tls(authority: Authority) -> None:
    tls = server_context(*authority.issue("127.0.0.1"))
    async with open_session_gateway(tls=tls) as session_gateway:
        async with session_gateway.attach(tls=client_context(authority.cert)) as channels:
            served = await session_gateway.next_session()
            await served.to_worker.send(desired_set(2000))
            assert (await collect(channels.receive, 2))[1] == desired_set(2000)
            await channels.send.send(Leaving())
            assert await served.from_worker.receive() == Leaving()
            served.end.set()
        async with session_gateway.attach(tls=client_context(authority.cert)) as channels:
            session_gateway.scope.cancel()
            assert "the gateway stops" in str(await wait_end(channels))
        await session_gateway.closed.wait()


def connections_to(address: str) -> list[int]:
    """Ports of this process from which it is connected to `address`."""
    port = int(address.rpartition(":")[2])
    found = psutil.Process().net_connections("tcp")
    return [each.laddr.port for each in found if each.status != psutil.CONN_LISTEN and each.raddr.port == port]


async def test_a_worker_that_leaves_hangs_up_though_the_gateway_stands_still(authority: Authority) -> None:
    """TLS would wait for the good-bye of the other side."""
    tls = server_context(*authority.issue("127.0.0.1"))
    async with open_session_gateway(tls=tls) as session_gateway, open_relay(session_gateway.port) as relay:
        with trio.CancelScope() as scope:
            async with session_gateway.attach(address=relay.address, tls=client_context(authority.cert)):
                (await session_gateway.next_session()).end.set()
                relay.down.hold()
                relay.up.hold()
                assert connections_to(relay.address)
                scope.cancel()
                await trio.sleep_forever()
        await trio.testing.wait_all_tasks_blocked()
        assert connections_to(relay.address) == []


async def test_an_unknown_certificate_is_not_trusted(authority: Authority, tmp_path: Path) -> None:
    tls = server_context(*authority.issue("127.0.0.1"))
    unknown_peer = make_authority(tmp_path / "stranger")
    async with open_session_gateway(tls=tls) as session_gateway:
        with pytest.raises(SessionLost, match=r"certificate .* is not to be trusted.*worker\.tls_ca"):
            async with session_gateway.attach(tls=client_context(unknown_peer.cert)):
                pass


async def test_a_certificate_of_another_host_is_not_trusted(authority: Authority) -> None:
    tls = server_context(*authority.issue("127.0.0.2"))
    async with open_session_gateway(tls=tls) as session_gateway:
        with pytest.raises(SessionLost, match=r"certificate .* is not to be trusted"):
            async with session_gateway.attach(tls=client_context(authority.cert)):
                pass


@pytest.mark.parametrize("side", ["worker", "gateway"])
async def test_tls_on_one_side_only_is_no_session(authority: Authority, side: str) -> None:
    of_server: ssl.SSLContext | None = server_context(*authority.issue("127.0.0.1")) if side == "gateway" else None
    of_client = client_context(authority.cert) if side == "worker" else None
    async with open_session_gateway(tls=of_server) as session_gateway:
        with pytest.raises(SessionLost):
            async with session_gateway.attach(tls=of_client):
                pass
