"""A warm call costs the RPC and nothing else: the router starts no task and never waits for anything of its own."""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trio

from gateway.backends import metadata as names
from gateway.backends.grpc.pool import open_connection_pool
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.protocol import Target
from gateway.bridge import open_bridge
from gateway.domain.ids import Address, ReplicaId
from gateway.domain.inference import Completion, EmbeddingInput
from gateway.routing.router import Router
from tests.fakes.fleet import MODEL, replica
from tests.fakes.in_memory_backend import InMemoryBackend, ServerStream
from tests.fakes.in_memory_transport import connect_in_memory
from tests.fakes.routing_harness import ORIGIN, RoutingHarness, generation

A = ReplicaId("a")
TARGET = Target(A, MODEL, Address("127.0.0.1:1"), "t-a")
TEXT = EmbeddingInput(MODEL, "text")


@dataclass(eq=False)
class Spawned(trio.abc.Instrument):
    """Names of the tasks that are started."""

    names: Counter[str] = field(default_factory=Counter)

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.names[task.name] += 1

    async def during(self, call: Callable[[], Awaitable[object]]) -> Counter[str]:
        self.names.clear()
        trio.lowlevel.add_instrument(self)
        try:
            await call()
        finally:
            trio.lowlevel.remove_instrument(self)
        return Counter(self.names)


@dataclass
class Harness:
    routing: RoutingHarness
    backends: GrpcBackends
    """What the router calls, to be called without it."""
    router: Router

    async def stream_through_router(self) -> None:
        async with self.router.open_stream(generation(), ORIGIN) as stream:
            while not isinstance((await stream.receive_batch())[-1], Completion):
                pass

    async def stream_directly(self) -> None:
        async with self.backends.open_stream(TARGET, generation(), ORIGIN.request_id, lambda _error: None) as stream:
            while not isinstance(await stream.receive(), Completion):
                pass

    def pairs(self) -> dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], Awaitable[object]]]]:
        """Each call through the router, and the same without it."""
        router, direct = self.router, self.backends
        return {
            "generate": (
                lambda: router.generate(generation(), ORIGIN),
                lambda: direct.generate(TARGET, generation(), ORIGIN.request_id),
            ),
            "embed": (lambda: router.embed(TEXT, ORIGIN), lambda: direct.embed(TARGET, TEXT, ORIGIN.request_id)),
            "stream": (self.stream_through_router, self.stream_directly),
        }


async def answer(stream: ServerStream, request: pb.PredictOptions) -> None:
    if request.Embeddings:
        await stream.send_message(pb.EmbeddingResult(embeddings=[1.0], prompt_tokens=1))
        return
    await stream.send_message(pb.Reply(message=b"hello", tokens=1, prompt_tokens=1))
    await stream.send_trailing_metadata(metadata={names.FINISH_REASON: "stop"})


@asynccontextmanager
async def open_harness() -> AsyncIterator[Harness]:
    routing, service = RoutingHarness(replica(A)), InMemoryBackend()
    service.answer = answer
    async with open_bridge() as bridge, open_connection_pool(connect_in_memory(bridge, service)) as connections:
        backends = GrpcBackends(connections)
        router = Router(routing.admission, backends, routing.probes, attempts=3, token_of=lambda _replica: "t")
        yield Harness(routing, backends, router)


@pytest.mark.parametrize("kind", ["generate", "embed", "stream"])
async def test_a_warm_call_starts_no_task_besides_those_of_its_rpc(kind: str) -> None:
    async with open_harness() as harness:
        through_router, direct = harness.pairs()[kind]
        await through_router()  # the first one probes
        spawned = Spawned()
        assert await spawned.during(through_router) == await spawned.during(direct)
        assert harness.routing.probe.asked == [A]


async def test_a_cold_call_starts_the_one_task_of_its_probe() -> None:
    async with open_harness() as harness:
        through_router, direct = harness.pairs()["generate"]
        await direct()  # the first one connects
        spawned = Spawned()
        added = await spawned.during(through_router) - await spawned.during(direct)
        assert [name.rpartition(".")[2] for name in added.elements()] == ["_run_probe"]


async def test_a_warm_request_has_its_replica_without_a_checkpoint() -> None:
    harness, called = RoutingHarness(replica(A)), list[bool]()
    harness.probes.record_alive(A)
    with trio.CancelScope() as scope:
        harness.backends.on_call = lambda _target: called.append(scope.cancel_called)
        scope.cancel()  # any checkpoint before the call would raise
        await harness.generate()
    assert called == [True]
