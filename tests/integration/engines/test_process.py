"""The engine as a process: loading and unloading, tokens, signals, and the death of its parent."""

import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpclib import GRPCError
from grpclib.client import UnaryUnaryMethod
from grpclib.const import Status

from gateway.backends.metadata import FINISH_REASON, MESSAGE_BYTES_MAX, NOT_LOADED, REFUSED, REFUSED_DRAINING
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.server import CONCURRENT_STREAMS_MAX
from gateway.engines.llama_cpp.tiny_model import write_tiny_model
from tests.fakes.engine_process import (
    ENDLESS,
    IDENTITY,
    NARROW,
    EngineClient,
    EngineProcess,
    finish,
    open_client,
    open_engine,
    prompt,
    run,
)

HELD_TOKENS = 3_500
"""More than fits into a client's narrow window: such a stream can't end before it is read."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("engine") / "tiny.gguf"
    write_tiny_model(path)
    return path


@contextlib.asynccontextmanager
async def open_held_stream(engine: EngineProcess, client: EngineClient, model: Path) -> AsyncIterator[Any]:
    """Load the model with one slot and open a stream that stays open until somebody reads it."""
    result = await client.load(model, context_tokens=2 * HELD_TOKENS, options=["parallel:1"])
    assert result.success, result.message
    with open_client(engine, config=NARROW) as holder:
        async with holder.open("PredictStream") as stream:
            await stream.send_message(prompt("a", {**ENDLESS, "max_tokens": HELD_TOKENS}), end=True)
            assert await stream.recv_message() is not None
            yield stream


async def wait_draining(client: EngineClient) -> None:
    """The only slot is taken, so a call is refused either way; with which word says what the engine knows."""
    while True:
        answer = await client.call("Predict", prompt())
        if answer.trailers[REFUSED] == REFUSED_DRAINING:
            assert answer.error is not None
            assert answer.error.status is Status.UNAVAILABLE
            return


def test_without_a_model_it_is_healthy_and_refuses_the_rest() -> None:
    async def main(client: EngineClient) -> None:
        health = await client.call("Health", pb.HealthMessage())
        assert health.replies == [pb.Reply(message=b"OK")]
        assert await client.state() == pb.StatusResponse.UNINITIALIZED
        for rpc in ("Predict", "PredictStream", "Embedding", "TokenizeString"):
            answer = await client.call(rpc, prompt())
            assert answer.error is not None
            assert (answer.error.status, answer.error.message) == (Status.FAILED_PRECONDITION, NOT_LOADED)

    with open_engine() as engine:
        run(engine, main)


def test_a_model_that_does_not_load_says_why_and_the_next_one_does(model: Path, tmp_path: Path) -> None:
    garbage, cut = tmp_path / "garbage.gguf", tmp_path / "cut.gguf"
    garbage.write_bytes(b"127.0.0.1 localhost")
    cut.write_bytes(model.read_bytes()[:100_000])
    missing = tmp_path / "missing.gguf"

    async def main(client: EngineClient) -> None:
        for file, cause in ((garbage, "not a GGUF file"), (missing, "No such file"), (cut, "llama.cpp can't load")):
            result = await client.load(file)
            assert not result.success
            assert cause in result.message
            assert str(file) in result.message
        result = await client.load(model, options=["speed:11"])
        assert not result.success
        assert "unknown option 'speed'" in result.message
        assert await client.state() == pb.StatusResponse.UNINITIALIZED
        assert (await client.load(model)).success
        assert await client.state() == pb.StatusResponse.READY

    with open_engine() as engine:
        run(engine, main)


def test_loading_again_changes_nothing_and_freeing_makes_room(model: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    write_tiny_model(other, seed=8)

    async def greedy(client: EngineClient) -> str:
        return (await client.call("Predict", prompt("a", {**ENDLESS, "max_tokens": 10}))).text

    async def main(client: EngineClient) -> None:
        assert (await client.load(model)).success
        before = await greedy(client)
        assert (await client.load(model)).success
        refused = await client.load(other)
        assert not refused.success
        assert "already loaded" in refused.message
        assert await greedy(client) == before

        freed = await client.call("Free", pb.HealthMessage())
        assert freed.replies[0].success
        assert await client.state() == pb.StatusResponse.UNINITIALIZED
        assert (await client.load(other)).success
        assert await greedy(client) != before

    with open_engine() as engine:
        run(engine, main)


def test_embeddings_can_be_left_out(model: Path) -> None:
    async def main(client: EngineClient) -> None:
        assert (await client.load(model, options=["embeddings:false"])).success
        answer = await client.call("Embedding", pb.PredictOptions(Embeddings="a"))
        assert answer.error is not None
        assert answer.error.status is Status.INVALID_ARGUMENT
        assert (await client.call("Predict", prompt("a", {"max_tokens": 1}))).error is None

    with open_engine() as engine:
        run(engine, main)


@pytest.mark.parametrize("token", ["", "wrong", "right "])
def test_h5_a_wrong_token_opens_nothing_and_the_right_one_everything(token: str) -> None:
    async def health(client: EngineClient) -> Any:
        return await client.call("Health", pb.HealthMessage())

    with open_engine(token="right") as engine:
        refused = run(engine, health, token=token)
        assert refused.error.status is Status.UNAUTHENTICATED
        assert "right" not in refused.error.message
        assert run(engine, health, token="right").replies == [pb.Reply(message=b"OK")]


def test_engine_limits(model: Path) -> None:
    """Bounds that grpclib does not have, or has too low: they reach into it, so they are looked at from outside."""

    async def main(client: EngineClient) -> None:
        assert (await client.load(model)).success
        assert client.channel._protocol is not None
        settings = client.channel._protocol.connection._connection.remote_settings
        assert settings.max_concurrent_streams == CONCURRENT_STREAMS_MAX
        too_large = await client.call("Predict", prompt("a" * MESSAGE_BYTES_MAX))
        assert too_large.error is not None
        assert too_large.error.status is Status.RESOURCE_EXHAUSTED
        assert REFUSED not in too_large.trailers
        predict = UnaryUnaryMethod(client.channel, "/backend.Backend/Predict", pb.Reply, pb.Reply)
        with pytest.raises(GRPCError) as caught:
            await predict(pb.Reply(message=b"\xff"))
        assert caught.value.status is Status.INVALID_ARGUMENT

    with open_engine() as engine:
        run(engine, main)


def test_w11_a_drain_lets_the_open_stream_finish_and_refuses_the_rest(model: Path) -> None:
    async def main(client: EngineClient) -> None:
        async with open_held_stream(engine, client, model) as stream:
            engine.process.send_signal(signal.SIGTERM)
            await wait_draining(client)
            health = await client.call("Health", pb.HealthMessage())
            assert health.replies == [pb.Reply(message=b"OK")]
            load = await client.call("LoadModel", pb.ModelOptions(Model=IDENTITY, ModelFile=str(model)))
            assert load.trailers[REFUSED] == REFUSED_DRAINING
            answer = await finish(stream)
        assert answer.error is None
        assert answer.replies[-1].tokens == HELD_TOKENS
        assert answer.trailers[FINISH_REASON] == "length"

    with open_engine() as engine:
        run(engine, main)
        assert engine.wait_exit() == 0


def test_a_second_term_ends_at_once(model: Path) -> None:
    async def main(client: EngineClient) -> None:
        async with open_held_stream(engine, client, model):
            engine.process.send_signal(signal.SIGTERM)
            await wait_draining(client)
            engine.process.send_signal(signal.SIGTERM)
            assert engine.wait_exit() == 128 + signal.SIGTERM

    with open_engine() as engine:
        run(engine, main)


def test_an_interrupt_ends_at_once(model: Path) -> None:
    async def main(client: EngineClient) -> None:
        async with open_held_stream(engine, client, model):
            engine.process.send_signal(signal.SIGINT)
            assert engine.wait_exit() == 128 + signal.SIGINT

    with open_engine() as engine:
        run(engine, main)


def test_h13_the_end_of_its_parent_is_its_own(model: Path) -> None:
    async def main(client: EngineClient) -> None:
        async with open_held_stream(engine, client, model):
            assert engine.process.stdin is not None
            engine.process.stdin.close()
            assert engine.wait_exit() == 3

    with open_engine() as engine:
        run(engine, main)


def test_started_by_hand_it_watches_nobody() -> None:
    """/dev/null is at its end from the start, and yet the engine serves until it is told to stop."""

    async def main(client: EngineClient) -> None:
        health = await client.call("Health", pb.HealthMessage())
        assert health.error is None

    with open_engine(stdin=subprocess.DEVNULL) as engine:
        run(engine, main)
        engine.process.send_signal(signal.SIGTERM)
        assert engine.wait_exit() == os.EX_OK
        assert [line for line in engine.log if "listening on 127.0.0.1:" in line] == engine.log
