"""A real llama.cpp engine process and a plain asyncio client for it."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from grpclib import GRPCError
from grpclib.client import Channel
from grpclib.client import Stream as ClientStream
from grpclib.config import Configuration

from gateway.backends.metadata import SAMPLING_KEY, TOKEN_VARIABLE, bearer
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from tests.fakes.plain_asyncio import run_asyncio

IDENTITY: Final = "tiny"
EXIT_SECONDS_MAX: Final = 30.0
"""Only a hung engine takes that long."""


class EngineProcess:
    """`python -m gateway.engines.llama_cpp` on a free port; `stdin` is the pipe that says we live."""

    def __init__(self, *, token: str = "", stdin: int = subprocess.PIPE) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gateway.engines.llama_cpp", "--addr", "127.0.0.1:0"],
            stdin=stdin,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, TOKEN_VARIABLE: token},
        )
        self.log: list[str] = []
        self.port = self._wait_listening()
        # Whoever does not read the pipe stops the engine when the pipe is full.
        self._reader = threading.Thread(target=self._read_log)
        self._reader.start()

    def wait_exit(self) -> int:
        return self.process.wait(EXIT_SECONDS_MAX)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        for pipe in (self.process.stdin, self.process.stderr):
            if pipe is not None:
                pipe.close()

    def _wait_listening(self) -> int:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if "listening on " in line:
                return int(line.rsplit(":", 1)[1])
        raise AssertionError(f"the engine did not start: {self.log}")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(self.process.stderr)


@contextlib.contextmanager
def open_engine(*, token: str = "", stdin: int = subprocess.PIPE) -> Iterator[EngineProcess]:
    engine = EngineProcess(token=token, stdin=stdin)
    try:
        yield engine
    finally:
        engine.close()


T = TypeVar("T")


def run(engine: EngineProcess, function: Callable[["EngineClient"], Awaitable[T]], *, token: str = "") -> T:
    """Run `function` with a client of its own, on an event loop of its own."""

    async def main() -> T:
        with open_client(engine, token=token) as client:
            return await function(client)

    return run_asyncio(main())


@contextlib.contextmanager
def open_client(
    engine: EngineProcess, *, token: str = "", config: Configuration | None = None
) -> Iterator["EngineClient"]:
    client = EngineClient(engine.port, token=token, config=config)
    try:
        yield client
    finally:
        client.channel.close()


@dataclass
class Answer:
    """What came of one call: the replies until it ended, then its trailers and its error, if it had one."""

    replies: list[Any] = field(default_factory=list)
    trailers: Mapping[str, str] = field(default_factory=dict)
    error: GRPCError | None = None

    @property
    def text(self) -> str:
        """Decoded strictly and reply by reply: each holds whole characters."""
        return "".join(reply.message.decode() for reply in self.replies)


class EngineClient:
    """One channel to an engine."""

    def __init__(self, port: int, *, token: str = "", config: Configuration | None = None) -> None:
        self.channel = Channel("127.0.0.1", port, config=config)
        self.stub = BackendStub(self.channel)
        self._metadata = dict(bearer(token)) if token else None

    async def call(self, rpc: str, request: Message) -> Answer:
        async with self.open(rpc) as stream:
            await stream.send_message(request, end=True)
            return await finish(stream)

    @contextlib.asynccontextmanager
    async def open(self, rpc: str) -> AsyncIterator[ClientStream[Any, Any]]:
        """The raw call; leaving it early cancels it."""
        async with getattr(self.stub, rpc).open(metadata=self._metadata) as stream:
            try:
                yield stream
            finally:
                with contextlib.suppress(Exception):
                    await stream.cancel()

    async def load(self, file: Path, *, context_tokens: int = 1024, options: Sequence[str] = ()) -> pb.Result:
        request = pb.ModelOptions(
            Model=IDENTITY, ModelFile=str(file), ContextSize=context_tokens, Options=[*FAST, *options]
        )
        result: pb.Result = await self.stub.LoadModel(request, metadata=self._metadata)
        return result

    async def state(self) -> int:
        status = await self.stub.Status(pb.HealthMessage(), metadata=self._metadata)
        return int(status.state)


async def finish(stream: ClientStream[Any, Any]) -> Answer:
    """Read what is left of a call."""
    answer = Answer()
    try:
        while (reply := await stream.recv_message()) is not None:
            answer.replies.append(reply)
        await stream.recv_trailing_metadata()
    except GRPCError as error:
        answer.error = error
    answer.trailers = {key: str(value) for key, value in (stream.trailing_metadata or {}).items()}
    return answer


def prompt(text: str = "the river", sampling: Mapping[str, object] | None = None) -> pb.PredictOptions:
    """A raw prompt, with the sampling parameters as our gateway sends them."""
    return pb.PredictOptions(Prompt=text, Metadata={SAMPLING_KEY: json.dumps(sampling or {})})


def chat(text: str = "hello", sampling: Mapping[str, object] | None = None) -> pb.PredictOptions:
    options = prompt("", sampling)
    options.UseTokenizerTemplate = True
    options.Messages.add(role="user", content=text)
    return options


FAST: Final = ("threads:1", "flash_attention:off")
"""For a model as tiny as ours, on cores that other tests use too. The latter also makes answers repeat exactly."""
NARROW: Final = Configuration(http2_connection_window_size=65_535, http2_stream_window_size=65_535)
"""For a client that stops an engine's stream by not reading it: about 2,600 replies fit into its window."""
ENDLESS: Final[Mapping[str, object]] = {"temperature": 0, "ignore_eos": True}
"""Sampling of an answer that goes on until the context is full."""


async def wait_state(client: EngineClient, state: int) -> None:
    """Each round is a call and an answer; nothing sleeps."""
    while await client.state() != state:
        pass
