"""Dispatches the RPCs of the Backend service to methods: every RPC is authenticated, then answered or UNIMPLEMENTED."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Final, Generic, TypeVar

from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpclib.const import Cardinality, Status
from grpclib.const import Handler as Route
from grpclib.server import Stream

from gateway.backends.metadata import AUTHORIZATION, bearer
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import CallError

Request = TypeVar("Request", bound=Message)

METHODS: Final[tuple[MethodDescriptor, ...]] = tuple(pb.DESCRIPTOR.services_by_name["Backend"].methods)


class Call(Generic[Request]):
    """One RPC, as the methods see it. `trailers` are sent with the status of a successful call."""

    def __init__(self, name: str, stream: Stream[Any, Any]) -> None:
        self.name = name
        self.trailers: dict[str, str] = {}
        self._stream = stream

    async def receive(self) -> Request:
        """Returns the request. Raises `CallError` if there is none."""
        request: Request | None = await self._stream.recv_message()
        if request is None:
            raise CallError(Status.INVALID_ARGUMENT, "the call ended before its message")
        return request

    async def send(self, reply: Message) -> None:
        """Sends a reply. Waits while the client does not read."""
        await self._stream.send_message(reply)


Method = Callable[[Call[Any]], Awaitable[None]]


class Dispatcher:
    """The service of a grpclib server: `methods` by the names of their RPCs. With an empty `token` every caller is
    accepted."""

    def __init__(self, methods: Mapping[str, Method], token: str) -> None:
        self._methods = methods
        self._authorization = bearer(token)[AUTHORIZATION].encode() if token else None
        self._open: set[asyncio.Task[Any]] = set()

    def __mapping__(self) -> dict[str, Route]:
        """Returns the routes, in grpclib's protocol for a service."""
        return {f"/{method.containing_service.full_name}/{method.name}": self._route(method) for method in METHODS}

    async def wait_finished(self) -> None:
        """Waits for the calls that are open now, trailers included, and not for later ones."""
        if self._open:
            await asyncio.wait(set(self._open))

    def _route(self, method: MethodDescriptor) -> Route:
        cardinality = {
            (False, False): Cardinality.UNARY_UNARY,
            (False, True): Cardinality.UNARY_STREAM,
            (True, False): Cardinality.STREAM_UNARY,
            (True, True): Cardinality.STREAM_STREAM,
        }[method.client_streaming, method.server_streaming]
        answer = partial(self._answer, method.name)
        return Route(answer, cardinality, GetMessageClass(method.input_type), GetMessageClass(method.output_type))

    async def _answer(self, name: str, stream: Stream[Any, Any]) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - grpclib runs each call in a task; for the type checker
        # The task outlives this function by the time of the trailers, which grpclib sends if they are not sent here.
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        try:
            self._authenticate(stream)
            call = Call[Any](name, stream)
            await self._methods.get(name, _unimplemented)(call)
            await stream.send_trailing_metadata(metadata=call.trailers)
        except CallError as error:
            await stream.send_trailing_metadata(
                status=error.status, status_message=error.message, metadata=dict(error.trailers)
            )

    def _authenticate(self, stream: Stream[Any, Any]) -> None:
        """Checks the token. A wrong token takes as long as the right one (H5)."""
        given = str(stream.metadata.get(AUTHORIZATION, "")) if stream.metadata else ""
        if self._authorization and not hmac.compare_digest(given.encode(), self._authorization):
            raise CallError(Status.UNAUTHENTICATED, "wrong or missing bearer token")


async def _unimplemented(call: Call[Message]) -> None:
    """Answers UNIMPLEMENTED without waiting for a request: a client that streams may send none before it has an
    answer."""
    raise CallError(Status.UNIMPLEMENTED, f"the llama-cpp engine has no {call.name}")
