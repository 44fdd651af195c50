"""Calls to a backend over real gRPC in memory: what is sent, what comes back, how a call can end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import trio
import trio.testing
from grpclib import Status
from grpclib.exceptions import StreamTerminatedError

from gateway.backends import metadata as names
from gateway.backends.call_errors import NotProcessed, meaning
from gateway.backends.grpc.pool import open_connection_pool
from gateway.backends.grpc_backend import GrpcBackends
from gateway.backends.grpc_control import GrpcBackendControl
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.protocol import BackendNotReady, LoadFailed, Lost, Refused, RouteError, Stale, Target, Unreachable
from gateway.bridge import Bridge, open_bridge
from gateway.domain.errors import BackendFailed, BadRequest, GatewayError, Timeout
from gateway.domain.ids import Address, ModelName, ReplicaId, RequestId
from gateway.domain.inference import Completion, Delta, EmbeddingInput, FinishReason, Generation, Sampling
from tests.fakes.in_memory_backend import InMemoryBackend, ServerStream, open_in_memory
from tests.fakes.in_memory_transport import connect_in_memory

MODEL = ModelName("m")
TARGET = Target(ReplicaId("r1"), MODEL, Address("127.0.0.1:1"), "secret")
ASKED = Generation(MODEL, "hello", Sampling(max_tokens=5))
REQUEST = RequestId("req-1")


def unheard(_error: RouteError | GatewayError | None) -> None:
    """For calls whose end a test does not look at."""


@dataclass
class Harness:
    bridge: Bridge
    service: InMemoryBackend
    backends: GrpcBackends
    control: GrpcBackendControl

    async def collect(self) -> list[Delta | Completion]:
        items: list[Delta | Completion] = []
        async with self.backends.open_stream(TARGET, ASKED, REQUEST, unheard) as stream:
            while not items or not isinstance(items[-1], Completion):
                items.append(await stream.receive())
        return items


@asynccontextmanager
async def open_harness() -> AsyncIterator[Harness]:
    service = InMemoryBackend()
    async with (
        open_bridge() as bridge,
        open_in_memory(bridge, service) as channel,
        open_connection_pool(connect_in_memory(bridge, service)) as connections,
    ):
        yield Harness(bridge, service, GrpcBackends(connections), GrpcBackendControl(bridge, lambda _address: channel))


def replies(*messages: pb.Reply, finish: str | None = "stop") -> Any:
    async def answer(stream: ServerStream, request: Any) -> None:
        for message in messages:
            await stream.send_message(message)
        trailers = {names.FINISH_REASON: finish} if finish else {}
        await stream.send_trailing_metadata(metadata=trailers)

    return answer


def fails(status: Status, text: str = "", *, first: pb.Reply | None = None, **trailers: str) -> Any:
    async def answer(stream: ServerStream, request: Any) -> None:
        if first is not None:
            await stream.send_message(first)
        named = {name.replace("_", "-"): value for name, value in trailers.items()}
        await stream.send_trailing_metadata(status=status, status_message=text, metadata=named)

    return answer


async def test_a_stream_is_deltas_and_a_completion_with_true_counts() -> None:
    async with open_harness() as harness:
        harness.service.answer = replies(
            pb.Reply(message=b"hel", tokens=1, prompt_tokens=7),
            pb.Reply(message=b"lo", tokens=2, prompt_tokens=7),
            finish="length",
        )
        assert await harness.collect() == [
            Delta("hel", "", 7, 1),
            Delta("lo", "", 7, 2),
            Completion(FinishReason.LENGTH, 7, 2),
        ]


async def test_utf8_split_between_replies_arrives_whole() -> None:
    raw = "héllo 🙂".encode()
    async with open_harness() as harness:
        harness.service.answer = replies(*(pb.Reply(message=raw[i : i + 1]) for i in range(len(raw))))
        items = await harness.collect()
    assert "".join(item.text for item in items) == "héllo 🙂"


async def test_a_character_that_never_ends_is_replaced_in_the_completion() -> None:
    async with open_harness() as harness:
        harness.service.answer = replies(pb.Reply(message="é".encode()[:1]))
        items = await harness.collect()
    assert "".join(item.text for item in items) == "\ufffd"


async def test_reasoning_is_kept_apart() -> None:
    reply = pb.Reply(message=b"ignored", chat_deltas=[pb.ChatDelta(content="4", reasoning_content="2+2")])
    async with open_harness() as harness:
        harness.service.answer = replies(reply)
        assert (await harness.collect())[0] == Delta("4", "2+2")


async def test_what_is_sent() -> None:
    async with open_harness() as harness:
        harness.service.answer = replies(pb.Reply(message=b"x"))
        completion = await harness.backends.generate(TARGET, ASKED, REQUEST)
    [request], [metadata] = harness.service.requests, harness.service.metadata
    assert completion.text == "x"
    assert (request.Prompt, request.CorrelationId, request.ModelIdentity) == ("hello", "req-1", "m")
    assert request.Metadata[names.SAMPLING_KEY] == '{"max_tokens": 5}'
    assert metadata[names.AUTHORIZATION] == "Bearer secret"


async def test_a_backend_that_says_no_finish_reason_is_judged_by_its_count() -> None:
    async with open_harness() as harness:
        harness.service.answer = replies(pb.Reply(message=b"x", tokens=5), finish=None)
        assert (await harness.backends.generate(TARGET, ASKED, REQUEST)).finish_reason is FinishReason.LENGTH
        harness.service.answer = replies(pb.Reply(message=b"x", tokens=4), finish=None)
        assert (await harness.backends.generate(TARGET, ASKED, REQUEST)).finish_reason is FinishReason.STOP


async def test_an_embedding() -> None:
    async def answer(stream: ServerStream, request: pb.PredictOptions) -> None:
        await stream.send_message(pb.EmbeddingResult(embeddings=[0.5, 0.25], prompt_tokens=3))

    async with open_harness() as harness:
        harness.service.answer = answer
        found = await harness.backends.embed(TARGET, EmbeddingInput(MODEL, (1, 2)), REQUEST)
    assert found.vector == (0.5, 0.25)
    assert found.prompt_tokens == 3
    assert list(harness.service.requests[0].EmbeddingTokens) == [1, 2]


@pytest.mark.parametrize(
    ("answer", "kind", "text"),
    [
        (fails(Status.RESOURCE_EXHAUSTED, "full", x_gateway_refused="full"), Refused, "no free slot"),
        (fails(Status.UNAVAILABLE, "", x_gateway_refused="draining"), Refused, "draining"),
        (fails(Status.RESOURCE_EXHAUSTED, "message too large"), BackendFailed, "message too large"),
        (fails(Status.FAILED_PRECONDITION, "model not loaded"), Stale, "model not loaded"),
        (fails(Status.UNKNOWN, "boom: model not loaded"), Stale, "model not loaded"),
        (fails(Status.NOT_FOUND, "model identity mismatch: x"), Stale, "identity"),
        (fails(Status.NOT_FOUND, "no face found"), BackendFailed, "no face found"),
        (fails(Status.UNAUTHENTICATED, "invalid token"), Stale, "invalid token"),
        (fails(Status.UNAVAILABLE, "going away"), Lost, "going away"),
        (fails(Status.DEADLINE_EXCEEDED), Timeout, "in time"),
        (fails(Status.UNIMPLEMENTED, "Predict"), BadRequest, "does not support"),
        (fails(Status.INTERNAL, "CUDA error"), BackendFailed, "CUDA error"),
    ],
)
async def test_what_a_status_means(answer: Any, kind: type[Exception], text: str) -> None:
    async with open_harness() as harness:
        harness.service.answer = answer
        with pytest.raises(kind, match=text):
            await harness.backends.generate(TARGET, ASKED, REQUEST)
        with pytest.raises(kind, match=text):
            await harness.collect()


async def test_a_wrong_parameter_is_named() -> None:
    answer = fails(
        Status.INVALID_ARGUMENT,
        "max_tokens is 9",
        x_gateway_error_param="max_tokens",
        x_gateway_error_code="too_large",
    )
    async with open_harness() as harness:
        harness.service.answer = answer
        with pytest.raises(BadRequest) as caught:
            await harness.backends.generate(TARGET, ASKED, REQUEST)
    assert (caught.value.param, caught.value.code) == ("max_tokens", "too_large")


async def test_what_came_before_an_error_is_delivered_first() -> None:
    async with open_harness() as harness:
        harness.service.answer = fails(Status.INTERNAL, "boom", first=pb.Reply(message=b"hel"))
        async with harness.backends.open_stream(TARGET, ASKED, REQUEST, unheard) as stream:
            assert await stream.receive() == Delta("hel")
            with pytest.raises(BackendFailed, match="boom"):
                await stream.receive()
            with pytest.raises(BackendFailed, match="boom"):
                stream.receive_nowait()


async def test_leaving_a_stream_cancels_the_call() -> None:
    async def answer(stream: ServerStream, request: Any) -> None:
        await stream.send_message(pb.Reply(message=b"x"))
        await asyncio.Event().wait()

    async with open_harness() as harness:
        harness.service.answer = answer
        async with harness.backends.open_stream(TARGET, ASKED, REQUEST, unheard) as stream:
            await stream.receive()
            assert harness.service.running == 1
        with trio.fail_after(5):
            await harness.service.idle.wait()
        assert harness.service.cancelled == 1


async def test_a_cancel_reaches_a_unary_call(autojump_clock: trio.testing.MockClock) -> None:
    async def answer(stream: ServerStream, request: Any) -> None:
        await asyncio.Event().wait()

    async with open_harness() as harness:
        harness.service.answer = answer
        with trio.move_on_after(1) as scope:
            await harness.backends.generate(TARGET, ASKED, REQUEST)
        assert scope.cancelled_caught
        with trio.fail_after(5):
            await harness.service.idle.wait()


async def test_a_slow_reader_holds_its_backend_back() -> None:
    """Bounded buffers all the way: the backend can't send without end to somebody who does not read."""
    sent = 0

    async def answer(stream: ServerStream, request: Any) -> None:
        nonlocal sent
        for _ in range(100_000):
            await stream.send_message(pb.Reply(message=b"x" * 20_000))
            sent += 1

    async with open_harness() as harness:
        harness.service.answer = answer
        async with harness.backends.open_stream(TARGET, ASKED, REQUEST, unheard):
            before = -1
            while sent != before:  # until it stands still
                before = sent
                for _ in range(50):
                    await trio.lowlevel.checkpoint()
            assert 0 < sent < 100_000


