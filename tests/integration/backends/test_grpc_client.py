"""Inference calls over real sockets, to a server of grpclib's and to one of gRPC's C core: both have to agree."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio

from gateway.backends import metadata as names
from gateway.backends.grpc.pool import ConnectionPool, open_connection_pool
from gateway.backends.grpc.transport import Connect, connect
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.protocol import Refused, RouteError, Target, Unreachable
from gateway.bridge import open_bridge
from gateway.domain.errors import BackendFailed, BadRequest, GatewayError, Timeout
from gateway.domain.ids import Address, ModelName, ReplicaId, RequestId
from gateway.domain.inference import Completion, Delta, EmbeddingInput, FinishReason, Generation, Sampling
from tests.fakes.certificates import make_authority
from tests.fakes.grpc_servers import FLOATS, TEXT, OpenServer, Record, open_core_server, open_grpclib_server
from tests.fakes.ports import free_port

MODEL: Final = ModelName("m")
REQUEST: Final = RequestId("req-1")
SECONDS_MAX: Final = 60.0
"""For any test: a call that hangs is a failure."""


def unheard(_error: RouteError | GatewayError | None) -> None:
    """For calls whose end a test does not look at."""


@dataclass
class Harness:
    record: Record
    target: Target
    backends: GrpcBackends
    connections: ConnectionPool

    async def ask(self, prompt: str) -> Completion:
        return await self.backends.generate(self.target, generation(prompt), REQUEST)

    async def read(self, prompt: str) -> list[Delta | Completion]:
        items: list[Delta | Completion] = []
        async with self.backends.open_stream(self.target, generation(prompt), REQUEST, unheard) as stream:
            while not items or not isinstance(items[-1], Completion):
                items.append(await stream.receive())
        return items


def generation(prompt: str) -> Generation:
    return Generation(MODEL, prompt, Sampling(max_tokens=1_000_000))


OpenHarness = Callable[..., "partial[Harness]"]


@pytest.fixture(params=[open_grpclib_server, open_core_server], ids=["grpclib", "C core"])
def open_server(request: pytest.FixtureRequest) -> OpenServer:
    opens: OpenServer = request.param
    return opens


@asynccontextmanager
async def open_harness(
    open_server: OpenServer, *, connect: Connect = connect, **options: object
) -> AsyncIterator[Harness]:
    with trio.fail_after(SECONDS_MAX):
        async with (
            open_bridge() as bridge,
            open_server(bridge, **options) as server,
            open_connection_pool(connect) as connections,
        ):
            target = Target(ReplicaId("r1"), MODEL, server.address, "secret")
            yield Harness(server.record, target, GrpcBackends(connections), connections)


async def until(holds: Callable[[], bool]) -> None:
    """Of what another thread or library notes, which tell nobody."""
    while not holds():  # noqa: ASYNC110
        await trio.sleep(0.01)


async def test_unary_calls_and_streams_share_a_connection(open_server: OpenServer) -> None:
    async with open_harness(open_server) as harness:
        assert await harness.ask("say 3 2") == Completion(FinishReason.LENGTH, 7, 3, "xxxxxx")
        assert await harness.read("say 2 2") == [
            Delta("xx", "", 7, 1),
            Delta("xx", "", 7, 2),
            Completion(FinishReason.LENGTH, 7, 2),
        ]
        assert await harness.ask("hello") == Completion(FinishReason.LENGTH, 7, 1, "5")
        assert harness.connections.statistics().open == 1
        assert [each[names.AUTHORIZATION] for each in harness.record.metadata] == ["Bearer secret"] * 3


async def test_many_calls_at_once(open_server: OpenServer) -> None:
    async with open_harness(open_server) as harness:
        lengths: list[int] = []

        async def call(number: int) -> None:
            if number % 2:
                lengths.append(len((await harness.ask(f"say {number} 100")).text) // 100 - number)
            else:
                lengths.append(len(await harness.read(f"say {number} 100")) - 1 - number)

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(call, number)
        assert lengths == [0] * 200


@pytest.mark.parametrize(
    ("prompt", "kind", "text"),
    [
        ("refuse", Refused, "no free slot"),
        ("fail INTERNAL", BackendFailed, TEXT),
        ("fail INVALID_ARGUMENT", BadRequest, TEXT),
        ("fail DEADLINE_EXCEEDED", Timeout, "in time"),
    ],
)
async def test_a_status_and_its_trailers(
    open_server: OpenServer, prompt: str, kind: type[Exception], text: str
) -> None:
    async with open_harness(open_server) as harness:
        for call in (harness.ask, harness.read):
            with pytest.raises(kind) as caught:
                await call(prompt)
            assert text in str(caught.value)


@pytest.mark.parametrize("size", [65_530, 1_500_000, 12_000_000])
async def test_a_large_request_goes_under_the_windows_of_the_server(open_server: OpenServer, size: int) -> None:
    async with open_harness(open_server) as harness:
        answers: list[str] = []

        async def ask() -> None:
            answers.append((await harness.ask("x" * size)).text)

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask)
        assert answers == [str(size)] * 3


async def test_a_large_answer_needs_more_than_one_window(open_server: OpenServer) -> None:
    async with open_harness(open_server) as harness:
        found = await harness.backends.embed(harness.target, EmbeddingInput(MODEL, "text"), REQUEST)
        assert found.vector == (0.5,) * FLOATS
        assert len((await harness.ask("say 1 10000000")).text) == 10_000_000
        assert sum(len(each.text) for each in await harness.read("say 20 500000")) == 10_000_000


async def test_a_slow_reader_slows_its_own_backend_only(open_server: OpenServer) -> None:
    async with open_harness(open_server) as harness:
        slow = generation("say 2000 20000")
        async with harness.backends.open_stream(harness.target, slow, REQUEST, unheard) as stream:
            await stream.receive()
            await until(lambda: harness.record.sent > 0)
            for _ in range(20):
                assert len((await harness.ask("say 100 20000")).text) == 2_000_000
                assert len(await harness.read("say 50 20000")) == 51
            sent = harness.record.sent - 20 * 50
            assert sent < 100  # of 2,000: what the windows and the buffers on the way hold
            read = 1
            while not isinstance(await stream.receive(), Completion):
                read += 1
            assert read == 2_000


async def test_a_cancel_reaches_the_backend(open_server: OpenServer) -> None:
    async with open_harness(open_server) as harness:
        async with harness.backends.open_stream(harness.target, generation("hang"), REQUEST, unheard) as stream:
            assert await stream.receive() == Delta("first")
            assert harness.record.cancelled == 0
        await until(lambda: harness.record.cancelled == 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(harness.ask, "hang")
            await until(lambda: harness.record.open == 1)
            nursery.cancel_scope.cancel()
        await until(lambda: harness.record.cancelled == 2)
        assert (await harness.ask("hello")).text == "5"


async def test_a_unix_socket(open_server: OpenServer, tmp_path: Path) -> None:
    async with open_harness(open_server, path=str(tmp_path / "backend.sock")) as harness:
        assert (await harness.ask("hello")).text == "5"
        assert len(await harness.read("say 300 3000")) == 301


async def test_tls(open_server: OpenServer, tmp_path: Path) -> None:
    authority = make_authority(tmp_path)
    context = ssl.create_default_context(cafile=str(authority.cert))
    context.set_alpn_protocols(["h2"])
    secure = partial(connect, ssl_context=context)
    async with open_harness(open_server, connect=secure, certificate=authority.issue("localhost")) as harness:
        assert (await harness.ask("hello")).text == "5"
        assert (await harness.ask("x" * 500_000)).text == "500000"
        assert len(await harness.read("say 300 3000")) == 301
        other_host = replace(
            harness.target,
            replica_id=ReplicaId("r2"),
            address=Address(harness.target.address.replace("localhost", "127.0.0.1")),
        )
        with pytest.raises(Unreachable, match="TLS handshake"):
            await harness.backends.generate(other_host, generation("hello"), REQUEST)


async def test_nobody_listens_and_then_somebody_does(open_server: OpenServer) -> None:
    async with open_harness(open_server) as harness:
        nobody = replace(harness.target, address=Address(f"127.0.0.1:{free_port()}"))
        with pytest.raises(Unreachable):
            await harness.backends.generate(nobody, generation("hello"), REQUEST)
        async with harness.backends.open_stream(nobody, generation("hello"), REQUEST, unheard) as stream:
            with pytest.raises(Unreachable):
                await stream.receive()
        assert (await harness.ask("hello")).text == "5"  # the same replica at another address
