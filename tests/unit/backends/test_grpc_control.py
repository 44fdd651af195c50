"""What a worker asks of a backend that it is about to end: Free, which never stands in the way (W8)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from grpclib import GRPCError, Status
from grpclib.client import Channel
from trio.testing import MockClock

from gateway.backends import metadata as names
from gateway.backends.grpc_control import GrpcBackendControl
from gateway.backends.pb import backend_pb2 as pb
from gateway.bridge import open_bridge
from gateway.domain.ids import Address
from tests.fakes.in_memory_backend import Answer, InMemoryBackend, ServerStream, open_in_memory

ADDRESS = Address("127.0.0.1:1")
FREE_SECONDS = 5.0


@asynccontextmanager
async def open_control(backend: InMemoryBackend) -> AsyncIterator[GrpcBackendControl]:
    async with open_bridge() as bridge, open_in_memory(bridge, backend) as channel:
        yield GrpcBackendControl(bridge, lambda _address: channel)


def result(*, success: bool) -> Answer:
    async def answer(stream: ServerStream, request: Any) -> None:
        await stream.send_message(pb.Result(success=success))

    return answer


async def unimplemented(stream: ServerStream, request: Any) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, "Method not implemented!")


async def nothing(stream: ServerStream, request: Any) -> None:
    """An answer without a message, which no proper server gives."""


async def never(stream: ServerStream, request: Any) -> None:
    await asyncio.Event().wait()


async def test_w8_free_is_asked_with_the_token() -> None:
    backend = InMemoryBackend()
    backend.answer = result(success=True)
    async with open_control(backend) as control:
        await control.free(ADDRESS, "secret", FREE_SECONDS)
    assert backend.requests == [pb.HealthMessage()]
    assert backend.metadata[0][names.AUTHORIZATION] == "Bearer secret"


@pytest.mark.parametrize("answer", [result(success=False), unimplemented, nothing])
async def test_w8_free_that_fails_raises_nothing(answer: Answer) -> None:
    backend = InMemoryBackend()
    backend.answer = answer
    async with open_control(backend) as control:
        await control.free(ADDRESS, "secret", FREE_SECONDS)
    assert len(backend.requests) == 1


async def test_w8_free_that_blocks_is_left_after_its_time(autojump_clock: MockClock) -> None:
    backend = InMemoryBackend()
    backend.answer = never
    async with open_control(backend) as control:
        asked_at = trio.current_time()
        await control.free(ADDRESS, "secret", FREE_SECONDS)
        assert trio.current_time() - asked_at == pytest.approx(FREE_SECONDS)


async def test_w8_free_of_a_backend_that_is_gone_raises_nothing() -> None:
    def refuse(address: Address) -> Channel:
        raise ConnectionRefusedError(address)

    async with open_bridge() as bridge:
        await GrpcBackendControl(bridge, refuse).free(ADDRESS, "secret", FREE_SECONDS)


async def test_w8_free_can_be_cancelled(autojump_clock: MockClock) -> None:
    backend = InMemoryBackend()
    backend.answer = never
    async with open_control(backend) as control:
        with trio.move_on_after(1.0) as scope:
            await control.free(ADDRESS, "secret", FREE_SECONDS)
        assert scope.cancelled_caught