@pytest.mark.parametrize("size", [1, 30_000])
async def test_a_call_ends_with_the_last_delta_however_little_was_read(size: int) -> None:
    """A short answer fits whole between the backend and a client that reads nothing."""
    asked = Generation(MODEL, "hello", Sampling(max_tokens=1000))
    ends, ended = list[RouteError | GatewayError | None](), trio.Event()

    def note_end(error: RouteError | GatewayError | None) -> None:
        ends.append(error)
        ended.set()

    async with open_harness() as harness:
        harness.service.answer = replies(*[pb.Reply(message=b"x" * size)] * (90_000 // (size + 100)))
        async with harness.backends.open_stream(TARGET, asked, REQUEST, note_end) as stream:
            with trio.fail_after(20):
                await ended.wait()
                items = [await stream.receive()]
                while not isinstance(items[-1], Completion):
                    items.append(await stream.receive())
    assert ends == [None]
    assert len("".join(item.text for item in items)) == size * (90_000 // (size + 100))


async def test_a_call_that_breaks_behind_its_first_delta_has_ended_before_that_is_read() -> None:
    ends, ended = list[RouteError | GatewayError | None](), trio.Event()

    def note_end(error: RouteError | GatewayError | None) -> None:
        ends.append(error)
        ended.set()

    async with open_harness() as harness:
        harness.service.answer = fails(Status.INTERNAL, "boom", first=pb.Reply(message=b"hel"))
        async with harness.backends.open_stream(TARGET, ASKED, REQUEST, note_end):
            with trio.fail_after(20):
                await ended.wait()
    assert [type(end) for end in ends] == [BackendFailed]


async def test_a_call_that_breaks_before_its_first_delta_is_its_readers_to_judge() -> None:
    ends = list[RouteError | GatewayError | None]()
    async with open_harness() as harness:
        harness.service.answer = fails(Status.RESOURCE_EXHAUSTED, "full", x_gateway_refused="full")
        async with harness.backends.open_stream(TARGET, ASKED, REQUEST, ends.append) as stream:
            with pytest.raises(Refused):
                await stream.receive()
    assert ends == []


async def test_a_refused_connection_is_unreachable() -> None:
    async def refuse(_address: Address) -> Any:
        raise ConnectionRefusedError(111, "Connection refused")

    async with open_connection_pool(refuse) as connections:
        backends = GrpcBackends(connections)
        with pytest.raises(Unreachable):
            await backends.generate(TARGET, ASKED, REQUEST)
        async with backends.open_stream(TARGET, ASKED, REQUEST, unheard) as stream:
            with pytest.raises(Unreachable):
                await stream.receive()


@pytest.mark.parametrize(("sent", "kind"), [(True, Lost), (False, Unreachable)])
@pytest.mark.parametrize("error", [StreamTerminatedError("Connection lost"), ConnectionResetError(104, "reset")])
def test_a_broken_connection_is_lost_only_once_the_request_was_sent(
    error: Exception, sent: bool, kind: type[Exception]
) -> None:
    assert type(meaning(error, {}, sent=sent)) is kind


@pytest.mark.parametrize("sent", [True, False])
def test_a_call_that_the_backend_has_not_begun_with_is_not_lost(sent: bool) -> None:
    assert type(meaning(NotProcessed("GOAWAY"), {}, sent=sent)) is Unreachable


async def test_unary_answers_without_a_message_are_an_error() -> None:
    async with open_harness() as harness:
        with pytest.raises(BackendFailed):
            await harness.backends.generate(TARGET, ASKED, REQUEST)


async def test_health() -> None:
    async with open_harness() as harness:
        harness.service.answer = replies(pb.Reply(message=b"OK"))
        await harness.control.health(TARGET.address, "t", 1)
    assert harness.service.metadata[0][names.AUTHORIZATION] == "Bearer t"


async def test_health_that_answers_something_else_is_not_ready() -> None:
    async with open_harness() as harness:
        harness.service.answer = replies(pb.Reply(message=b"LATER"))
        with pytest.raises(BackendNotReady, match="LATER"):
            await harness.control.health(TARGET.address, "t", 1)


async def test_l20_a_load_is_a_success_only_if_the_result_says_so() -> None:
    async def answer(stream: ServerStream, request: pb.ModelOptions) -> None:
        await stream.send_message(pb.Result(success=False, message="no such file"))

    async with open_harness() as harness:
        harness.service.answer = answer
        with pytest.raises(LoadFailed, match="no such file"):
            await harness.control.load_model(TARGET.address, "t", pb.ModelOptions(Model="m"), 1)


async def test_l8_a_load_that_takes_too_long_fails(autojump_clock: trio.testing.MockClock) -> None:
    async def answer(stream: ServerStream, request: pb.ModelOptions) -> None:
        await asyncio.Event().wait()

    async with open_harness() as harness:
        harness.service.answer = answer
        with pytest.raises(LoadFailed, match="within 30 s"):
            await harness.control.load_model(TARGET.address, "t", pb.ModelOptions(Model="m"), 30)


async def test_an_answer_beyond_its_end_is_cut_although_its_call_is_over_already() -> None:
    """All of it has arrived with the end of the call, so that there is nothing left to cancel."""
    ended = trio.Event()
    async with open_harness() as harness:
        harness.service.answer = replies(*[pb.Reply(message=b"x")] * 500)
        async with harness.backends.open_stream(TARGET, ASKED, REQUEST, lambda _error: ended.set()) as stream:
            with trio.fail_after(20):
                await ended.wait()
                last = await stream.receive()
                while not isinstance(last, Completion):
                    last = await stream.receive()
    assert last.finish_reason is FinishReason.LENGTH


async def test_an_endless_answer_is_cut_where_it_was_to_end_and_its_call_is_cancelled() -> None:
    async def answer(stream: ServerStream, _request: Any) -> None:
        while True:
            await stream.send_message(pb.Reply(message=b"x"))
            await asyncio.sleep(0)

    async with open_harness() as harness:
        harness.service.answer = answer
        with trio.fail_after(30):
            items = await harness.collect()
            await harness.service.idle.wait()
    last = items[-1]
    assert isinstance(last, Completion)
    assert (last.finish_reason, len(items) - 1) == (FinishReason.LENGTH, 5 + 64 + 1)
    assert harness.service.cancelled == 1


async def test_a_vector_that_holds_no_number_is_a_failed_backend() -> None:
    async with open_harness() as harness:
        harness.service.answer = replies_embedding(float("nan"))
        with pytest.raises(BackendFailed, match="NaN"):
            await harness.backends.embed(TARGET, EmbeddingInput(MODEL, "text"), REQUEST)


def replies_embedding(*vector: float) -> Any:
    async def answer(stream: ServerStream, _request: Any) -> None:
        await stream.send_message(pb.EmbeddingResult(embeddings=vector))

    return answer
