"""Slots of the engine: refused when full, free again within milliseconds when a call is abandoned."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from grpclib.const import Status

from gateway.backends.metadata import REFUSED, REFUSED_FULL
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.model import Model
from gateway.engines.llama_cpp.options import load_options
from gateway.engines.llama_cpp.requests import generation_request
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.engine_process import (
    ENDLESS,
    NARROW,
    Answer,
    EngineClient,
    EngineProcess,
    finish,
    open_client,
    open_engine,
    prompt,
    run,
    wait_state,
)

PARALLEL = 2
CONTEXT_TOKENS = 16_384
LATE_TOKENS = 4_000
"""More than fits into a client's narrow window and the engine's own buffer."""
ATTEMPTS_MAX = 2_000
"""Each is a call and an answer; a slot that is not free after so many never will be."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "tiny.gguf"
    write_tiny_model(path)
    return path


@pytest.fixture(scope="module")
def engine(model: Path) -> Iterator[EngineProcess]:
    with open_engine() as engine:

        async def load(client: EngineClient) -> None:
            result = await client.load(model, context_tokens=CONTEXT_TOKENS, options=[f"parallel:{PARALLEL}"])
            assert result.success, result.message

        run(engine, load)
        yield engine


@contextlib.asynccontextmanager
async def open_held(engine: EngineProcess) -> AsyncIterator[None]:
    """A stream that has begun and that nobody reads: it stops at the engine's bounds, so it can't end."""
    with open_client(engine, config=NARROW) as holder:
        async with open_endless(holder):
            yield


@contextlib.asynccontextmanager
async def open_endless(client: EngineClient) -> AsyncIterator[None]:
    """A stream that has begun and would go on for long; raises AssertionError when it is refused."""
    async with client.open("PredictStream") as stream:
        await stream.send_message(prompt("a", ENDLESS), end=True)
        assert await stream.recv_message() is not None
        yield


async def assert_every_slot_is_free(client: EngineClient) -> None:
    for _ in range(ATTEMPTS_MAX):
        answers = await asyncio.gather(*(begin(client) for _ in range(PARALLEL)))
        if all(answers):
            return
    raise AssertionError("a slot is lost")


async def begin(client: EngineClient) -> bool:
    """Whether a call was accepted beside its siblings; each waits for the others by generating for a while."""
    answer = await client.call("Predict", prompt("a", {**ENDLESS, "max_tokens": 100}))
    return answer.error is None


def test_all_slots_taken_is_a_refusal_that_says_so(engine: EngineProcess) -> None:
    async def main(client: EngineClient) -> list[Answer]:
        async with open_held(engine), open_held(engine):
            assert await client.state() == pb.StatusResponse.BUSY
            health = await client.call("Health", pb.HealthMessage())
            assert health.replies == [pb.Reply(message=b"OK")]
            refused = [await client.call(rpc, prompt()) for rpc in ("Predict", "PredictStream")]
            return [*refused, await client.call("Embedding", pb.PredictOptions(Embeddings="a"))]

    for answer in run(engine, main):
        assert answer.replies == []
        assert answer.error is not None
        assert answer.error.status is Status.RESOURCE_EXHAUSTED
        assert answer.trailers[REFUSED] == REFUSED_FULL


def test_who_sees_the_end_of_a_call_can_make_the_next_at_once(engine: EngineProcess) -> None:
    """One slot is held, so each call needs the very slot that the one before it had."""

    async def main(client: EngineClient) -> None:
        async with open_held(engine):
            for _ in range(50):
                answer = await client.call("Predict", prompt("a", {"max_tokens": 1}))
                assert answer.error is None

    run(engine, main)


def test_a_cancelled_stream_frees_its_slot(engine: EngineProcess) -> None:
    async def main(client: EngineClient) -> None:
        async with open_held(engine):
            async with open_endless(client):
                assert await client.state() == pb.StatusResponse.BUSY
            await wait_state(client, pb.StatusResponse.READY)
            async with open_endless(client):
                assert await client.state() == pb.StatusResponse.BUSY

    run(engine, main)


