"""The connection around the state machine: what it sends and when, who waits for what, how it ends."""

import gc
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, HeadersFrame, RstStreamFrame
from trio.testing import MockClock

from gateway.backends.grpc.call import OutgoingCall
from gateway.backends.grpc.connection import CONNECT_SECONDS
from gateway.backends.grpc.output import StreamState
from gateway.backends.grpc.pool import ConnectionPool, open_connection_pool
from gateway.backends.grpc.transport import Transport
from gateway.backends.grpc.unary_answer import UnaryAnswer
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.protocol import Lost, RouteError, Target, Unreachable
from gateway.domain.errors import BackendFailed, GatewayError
from gateway.domain.ids import Address, ModelName, ReplicaId, RequestId
from gateway.domain.inference import Completion, Delta, Generation, Sampling
from tests.fakes import h2_frames as peer

MODEL = ModelName("m")
TARGET = Target(ReplicaId("r1"), MODEL, Address("h:1"), "secret")
REQUEST = RequestId("req-1")


class ScriptedTransport:
    """A connection whose other end is the test."""

    scheme = "http"

    def __init__(self) -> None:
        self.takes: float = float("inf")
        """How many bytes the network takes without waiting."""
        self.writable = trio.Event()
        """Set once the network takes everything again."""
        self.error: OSError | None = None
        """What sending raises."""
        self.sent = b""
        self.is_closed = False
        self._arrived, self._arrives = trio.open_memory_channel[bytes](100), trio.Event()

    def send_nowait(self, data: bytes) -> int:
        if self.error is not None:
            raise self.error
        taken = int(min(self.takes, len(data)))
        self.takes -= taken
        self.sent += data[:taken]
        return taken

    async def send_all(self, data: bytes) -> None:
        await self.writable.wait()
        if self.error is not None:
            raise self.error
        self.takes = float("inf")
        self.sent += data

    async def receive(self) -> bytes:
        return await self._arrived[1].receive()

    def arrive(self, *frames: bytes) -> None:
        self._arrived[0].send_nowait(b"".join(frames))

    def close(self) -> None:
        self.is_closed = True

    def frames(self, kind: type) -> list[object]:
        return [each for each in peer.parse(self.sent) if isinstance(each, kind)]


@dataclass
class Harness:
    backends: GrpcBackends
    pool: ConnectionPool
    nursery: trio.Nursery
    transport: ScriptedTransport = field(default_factory=ScriptedTransport)
    results: list[object] = field(default_factory=list)
    ends: list[RouteError | GatewayError | None] = field(default_factory=list)

    def ask(self, prompt: str = "hello") -> None:
        self.nursery.start_soon(self._ask, prompt)

    async def _ask(self, prompt: str) -> None:
        try:
            self.results.append(await self.backends.generate(TARGET, asked(prompt), REQUEST))
        except (RouteError, GatewayError) as error:
            self.results.append(error)

    async def settle(self) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async def arrive(self, *frames: bytes) -> None:
        self.transport.arrive(*frames)
        await self.settle()


def asked(prompt: str = "hello") -> Generation:
    return Generation(MODEL, prompt, Sampling(max_tokens=1_000_000))


@asynccontextmanager
async def open_harness(*, is_greeted: bool = True) -> AsyncIterator[Harness]:
    transport = ScriptedTransport()

    async def connect(_address: Address) -> Transport:
        await trio.lowlevel.checkpoint()
        return transport

    async with open_connection_pool(connect) as pool, trio.open_nursery() as nursery:
        if is_greeted:
            transport.arrive(peer.settings())
        yield Harness(GrpcBackends(pool), pool, nursery, transport)
        nursery.cancel_scope.cancel()


def answer(stream: int, *words: str) -> bytes:
    return b"".join(
        [peer.headers(stream), *(peer.data(stream, peer.message(word)) for word in words), peer.trailers(stream)]
    )


