"""A real backend program whose behaviour is scripted: `python -m tests.fakes.scripted_backend --addr HOST:PORT`.

Environment: SCRIPT is a JSON object of `Script`'s fields; SCRIPT_LOG names a file to which each event is appended as
one JSON line (`{"event": "LoadModel", "pid": 1, ...}`), whatever process writes it; LOCALAI_GRPC_AUTH_TOKEN is asked
of every caller. As our own engine it ends at the end of its stdin pipe and drains on SIGTERM, unless told otherwise.
"""

import argparse
import asyncio
import hashlib
import hmac
import json
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from grpclib import GRPCError, Status
from grpclib.const import Cardinality, Handler
from grpclib.events import RecvRequest, listen
from grpclib.server import Server, Stream

from gateway.backends import metadata as names
from gateway.backends.pb import backend_pb2 as pb

VECTOR_LENGTH: Final = 8
CARDINALITIES: Final = {(kind.client_streaming, kind.server_streaming): kind for kind in Cardinality}
FLOOD_BYTES: Final = 64 * 1024
GATE_LOOK_SECONDS: Final = 0.01
STUCK_SECONDS: Final = 0.5
LINGER_SECONDS: Final = 0.2
"""As our engine does."""
ServerStream: TypeAlias = Stream[Any, Any]


@dataclass(frozen=True)
class Script:
    """What to do when. Times are seconds; None: not at all."""

    stderr: str = ""
    """Printed at the start."""
    stderr_repeat: int = 1
    """As many times: a flood, when large."""
    farewell: str = ""
    """Printed at the end, after a drain."""
    farewell_repeat: int = 1
    exit_at_start: int | None = None
    listen_delay: float = 0.0
    """Before anything listens at the address."""
    health_delay: float = 0.0
    health_answer: str = "OK"
    grandchild: bool = False
    """Starts a process that sleeps; its pid is in the `grandchild` event."""
    ignore_term: bool = False
    ignore_stdin: bool = False

    gate: str = ""
    """A file that a test makes when what is held may go on: no test has to guess how long an answer will take."""
    hold_load: bool = False
    """LoadModel waits for the gate."""
    hold_after_tokens: int | None = None
    """An answer that has more tokens to come waits for the gate there; a shorter one passes."""
    endless: bool = False
    """An answer ends at the gate, whole, if its tokens do not end before."""

    load_delay: float = 0.0
    load_fails: str | None = None
    """Message of a Result without success, under a gRPC status of OK (L20)."""
    load_error: str | None = None
    """Message of a gRPC error instead."""
    load_exits: int | None = None
    """Exit code of the process, in the middle of LoadModel."""
    load_takes_bytes: int = 0
    """Memory that it takes at the beginning of LoadModel, for good."""
    ready_takes_bytes: int = 0
    """The same, once the gate is there."""

    tokens: int = 3
    token_interval: float = 0.0
    first_token_delay: float = 0.0
    prompt_tokens: int = 5
    finish_reason: str | None = "stop"
    """None: no trailer, as foreign backends."""
    split_utf8: bool = False
    """Two-byte letters that arrive in two messages."""
    echo: bool = False
    """Each token names the request that it is part of the answer to."""
    flood: bool = False
    """Each token is 64 KiB long."""
    die_after_tokens: int | None = None
    """SIGKILL to itself."""
    error_after_tokens: int | None = None
    """A gRPC INTERNAL error."""
    hang_after_tokens: int | None = None
    """Silence for ever."""
    ignore_cancel: bool = False
    """Goes on with an answer that nobody reads; its slot stays taken."""

    slots: int | None = None
    """Calls at a time; more are refused with the trailer `full`."""
    refuse: str | None = None
    """Every call is refused with this trailer value."""
    refuse_first: int = 0
    """As many calls are refused as `full`, whatever is free."""
    identity: str | None = None
    """Name of the model that it takes itself to have loaded; None: what LoadModel said."""
    check_loaded: bool = False
    """FAILED_PRECONDITION before LoadModel."""


