"""The calls of the router and the worker to backends, and the ways in which a call can end without an answer.

The errors form a tree by what the router can do. A `RouteError` says that the request may be sent elsewhere, because of
*where* it went. Every other error (`gateway.domain.errors`) is an answer to the client.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from gateway.backends.pb import backend_pb2 as pb
from gateway.domain.errors import GatewayError
from gateway.domain.ids import Address, ModelName, ReplicaId, RequestId
from gateway.domain.inference import (
    Completion,
    Delta,
    DetokenizeInput,
    Embedding,
    EmbeddingInput,
    Generation,
    Ranking,
    RerankInput,
    TokenizeInput,
    Tokens,
)


@dataclass(frozen=True)
class Target:
    """The address and token of one replica, for one call. It lives no longer than one request (R1)."""

    replica_id: ReplicaId
    model: ModelName
    address: Address
    token: str = field(repr=False)
    context_size: int | None = field(default=None, compare=False)
    """The number of tokens that a request to the model may have. None if that is not known."""


class RouteError(Exception):
    """The call ended without an answer, because of the place it went to."""


class Refused(RouteError):
    """The replica refused the call before any work because it is full or drains. That is no failure of the replica."""

    def __init__(self, *, draining: bool) -> None:
        super().__init__("draining" if draining else "no free slot")
        self.draining = draining


class Stale(RouteError):
    """The process at the address is not the intended replica: no model is loaded, or another model, or it is another
    process (R14, H5)."""


class Unreachable(RouteError):
    """There was no connection, so the request was not sent."""


class Lost(RouteError):
    """The connection broke after the request was sent, so the backend may have worked on it."""


class AnswerStream(Protocol):
    """A generation as it comes: parts, then exactly one `Completion`, which is the last item."""

    async def receive(self) -> Delta | Completion:
        """Waits for the next item. Raises `RouteError` or `GatewayError` if the stream ends without a completion."""

    def receive_nowait(self) -> Delta | Completion:
        """Returns the next item if it has arrived. Raises `trio.WouldBlock` if not, and otherwise the errors of
        `receive`."""


OnEnd = Callable[[RouteError | GatewayError | None], None]
"""Called once, synchronously, when a call has ended by itself after its answer had begun. The backend has nothing more
to do with it, however much of the answer is unread. The argument is the error that broke it, or None."""


class Backends(Protocol):
    """The calls for inference. Cancelling any of them reaches the backend."""

    def open_stream(
        self, target: Target, generation: Generation, request_id: RequestId, on_end: OnEnd
    ) -> AbstractAsyncContextManager[AnswerStream]:
        """Opens a streamed answer. Leaving the context ends the call, whether the answer was complete or not."""

    async def generate(self, target: Target, generation: Generation, request_id: RequestId) -> Completion:
        """Returns the whole answer at once. Raises `RouteError` or `GatewayError`."""

    async def embed(self, target: Target, item: EmbeddingInput, request_id: RequestId) -> Embedding:
        """Returns the vector of the text. Raises `RouteError` or `GatewayError`."""

    async def rerank(self, target: Target, item: RerankInput, request_id: RequestId) -> Ranking:
        """Returns the best documents. Raises `RouteError` or `GatewayError`."""

    async def tokenize(self, target: Target, item: TokenizeInput, request_id: RequestId) -> Tokens:
        """Returns the tokens of the text. Raises `RouteError` or `GatewayError`."""

    async def detokenize(self, target: Target, item: DetokenizeInput, request_id: RequestId) -> str:
        """Returns the text of the tokens. Raises `RouteError` or `GatewayError`."""


class BackendNotReady(Exception):
    """Health did not answer "OK" in time. The message says what happened instead."""


class LoadFailed(Exception):
    """LoadModel did not succeed. The message is the backend's own if it gave one (L20)."""


class BackendControl(Protocol):
    """The calls of a worker to a backend process that it has started."""

    async def health(self, address: Address, token: str, timeout_seconds: float) -> None:
        """Calls Health. Raises `BackendNotReady` unless it answers "OK" in time."""

    async def load_model(self, address: Address, token: str, options: pb.ModelOptions, timeout_seconds: float) -> None:
        """Loads a model. Raises `LoadFailed`, also after `timeout_seconds`; the backend may still be loading then
        (L8)."""

    async def model_metadata(
        self, address: Address, token: str, options: pb.ModelOptions, timeout_seconds: float
    ) -> pb.ModelMetadataResponse | None:
        """Asks what the loaded model can do. Returns None if the backend can't say so in time. It raises nothing,
        because many backends can't."""

    async def free(self, address: Address, token: str, timeout_seconds: float) -> None:
        """Asks the backend to free its model before it is ended. It takes no longer than `timeout_seconds` and raises
        nothing, because many backends cannot do it, and one that hangs has to be ended all the same (W8)."""