async def test_a_request_waits_for_nothing_but_its_answer() -> None:
    async with open_harness() as harness:
        harness.ask()
        await harness.settle()
        assert len(harness.transport.frames(HeadersFrame)) == len(harness.transport.frames(DataFrame)) == 1
        await harness.arrive(answer(1, "word"))
        [completion] = harness.results
        assert isinstance(completion, Completion)
        assert completion.text == "word"


async def test_a_connection_that_does_not_come_about_is_given_up(autojump_clock: MockClock) -> None:
    async def connect(_address: Address) -> Transport:
        await trio.sleep_forever()

    async with open_connection_pool(connect) as pool:
        backends, started = GrpcBackends(pool), trio.current_time()
        with pytest.raises(Unreachable, match="10 s"):
            await backends.generate(TARGET, asked(), REQUEST)
        assert trio.current_time() == started + CONNECT_SECONDS


async def test_a_caller_that_gives_up_does_not_take_the_connection_from_others() -> None:
    attempts, may_connect, transport = list[Address](), trio.Event(), ScriptedTransport()

    async def connect(address: Address) -> Transport:
        attempts.append(address)
        await may_connect.wait()
        return transport

    async with open_connection_pool(connect) as pool, trio.open_nursery() as nursery:
        harness = Harness(GrpcBackends(pool), pool, nursery, transport)
        with trio.CancelScope() as scope:
            scope.cancel()
            await harness.backends.generate(TARGET, asked(), REQUEST)
        harness.ask()
        await harness.settle()
        may_connect.set()
        transport.arrive(peer.settings())
        await harness.arrive(answer(1, "word"))
        assert attempts == [TARGET.address]
        assert [type(each) for each in harness.results] == [Completion]


async def test_what_the_network_does_not_take_is_sent_later_and_in_order() -> None:
    async with open_harness() as harness:
        harness.transport.takes = 100  # of the preface
        for _ in range(3):
            harness.ask("x" * 1_000)
        await harness.settle()
        assert len(harness.transport.sent) == 100
        harness.transport.writable.set()
        await harness.settle()
        assert [vars(each)["stream_id"] for each in harness.transport.frames(DataFrame)] == [1, 3, 5]


async def test_a_request_that_was_not_sent_to_its_end_may_go_to_another_replica() -> None:
    async with open_harness() as harness:
        harness.ask("x" * 50_000)
        await harness.settle()
        harness.transport.takes = 5_000
        harness.ask("x" * 50_000)
        await harness.settle()
        harness.transport.error = BrokenPipeError(32, "Broken pipe")
        harness.transport.writable.set()
        await harness.settle()
        assert sorted(type(each).__name__ for each in harness.results) == ["Lost", "Unreachable"]
        assert harness.transport.is_closed


async def test_a_request_that_waits_for_a_window_was_not_sent() -> None:
    async with open_harness() as harness:
        harness.ask("x" * 100_000)
        await harness.settle()
        await harness.arrive(b"")
        assert [type(each) for each in harness.results] == [Unreachable]


async def test_a_connection_that_ends_loses_its_calls_and_the_next_call_makes_another() -> None:
    async with open_harness() as harness:
        harness.ask()
        await harness.settle()
        await harness.arrive(peer.headers(1), peer.data(1, peer.message("begun")))
        await harness.arrive(b"")
        assert [type(each) for each in harness.results] == [Lost]
        assert harness.pool.statistics().open == 0
        harness.transport = ScriptedTransport()


async def test_a_cancel_is_sent_at_once() -> None:
    async with open_harness() as harness:
        async with harness.backends.open_stream(TARGET, asked(), REQUEST, harness.ends.append) as stream:
            await harness.settle()
            await harness.arrive(peer.headers(1), peer.data(1, peer.message("one")))
            assert await stream.receive() == Delta("one")
        [reset] = harness.transport.frames(RstStreamFrame)
        assert vars(reset)["error_code"] == ErrorCodes.CANCEL
        assert harness.ends == []