class EventLog:
    """Appends one line per event in one write, so that lines of several processes do not mix."""

    def __init__(self, path: str | None) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600) if path else None

    def write(self, event: str, **fields: object) -> None:
        if self._file is not None:
            os.write(self._file, (json.dumps({"event": event, "pid": os.getpid(), **fields}) + "\n").encode())


class ScriptedBackend:
    """Health, LoadModel, Predict, PredictStream, Embedding and Free; the rest is UNIMPLEMENTED."""

    def __init__(self, script: Script, log: EventLog) -> None:
        self._script = script
        self._log = log
        self._loaded: str | None = None
        self._taken: list[bytes] = []
        self._later: asyncio.Task[None] | None = None
        self._open = 0
        self._calls = 0
        self._draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    def __mapping__(self) -> dict[str, Handler]:
        methods = {
            "Health": self.health,
            "LoadModel": self.load_model,
            "Predict": self.predict,
            "PredictStream": self.predict_stream,
            "Embedding": self.embedding,
            "Free": self.free,
        }
        return {
            # grpclib's own answer to an unknown method lacks a header and arrives as another error
            f"/backend.Backend/{method.name}": Handler(
                methods.get(method.name, unimplemented),
                CARDINALITIES[method.client_streaming, method.server_streaming],
                getattr(pb, method.input_type.name),
                getattr(pb, method.output_type.name),
            )
            for method in pb.DESCRIPTOR.services_by_name["Backend"].methods
        }

    async def drain(self) -> None:
        """Refuses new calls from now on; returns when the open ones have ended."""
        self._draining = True
        self._log.write("drain", open=self._open)
        await self._idle.wait()

    async def health(self, stream: ServerStream) -> None:
        await stream.recv_message()
        await asyncio.sleep(self._script.health_delay)
        await stream.send_message(pb.Reply(message=self._script.health_answer.encode()))

    async def load_model(self, stream: ServerStream) -> None:
        options: pb.ModelOptions = await request_of(stream)
        self._log.write("LoadModel", model=options.Model, file=options.ModelFile, options=list(options.Options))
        self._take(self._script.load_takes_bytes)
        await asyncio.sleep(self._script.load_delay)
        if self._script.hold_load:
            await self._gate_is_there()
        if self._script.load_exits is not None:
            os._exit(self._script.load_exits)
        if self._script.load_error is not None:
            raise GRPCError(Status.INTERNAL, self._script.load_error)
        if self._script.load_fails is None:
            self._loaded = options.Model
        await stream.send_message(
            pb.Result(success=self._script.load_fails is None, message=self._script.load_fails or "")
        )
        if self._script.ready_takes_bytes:
            self._later = asyncio.create_task(self._take_later())

    def _take(self, amount_bytes: int) -> None:
        self._taken.append(b"x" * amount_bytes)

    async def _take_later(self) -> None:
        await self._gate_is_there()
        self._take(self._script.ready_takes_bytes)

    async def _gate_is_there(self) -> None:
        while not self._is_open():  # noqa: ASYNC110 - another process makes the file
            await asyncio.sleep(GATE_LOOK_SECONDS)

    def _is_open(self) -> bool:
        return Path(self._script.gate).exists()

    async def free(self, stream: ServerStream) -> None:
        await stream.recv_message()
        self._log.write("Free")
        self._loaded = None
        await stream.send_message(pb.Result(success=True))

    async def predict(self, stream: ServerStream) -> None:
        async with self._serving(stream, "Predict") as options:
            text, last = b"", pb.Reply()
            async for last in self._answer(options):
                text += last.message
            await stream.send_message(
                pb.Reply(message=text, tokens=last.tokens, prompt_tokens=self._script.prompt_tokens)
            )

    async def predict_stream(self, stream: ServerStream) -> None:
        async with self._serving(stream, "PredictStream") as options:
            async for reply in self._answer(options):
                await self._send(stream, reply)

    async def _send(self, stream: ServerStream, reply: pb.Reply) -> None:
        """Notes when the reader has taken nothing for a while, and all buffers on the way to it are full."""
        note = partial(self._log.write, "stuck")
        timer = asyncio.get_running_loop().call_later(STUCK_SECONDS, note)
        try:
            await stream.send_message(reply)
        finally:
            timer.cancel()

    async def embedding(self, stream: ServerStream) -> None:
        async with self._serving(stream, "Embedding") as options:
            text = options.Embeddings or repr(list(options.EmbeddingTokens))
            await asyncio.sleep(self._script.first_token_delay)
            await stream.send_message(
                pb.EmbeddingResult(embeddings=vector_of(text), dim=VECTOR_LENGTH, prompt_tokens=len(text.split()))
            )

    @asynccontextmanager
    async def _serving(self, stream: ServerStream, method: str) -> AsyncIterator[pb.PredictOptions]:
        """One call that takes a slot, from its check to its end. Raises `GRPCError`, with the trailer on refusals."""
        options: pb.PredictOptions = await request_of(stream)
        self._calls += 1
        fields = {"model": options.ModelIdentity, "prompt": options.Prompt, "correlation_id": options.CorrelationId}
        why = self._why_refused()
        self._log.write(method, messages=len(options.Messages), refused=why, **fields)
        if why is not None:
            await stream.send_trailing_metadata(
                status=Status.RESOURCE_EXHAUSTED, status_message=f"refused: {why}", metadata={names.REFUSED: why}
            )
            raise _AnsweredError
        self._check_model(options)
        self._open += 1
        self._idle.clear()
        try:
            yield options
            await stream.send_trailing_metadata(metadata=self._trailers(method, options))
        except asyncio.CancelledError:
            self._log.write("cancelled", method=method)
            if self._script.ignore_cancel:
                await asyncio.sleep(self._script.token_interval * self._script.tokens)
            raise
        finally:
            self._open -= 1
            if not self._open:
                self._idle.set()
            self._log.write("end", method=method, open=self._open)

    def _why_refused(self) -> str | None:
        if self._draining:
            return names.REFUSED_DRAINING
        if self._script.refuse is not None:
            return self._script.refuse
        full = self._script.slots is not None and self._open >= self._script.slots
        return names.REFUSED_FULL if full or self._calls <= self._script.refuse_first else None

    def _check_model(self, options: pb.PredictOptions) -> None:
        mine = self._script.identity or self._loaded
        if self._script.check_loaded and mine is None:
            raise GRPCError(Status.FAILED_PRECONDITION, names.NOT_LOADED)
        if mine is not None and options.ModelIdentity and options.ModelIdentity != mine:
            raise GRPCError(
                Status.NOT_FOUND, f"{names.IDENTITY_MISMATCH}: {mine!r} is loaded, not {options.ModelIdentity!r}"
            )

    async def _answer(self, options: pb.PredictOptions) -> AsyncIterator[pb.Reply]:
        await asyncio.sleep(self._script.first_token_delay)
        for index in range(self._token_count(options)):
            if index and self._script.endless and self._is_open():
                break
            if index == self._script.hold_after_tokens:
                await self._gate_is_there()
            await self._misbehave(index)
            if index:
                await asyncio.sleep(self._script.token_interval)
            for part in self._parts(index, options):
                yield pb.Reply(message=part, tokens=index + 1, prompt_tokens=self._script.prompt_tokens)
        await self._misbehave(self._token_count(options))

    def _token_count(self, options: pb.PredictOptions) -> int:
        return min(self._script.tokens, options.Tokens) if options.Tokens > 0 else self._script.tokens

    def _parts(self, index: int, options: pb.PredictOptions) -> list[bytes]:
        if self._script.split_utf8:
            letter = "é".encode()
            return [letter[:1], letter[1:]]
        name = options.CorrelationId if self._script.echo else "tok"
        return [f"{name}{index} ".encode().ljust(FLOOD_BYTES if self._script.flood else 0, b".")]

    async def _misbehave(self, tokens_sent: int) -> None:
        if tokens_sent == self._script.die_after_tokens:
            await asyncio.sleep(0.05)  # what was sent leaves the process before it dies
            os.kill(os.getpid(), signal.SIGKILL)
        if tokens_sent == self._script.error_after_tokens:
            raise GRPCError(Status.INTERNAL, f"scripted error after {tokens_sent} tokens")
        if tokens_sent == self._script.hang_after_tokens:
            await asyncio.Event().wait()

    def _trailers(self, method: str, options: pb.PredictOptions) -> dict[str, str]:
        if self._script.finish_reason is None or method == "Embedding":
            return {}
        cut = self._token_count(options) < self._script.tokens
        return {names.FINISH_REASON: "length" if cut else self._script.finish_reason}