def test_a_cancelled_unary_call_frees_its_slot(engine: EngineProcess) -> None:
    async def main(client: EngineClient) -> None:
        async with open_held(engine):
            async with client.open("Predict") as unary:
                await unary.send_message(prompt("a", ENDLESS), end=True)
                await wait_state(client, pb.StatusResponse.BUSY)
            await wait_state(client, pb.StatusResponse.READY)

    run(engine, main)


def test_a_client_that_vanishes_frees_its_slots(engine: EngineProcess) -> None:
    async def main(client: EngineClient) -> None:
        with open_client(engine) as doomed:
            for _ in range(PARALLEL):
                stream = await doomed.stub.PredictStream.open().__aenter__()
                await stream.send_message(prompt("a", ENDLESS), end=True)
                assert await stream.recv_message() is not None
            assert await client.state() == pb.StatusResponse.BUSY
        await assert_every_slot_is_free(client)

    run(engine, main)


def test_a_cancelled_prefill_frees_its_slot(engine: EngineProcess) -> None:
    """Nobody waits for the first token of a call that nobody wants any more."""

    async def main(client: EngineClient) -> None:
        async with open_held(engine):
            async with client.open("PredictStream") as stream:
                await stream.send_message(prompt("river " * (CONTEXT_TOKENS - 100), ENDLESS), end=True)
                await wait_state(client, pb.StatusResponse.BUSY)
            await wait_state(client, pb.StatusResponse.READY)

    run(engine, main)


def test_a_prefill_stops_between_two_batches(model: Path) -> None:
    """In this process, to see how far llama.cpp got."""
    loaded = Model(
        load_options(pb.ModelOptions(ModelFile=str(model), ContextSize=4096, Options=["batch:64", "threads:1"]))
    )
    seen: list[dict[str, Any]] = []

    def sink(raw: Any) -> bool:
        seen.append(raw)
        return bool(raw.get("prompt_progress", {}).get("processed"))

    loaded.generate(generation_request(prompt("river " * 4000), loaded.limits), sink)
    progress = seen[-1]["prompt_progress"]
    assert progress["processed"] == 64
    assert progress["total"] > 4000
    loaded.unload()


def test_two_hundred_random_cancels_lose_no_slot(engine: EngineProcess) -> None:
    rng = random.Random(20)

    async def abandon(client: EngineClient) -> None:
        async with client.open("PredictStream") as stream:
            await stream.send_message(prompt("a " * rng.randrange(300), {**ENDLESS, "max_tokens": 50}), end=True)
            for _ in range(rng.randrange(6)):
                if await stream.recv_message() is None:
                    break

    async def abandon_many(client: EngineClient) -> None:
        for _ in range(50):
            with contextlib.suppress(Exception):
                await asyncio.wait_for(abandon(client), rng.choice([None, 0.001, 0.01]))

    async def main(client: EngineClient) -> None:
        await asyncio.gather(*(abandon_many(client) for _ in range(4)))
        await assert_every_slot_is_free(client)
        answer = await client.call("Predict", prompt("a", {"max_tokens": 3}))
        assert answer.replies[0].tokens == 3

    run(engine, main)


def test_a_stream_that_is_read_late_is_whole(engine: EngineProcess) -> None:
    """The engine stops at its bounds while nobody reads, and goes on."""

    async def main(client: EngineClient) -> tuple[Answer, Answer]:
        request = prompt("a", {**ENDLESS, "max_tokens": LATE_TOKENS})
        with open_client(engine, config=NARROW) as late:
            async with late.open("PredictStream") as stream:
                await stream.send_message(request, end=True)
                other = await client.call("Predict", request)
                return await finish(stream), other

    late, other = run(engine, main)
    assert late.text == other.text
    assert late.replies[-1].tokens == LATE_TOKENS
