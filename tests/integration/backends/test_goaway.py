"""A backend that says that it will end (GOAWAY) finishes what it has: nothing of that is cut, and what is new moves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import pytest
from grpclib.client import Channel
from grpclib.exceptions import StreamTerminatedError
from h2.errors import ErrorCodes

from gateway.backends.call_errors import NotProcessed
from gateway.backends.dial import dial
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.domain.ids import Address
from tests.fakes.raw_h2_backend import ANY_STREAM, RawBackend, RawConnection, open_raw_backend

SECONDS_MAX: Final = 20.0
"""For any test: a call that hangs is a failure."""


@dataclass
class Harness:
    backend: RawBackend
    channel: Channel

    async def call(self) -> list[str]:
        """The words of one whole answer."""
        async with BackendStub(self.channel).PredictStream.open() as stream:
            await stream.send_message(pb.PredictOptions(), end=True)
            return [reply.message.decode() async for reply in stream]

    async def begin(self, connection: int = 0, calls: int = 1) -> tuple[RawConnection, "asyncio.Task[list[str]]", int]:
        """A call that is the connection's `calls`th, and its stream, once its request has arrived."""
        task = asyncio.create_task(self.call())
        raw = await self.backend.connection(connection)
        await raw.wait(lambda: len(raw.calls) >= calls)
        return raw, task, raw.calls[calls - 1]


@asynccontextmanager
async def open_harness(streams_max: int | None = None) -> AsyncIterator[Harness]:
    async with open_raw_backend(streams_max=streams_max) as backend:
        channel = dial(Address(f"127.0.0.1:{backend.port}"))
        try:
            yield Harness(backend, channel)
        finally:
            channel.close()


def run(scene: Callable[[Harness], Awaitable[None]], streams_max: int | None = None) -> None:
    async def main() -> None:
        async with asyncio.timeout(SECONDS_MAX), open_harness(streams_max) as harness:
            await scene(harness)

    asyncio.run(main())


def test_r13_a_call_outlives_both_goaways_and_the_ping_between_them() -> None:
    async def scene(harness: Harness) -> None:
        raw, call, stream = await harness.begin()
        raw.begin(stream)
        raw.say(stream, "one")
        raw.go_away(ANY_STREAM)
        raw.ping()
        raw.flush()
        await raw.wait(lambda: raw.pings_answered == 1)
        second, moved, its_stream = await harness.begin(connection=1)
        raw.say(stream, "two")
        raw.go_away(stream)
        raw.say(stream, "three")
        raw.flush()
        raw.end(stream)
        raw.flush()
        assert await call == ["one", "two", "three"]
        await raw.wait(lambda: raw.is_closed)  # nobody keeps a connection that takes nothing
        second.begin(its_stream)
        second.say(its_stream, "elsewhere")
        second.end(its_stream)
        second.flush()
        assert await moved == ["elsewhere"]
        assert raw.calls == [stream]

    run(scene)


def test_r13_a_backend_may_hang_up_with_its_last_word() -> None:
    async def scene(harness: Harness) -> None:
        raw, call, stream = await harness.begin()
        raw.go_away(stream)
        raw.begin(stream)
        raw.say(stream, "all")
        raw.end(stream)
        raw.flush()
        raw.hang_up()
        assert await call == ["all"]

    run(scene)


def test_a_call_above_the_last_stream_was_not_begun_with() -> None:
    async def scene(harness: Harness) -> None:
        raw, kept, first = await harness.begin()
        _, dropped, _ = await harness.begin(calls=2)
        raw.go_away(first)
        raw.flush()
        with pytest.raises(NotProcessed):
            await dropped
        raw.begin(first)
        raw.say(first, "kept")
        raw.end(first)
        raw.flush()
        assert await kept == ["kept"]

    run(scene)


def test_a_call_that_waits_for_its_turn_does_not_wait_for_ever() -> None:
    async def scene(harness: Harness) -> None:
        raw, kept, stream = await harness.begin()
        waits = asyncio.create_task(harness.call())
        await until(lambda: harness.channel._calls_started == 2)
        raw.go_away(stream)
        raw.begin(stream)
        raw.flush()
        with pytest.raises(NotProcessed):
            await waits
        raw.end(stream)
        raw.flush()
        assert await kept == []
        assert raw.calls == [stream]

    run(scene, streams_max=1)


def test_a_refused_stream_was_not_begun_with() -> None:
    async def scene(harness: Harness) -> None:
        raw, call, stream = await harness.begin()
        raw.refuse(stream)
        raw.flush()
        with pytest.raises(NotProcessed):
            await call

    run(scene)


def test_m7_a_goaway_with_an_error_is_the_end() -> None:
    async def scene(harness: Harness) -> None:
        raw, call, stream = await harness.begin()
        raw.begin(stream)
        raw.say(stream, "one")
        raw.go_away(stream, ErrorCodes.ENHANCE_YOUR_CALM)
        raw.flush()
        with pytest.raises(StreamTerminatedError) as failed:
            await call
        assert not isinstance(failed.value, NotProcessed)
        await raw.wait(lambda: raw.is_closed)

    run(scene)


def test_m7_a_backend_that_breaks_off_after_its_goaway_has_lost_the_call() -> None:
    async def scene(harness: Harness) -> None:
        raw, call, stream = await harness.begin()
        raw.go_away(stream)
        raw.begin(stream)
        raw.say(stream, "one")
        raw.flush()
        raw.hang_up()
        with pytest.raises(StreamTerminatedError) as failed:
            await call
        assert not isinstance(failed.value, NotProcessed)

    run(scene)


def test_a_new_call_finds_out_that_nobody_listens_any_more() -> None:
    async def scene(harness: Harness) -> None:
        raw, kept, stream = await harness.begin()
        harness.backend.stop_listening()
        raw.go_away(stream)
        raw.begin(stream)
        raw.ping()
        raw.flush()
        await raw.wait(lambda: raw.pings_answered == 1)
        with pytest.raises(ConnectionRefusedError):
            await harness.call()
        raw.end(stream)
        raw.flush()
        assert await kept == []

    run(scene)


def test_an_idle_connection_that_is_left_is_closed() -> None:
    async def scene(harness: Harness) -> None:
        raw, call, stream = await harness.begin()
        raw.begin(stream)
        raw.end(stream)
        raw.flush()
        assert await call == []
        raw.go_away(stream)
        raw.flush()
        await raw.wait(lambda: raw.is_closed)
        second, following, its_stream = await harness.begin(connection=1)
        second.begin(its_stream)
        second.end(its_stream)
        second.flush()
        assert await following == []

    run(scene)


def test_closing_the_channel_ends_what_goes_on_where_it_was_left() -> None:
    async def scene(harness: Harness) -> None:
        raw, left, stream = await harness.begin()
        raw.go_away(stream)
        raw.flush()
        await until(lambda: harness.channel._protocol.handler.connection_lost)  # type: ignore[union-attr]
        second, moved, _ = await harness.begin(connection=1)
        harness.channel.close()
        for call in (left, moved):
            with pytest.raises(StreamTerminatedError):
                await call
        for each in (raw, second):
            await each.wait(lambda each=each: each.is_closed)  # type: ignore[misc]

    run(scene)


async def until(holds: Callable[[], bool]) -> None:
    """Of grpclib's insides, which tell nobody."""
    while not holds():  # noqa: ASYNC110
        await asyncio.sleep(0.01)