async def unimplemented(stream: ServerStream) -> None:
    raise GRPCError(Status.UNIMPLEMENTED, "not scripted")


async def request_of(stream: ServerStream) -> Any:
    message = await stream.recv_message()
    assert message is not None
    return message


class _AnsweredError(GRPCError):
    """Leaves a handler whose trailers are sent already; grpclib sends nothing after them."""

    def __init__(self) -> None:
        super().__init__(Status.RESOURCE_EXHAUSTED)


def vector_of(text: str) -> list[float]:
    """A deterministic vector of a text: eight numbers from -1 to 1."""
    return [byte / 127.5 - 1 for byte in hashlib.sha256(text.encode()).digest()[:VECTOR_LENGTH]]


def ask_for_token(server: Server, token: str) -> None:
    async def check(request: RecvRequest) -> None:
        given = str(request.metadata.get(names.AUTHORIZATION, ""))
        if not hmac.compare_digest(given, f"Bearer {token}"):
            raise GRPCError(Status.UNAUTHENTICATED, "wrong or missing token")

    listen(server, RecvRequest, check)


def end_with_stdin() -> None:
    """In a thread of its own, as the loop may be busy. Only for a pipe: a terminal or /dev/null means nothing."""

    def wait_for_end() -> None:
        while os.read(0, 4096):
            pass
        os._exit(0)

    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=wait_for_end, daemon=True).start()


