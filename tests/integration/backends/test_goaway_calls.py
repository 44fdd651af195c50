"""A backend that says that it will end (GOAWAY) finishes what it has: nothing of that is cut, and what is new moves.

The scenes are those of `test_goaway`, for the connections of inference calls.
"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes

from gateway.backends.grpc.pool import ConnectionPool, open_connection_pool
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.protocol import Lost, RouteError, Target, Unreachable
from gateway.bridge import Bridge, open_bridge
from gateway.domain.errors import GatewayError
from gateway.domain.ids import Address, ModelName, ReplicaId, RequestId
from gateway.domain.inference import Completion, Generation, Sampling
from tests.fakes.raw_h2_backend import ANY_STREAM, RawBackend, RawConnection

SECONDS_MAX: Final = 20.0
"""For any test: a call that hangs is a failure."""
ASKED: Final = Generation(ModelName("m"), "hello", Sampling())


def unheard(_error: RouteError | GatewayError | None) -> None:
    """For calls whose end a test does not look at."""


@dataclass
class Outcome:
    """Of one call."""

    words: list[str] = field(default_factory=list)
    error: Exception | None = None
    ended: trio.Event = field(default_factory=trio.Event)

    async def wait(self) -> list[str]:
        await self.ended.wait()
        if self.error is not None:
            raise self.error
        return self.words


@dataclass
class Harness:
    bridge: Bridge
    backend: RawBackend
    connections: ConnectionPool
    nursery: trio.Nursery

    def call(self) -> Outcome:
        outcome = Outcome()
        self.nursery.start_soon(self._run, outcome)
        return outcome

    async def _run(self, outcome: Outcome) -> None:
        address = Address(f"127.0.0.1:{self.backend.port}")
        target = Target(ReplicaId("r1"), ModelName("m"), address, "secret")
        try:
            async with GrpcBackends(self.connections).open_stream(target, ASKED, RequestId("r"), unheard) as stream:
                while not isinstance(item := await stream.receive(), Completion):
                    outcome.words.append(item.text)
        except (RouteError, GatewayError) as error:
            outcome.error = error
        outcome.ended.set()

    async def begin(self, connection: int = 0, calls: int = 1) -> tuple[RawConnection, Outcome, int]:
        """A call that is the connection's `calls`th, and its stream, once its request has arrived."""
        outcome = self.call()
        raw = await self.bridge.run(self.backend.connection, connection)
        await self.wait(raw, lambda: len(raw.calls) >= calls)
        return raw, outcome, raw.calls[calls - 1]

    async def wait(self, raw: RawConnection, condition: Callable[[], bool]) -> None:
        await self.bridge.run(raw.wait, condition)


@asynccontextmanager
async def open_harness(streams_max: int | None = None) -> AsyncIterator[Harness]:
    with trio.fail_after(SECONDS_MAX):
        async with open_bridge() as bridge:
            backend = RawBackend(streams_max)
            await bridge.run(backend.start)
            async with open_connection_pool() as connections, trio.open_nursery() as nursery:
                yield Harness(bridge, backend, connections, nursery)
                nursery.cancel_scope.cancel()
            backend.stop_listening()
            for connection in backend.connections:
                connection.hang_up()


async def test_r13_a_call_outlives_both_goaways_and_the_ping_between_them() -> None:
    async with open_harness() as harness:
        raw, call, stream = await harness.begin()
        raw.begin(stream)
        raw.say(stream, "one")
        raw.go_away(ANY_STREAM)
        raw.ping()
        raw.flush()
        await harness.wait(raw, lambda: raw.pings_answered == 1)
        second, moved, its_stream = await harness.begin(connection=1)
        raw.say(stream, "two")
        raw.go_away(stream)
        raw.say(stream, "three")
        raw.flush()
        raw.end(stream)
        raw.flush()
        assert await call.wait() == ["one", "two", "three"]
        await harness.wait(raw, lambda: raw.is_closed)  # nobody keeps a connection that takes nothing
        second.begin(its_stream)
        second.say(its_stream, "elsewhere")
        second.end(its_stream)
        second.flush()
        assert await moved.wait() == ["elsewhere"]
        assert raw.calls == [stream]


async def test_r13_a_backend_may_hang_up_with_its_last_word() -> None:
    async with open_harness() as harness:
        raw, call, stream = await harness.begin()
        raw.go_away(stream)
        raw.begin(stream)
        raw.say(stream, "all")
        raw.end(stream)
        raw.flush()
        raw.hang_up()
        assert await call.wait() == ["all"]


async def test_a_call_above_the_last_stream_was_not_begun_with() -> None:
    async with open_harness() as harness:
        raw, kept, first = await harness.begin()
        _, dropped, _ = await harness.begin(calls=2)
        raw.go_away(first)
        raw.flush()
        with pytest.raises(Unreachable):
            await dropped.wait()
        raw.begin(first)
        raw.say(first, "kept")
        raw.end(first)
        raw.flush()
        assert await kept.wait() == ["kept"]


