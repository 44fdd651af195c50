"""Two servers of backend.proto that do what the prompt says: grpclib's, and that of gRPC's C core.

| prompt          | answer                                                                  |
|-----------------|-------------------------------------------------------------------------|
| `say N SIZE`    | N replies of SIZE bytes; of a unary call one reply with all of it       |
| `fail CODE`     | the status, with a text that is not ASCII                               |
| `refuse`        | as a full backend of ours does it                                       |
| `hang`          | one reply of a stream, then nothing until the call is cancelled         |
| anything else   | the size of the prompt                                                  |
"""

import asyncio
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent import futures
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import grpc
from grpclib import Status
from grpclib.const import Cardinality, Handler
from grpclib.server import Server, Stream

from gateway.backends import metadata as names
from gateway.backends.pb import backend_pb2 as pb
from gateway.bridge import Bridge
from gateway.domain.ids import Address

KeyPair = tuple[Path, Path]
"""Certificate and key."""

TEXT: Final = "schlägt fehl: 100 % 🙂"
FLOATS: Final = 1_000_000


@dataclass
class Record:
    """What a server has seen, from any thread."""

    metadata: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    cancelled: int = 0
    open: int = 0
    """Calls that hang now."""


@dataclass(frozen=True)
class RunningServer:
    address: Address
    record: Record


OpenServer = Callable[..., AbstractAsyncContextManager[RunningServer]]


def replies(prompt: str) -> Iterator[pb.Reply]:
    _, number, size = prompt.split()
    for index in range(int(number)):
        yield pb.Reply(message=b"x" * int(size), tokens=index + 1, prompt_tokens=7)


def joined(prompt: str) -> pb.Reply:
    if not prompt.startswith("say"):
        return pb.Reply(message=str(len(prompt)).encode(), tokens=1, prompt_tokens=7)
    said = list(replies(prompt))
    return pb.Reply(message=b"".join(each.message for each in said), tokens=len(said), prompt_tokens=7)


class GrpclibService:
    def __init__(self, record: Record) -> None:
        self._record = record

    async def _serve(self, stream: "Stream[Any, Any]", kind: str) -> None:
        request: Any = await stream.recv_message()
        self._record.metadata.append({key: str(value) for key, value in (stream.metadata or {}).items()})
        command = request.Prompt.partition(" ")[0]
        trailers = {names.FINISH_REASON: "length"}
        if command == "fail":
            status = Status[request.Prompt.split()[1]]
            await stream.send_trailing_metadata(status=status, status_message=TEXT)
            return
        if command == "refuse":
            await stream.send_trailing_metadata(
                status=Status.RESOURCE_EXHAUSTED, status_message="full", metadata={names.REFUSED: "full"}
            )
            return
        if command == "hang":
            await self._hang(stream, kind)
        if kind == "embedding":
            await stream.send_message(pb.EmbeddingResult(embeddings=[0.5] * FLOATS))
        elif kind == "stream":
            for reply in replies(request.Prompt):
                await stream.send_message(reply)
                self._record.sent += 1
        else:
            await stream.send_message(joined(request.Prompt))
        await stream.send_trailing_metadata(metadata=trailers)

    async def _hang(self, stream: "Stream[Any, Any]", kind: str) -> None:
        if kind == "stream":
            await stream.send_message(pb.Reply(message=b"first"))
        self._record.open += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self._record.open -= 1
            self._record.cancelled += 1
            raise

    def __mapping__(self) -> dict[str, Handler]:
        async def predict(stream: "Stream[Any, Any]") -> None:
            await self._serve(stream, "unary")

        async def predict_stream(stream: "Stream[Any, Any]") -> None:
            await self._serve(stream, "stream")

        async def embedding(stream: "Stream[Any, Any]") -> None:
            await self._serve(stream, "embedding")

        unary, streamed = Cardinality.UNARY_UNARY, Cardinality.UNARY_STREAM
        return {
            "/backend.Backend/Predict": Handler(predict, unary, pb.PredictOptions, pb.Reply),
            "/backend.Backend/PredictStream": Handler(predict_stream, streamed, pb.PredictOptions, pb.Reply),
            "/backend.Backend/Embedding": Handler(embedding, unary, pb.PredictOptions, pb.EmbeddingResult),
        }