async def test_a_complete_answer_is_read_although_its_connection_has_ended() -> None:
    async with open_harness() as harness:
        async with harness.backends.open_stream(TARGET, asked(), REQUEST, harness.ends.append) as stream:
            await harness.arrive(answer(1, "one", "two"), peer.bare(0xF, 0, 0, b""))
            await harness.arrive(b"")
            assert harness.ends == [None]
            assert [(await stream.receive()).text for _ in range(3)] == ["one", "two", ""]
        assert harness.transport.frames(RstStreamFrame) == []


async def test_a_stream_gets_its_window_back_as_it_is_read() -> None:
    big = "x" * 10_000

    def granted(harness: Harness) -> int:
        return sum(
            vars(each).get("window_increment", 0)
            for each in peer.parse(harness.transport.sent)
            if vars(each)["stream_id"] == 1
        )

    async with (
        open_harness() as harness,
        harness.backends.open_stream(TARGET, asked(), REQUEST, harness.ends.append) as stream,
    ):
        await harness.arrive(peer.headers(1))
        for _ in range(20):
            await harness.arrive(peer.data(1, peer.message(big)))
        before = granted(harness)
        assert 0 < before < 140_000  # what may be unread without holding the backend up
        for _ in range(20):
            stream.receive_nowait()
        assert granted(harness) > before


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\1\0\0\0\1x", "compressed"),
        (b"\0\xff\xff\xff\xffx", "4294967295 bytes"),
        (b"\0\0\0\0\5abc", "within a message"),
        (b"\0\0\0\0\3\xff\xff\xff", "DecodeError"),
    ],
    ids=["compressed", "too large", "cut", "no protobuf"],
)
async def test_a_message_that_lies_fails_its_call_and_no_other(data: bytes, text: str) -> None:
    async with open_harness() as harness:
        harness.ask()
        await harness.settle()
        harness.ask()
        await harness.settle()
        await harness.arrive(peer.headers(1), peer.data(1, data), peer.trailers(1))
        [error] = harness.results
        assert isinstance(error, BackendFailed)
        assert text in str(error)
        await harness.arrive(answer(3, "word"))
        assert isinstance(harness.results[1], Completion)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ([(":status", "404")], "404"),
        ([(":status", "200"), ("content-type", "text/html")], "text/html"),
        ([(":status", "200")], "Missing content-type"),
        (peer.BEGIN, "Missing grpc-status"),
        ([*peer.BEGIN, ("grpc-status", "seventeen")], "Invalid grpc-status"),
    ],
)
async def test_an_answer_that_is_not_grpc_is_a_failed_backend(fields: peer.Fields, text: str) -> None:
    async with open_harness() as harness:
        harness.ask()
        await harness.settle()
        await harness.arrive(peer.headers(1, fields, end=True))
        [error] = harness.results
        assert isinstance(error, BackendFailed) or "404" in text
        assert text in str(error)


async def test_two_messages_are_no_unary_answer() -> None:
    async with open_harness() as harness:
        harness.ask()
        await harness.settle()
        await harness.arrive(answer(1, "one", "two"))
        [error] = harness.results
        assert isinstance(error, BackendFailed)


async def test_a_backend_that_breaks_the_rules_gets_the_reason_and_its_calls_are_lost() -> None:
    async with open_harness() as harness:
        harness.ask()
        await harness.settle()
        await harness.arrive(peer.bare(0, 0, 0, b"x"))
        assert [type(each) for each in harness.results] == [Lost]
        assert harness.transport.sent.endswith(b"which is not open")
        assert harness.transport.is_closed


def objects_of_calls() -> Counter[str]:
    gc.collect()
    kinds = (OutgoingCall, StreamState, UnaryAnswer)
    return Counter(type(each).__name__ for each in gc.get_objects() if isinstance(each, kinds))


async def test_calls_that_have_ended_leave_nothing_behind() -> None:
    before = objects_of_calls()
    async with open_harness() as harness:
        for number in range(200):
            harness.ask()
            await harness.settle()
            await harness.arrive(answer(2 * number + 1, "word"))
        assert objects_of_calls() == before