async def test_a_call_that_waits_for_its_turn_does_not_wait_for_ever() -> None:
    async with open_harness(streams_max=1) as harness:
        raw, kept, stream = await harness.begin()
        waits = harness.call()
        await trio.testing.wait_all_tasks_blocked()
        raw.go_away(stream)
        raw.begin(stream)
        raw.flush()
        with pytest.raises(Unreachable):
            await waits.wait()
        raw.end(stream)
        raw.flush()
        assert await kept.wait() == []
        assert raw.calls == [stream]


async def test_a_call_begins_when_another_one_has_ended() -> None:
    async with open_harness(streams_max=1) as harness:
        raw, first, _ = await harness.begin()
        waiting = [harness.call() for _ in range(3)]
        await trio.testing.wait_all_tasks_blocked()
        for number, call in enumerate((first, *waiting)):
            await harness.wait(raw, lambda number=number: len(raw.calls) == number + 1)  # type: ignore[misc]
            raw.begin(raw.calls[number])
            raw.end(raw.calls[number])
            raw.flush()
            if call is first:
                await call.wait()
        assert [await call.wait() for call in waiting] == [[], [], []]
        assert len(harness.backend.connections) == 1


async def test_a_refused_stream_was_not_begun_with() -> None:
    async with open_harness() as harness:
        raw, call, stream = await harness.begin()
        raw.refuse(stream)
        raw.flush()
        with pytest.raises(Unreachable):
            await call.wait()


async def test_m7_a_goaway_with_an_error_is_the_end() -> None:
    async with open_harness() as harness:
        raw, call, stream = await harness.begin()
        raw.begin(stream)
        raw.say(stream, "one")
        raw.go_away(stream, ErrorCodes.ENHANCE_YOUR_CALM)
        raw.flush()
        with pytest.raises(Lost):
            await call.wait()
        assert call.words == ["one"]
        await harness.wait(raw, lambda: raw.is_closed)


async def test_m7_a_backend_that_breaks_off_after_its_goaway_has_lost_the_call() -> None:
    async with open_harness() as harness:
        raw, call, stream = await harness.begin()
        raw.go_away(stream)
        raw.begin(stream)
        raw.say(stream, "one")
        raw.flush()
        raw.hang_up()
        with pytest.raises(Lost):
            await call.wait()


async def test_a_new_call_finds_out_that_nobody_listens_any_more() -> None:
    async with open_harness() as harness:
        raw, kept, stream = await harness.begin()
        harness.backend.stop_listening()
        raw.go_away(stream)
        raw.begin(stream)
        raw.ping()
        raw.flush()
        await harness.wait(raw, lambda: raw.pings_answered == 1)
        with pytest.raises(Unreachable):
            await harness.call().wait()
        raw.end(stream)
        raw.flush()
        assert await kept.wait() == []


async def test_an_idle_connection_that_is_left_is_closed() -> None:
    async with open_harness() as harness:
        raw, call, stream = await harness.begin()
        raw.begin(stream)
        raw.end(stream)
        raw.flush()
        assert await call.wait() == []
        raw.go_away(stream)
        raw.flush()
        await harness.wait(raw, lambda: raw.is_closed)
        second, following, its_stream = await harness.begin(connection=1)
        second.begin(its_stream)
        second.end(its_stream)
        second.flush()
        assert await following.wait() == []


async def test_closing_the_pool_ends_what_goes_on_where_it_was_left() -> None:
    async with open_harness() as harness:
        raw, left, stream = await harness.begin()
        raw.begin(stream)
        raw.go_away(stream)
        raw.ping()
        raw.flush()
        await harness.wait(raw, lambda: raw.pings_answered == 1)
        second, moved, _ = await harness.begin(connection=1)
        harness.connections.close()
        for call in (left, moved):
            with pytest.raises(Lost):
                await call.wait()
        for each in (raw, second):
            await harness.wait(each, lambda each=each: each.is_closed)  # type: ignore[misc]
        assert harness.connections.statistics().open == 0


async def test_a_replica_that_is_gone_loses_also_the_connection_that_it_leaves() -> None:
    async with open_harness() as harness:
        raw, left, stream = await harness.begin()
        raw.begin(stream)
        raw.go_away(stream)
        raw.ping()
        raw.flush()
        await harness.wait(raw, lambda: raw.pings_answered == 1)
        second, moved, _ = await harness.begin(connection=1)
        second.hang_up()
        with pytest.raises(Lost):
            await moved.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert harness.connections.statistics().open == 0  # the other one goes on
        harness.connections.keep_only(())
        with pytest.raises(Lost):
            await left.wait()


async def test_a_replica_that_is_gone_from_the_fleet_loses_its_connection_and_no_other() -> None:
    async with open_harness() as harness:
        raw, call, stream = await harness.begin()
        raw.begin(stream)
        raw.flush()
        harness.connections.keep_only({ReplicaId("r1")})
        raw.say(stream, "still")
        raw.end(stream)
        raw.flush()
        assert await call.wait() == ["still"]
        harness.connections.keep_only({ReplicaId("r2")})
        await harness.wait(raw, lambda: raw.is_closed)