@asynccontextmanager
async def open_grpclib_server(
    bridge: Bridge, *, path: str | None = None, certificate: KeyPair | None = None
) -> AsyncIterator[RunningServer]:
    record = Record()
    made: list[Server] = []

    async def start_aio() -> int:
        made.append(Server([GrpclibService(record)]))
        if path is not None:
            await made[0].start(path=path)
            return 0
        await made[0].start("127.0.0.1", 0, ssl=_context(certificate))
        return int(made[0]._server.sockets[0].getsockname()[1])  # type: ignore[union-attr]

    async def stop_aio() -> None:
        made[0].close()
        await made[0].wait_closed()

    port = await bridge.run(start_aio)
    try:
        yield RunningServer(_address(port, path), record)
    finally:
        await bridge.run(stop_aio)


def _context(certificate: KeyPair | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    context.set_alpn_protocols(["h2"])
    return context


def _address(port: int, path: str | None) -> Address:
    return Address(f"unix:{path}" if path is not None else f"localhost:{port}")


class CoreService:
    """Each call has a thread of its own."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def predict(self, request: pb.PredictOptions, context: Any) -> pb.Reply:
        self._begin(request, context)
        return joined(request.Prompt)

    def embedding(self, request: pb.PredictOptions, context: Any) -> pb.EmbeddingResult:
        self._begin(request, context)
        return pb.EmbeddingResult(embeddings=[0.5] * FLOATS)

    def predict_stream(self, request: pb.PredictOptions, context: Any) -> Iterator[pb.Reply]:
        if request.Prompt == "hang":
            ended = self._watch(context)
            yield pb.Reply(message=b"first")
            ended.wait()
            return
        self._begin(request, context)
        for reply in replies(request.Prompt):
            yield reply
            self._record.sent += 1

    def _watch(self, context: Any) -> threading.Event:
        """Set once the call is cancelled."""
        ended = threading.Event()

        def note() -> None:
            self._record.open -= 1
            self._record.cancelled += 1
            ended.set()

        self._record.open += 1
        context.add_callback(note)
        return ended

    def _begin(self, request: pb.PredictOptions, context: Any) -> None:
        self._record.metadata.append(dict(context.invocation_metadata()))
        match request.Prompt.split():
            case ["fail", name]:
                context.abort(grpc.StatusCode[name], TEXT)
            case ["refuse"]:
                context.set_trailing_metadata(((names.REFUSED, "full"),))
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full")
            case ["hang"]:
                self._watch(context).wait()
                context.abort(grpc.StatusCode.CANCELLED, "cancelled")
        context.set_trailing_metadata(((names.FINISH_REASON, "length"),))


@asynccontextmanager
async def open_core_server(
    _bridge: Bridge, *, path: str | None = None, certificate: KeyPair | None = None
) -> AsyncIterator[RunningServer]:
    record = Record()
    service = CoreService(record)
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.so_reuseport", 0)]
    server = grpc.server(futures.ThreadPoolExecutor(250), options=options)
    reads = {"request_deserializer": pb.PredictOptions.FromString}
    unary, streamed = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
    handlers = {
        "Predict": unary(service.predict, response_serializer=pb.Reply.SerializeToString, **reads),
        "PredictStream": streamed(service.predict_stream, response_serializer=pb.Reply.SerializeToString, **reads),
        "Embedding": unary(service.embedding, response_serializer=pb.EmbeddingResult.SerializeToString, **reads),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("backend.Backend", handlers),))
    where = f"unix:{path}" if path is not None else "127.0.0.1:0"  # a free port of IPv6 may be taken there
    port = server.add_insecure_port(where) if certificate is None else server.add_secure_port(where, _keys(certificate))
    server.start()
    try:
        yield RunningServer(_address(port, path), record)
    finally:
        server.stop(0)


def _keys(certificate: KeyPair) -> Any:
    cert, key = certificate
    return grpc.ssl_server_credentials([(key.read_bytes(), cert.read_bytes())])