def say(line: str, times: int) -> None:
    for _ in range(times):
        sys.stderr.write(line + "\n")


async def serve(script: Script, address: str, log: EventLog) -> None:
    host, _, port = address.rpartition(":")
    backend = ScriptedBackend(script, log)
    server = Server([backend])
    if token := os.environ.get(names.TOKEN_VARIABLE):
        ask_for_token(server, token)
    terminated = asyncio.Event()
    on_term: Callable[[], object] = (lambda: None) if script.ignore_term else terminated.set
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, on_term)
    await asyncio.sleep(script.listen_delay)
    await server.start(host.strip("[]"), int(port))
    log.write("listening", address=address)
    await terminated.wait()
    await backend.drain()
    await asyncio.sleep(LINGER_SECONDS)
    server.close()
    if script.farewell:
        say(script.farewell, script.farewell_repeat)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--addr", required=True)
    address = parser.parse_args().addr
    script = Script(**json.loads(os.environ.get("SCRIPT", "{}")))
    log = EventLog(os.environ.get("SCRIPT_LOG"))
    log.write("start", address=address)
    if script.stderr:
        say(script.stderr, script.stderr_repeat)
    if script.exit_at_start is not None:
        sys.exit(script.exit_at_start)
    if script.grandchild:
        log.write("grandchild", child=subprocess.Popen(["sleep", "600"]).pid)
    if not script.ignore_stdin:
        end_with_stdin()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve(script, address, log))


if __name__ == "__main__":
    main()
