"""What the router and the worker ask of backends, and how a call can end without an answer.

Errors are a tree by what the router can do. A `RouteError` says that the request may be sent elsewhere, because of
*where* it went; everything else (`gateway.domain.errors`) is an answer to the client.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from gateway.backends.pb import backend_pb2 as pb
from gateway.domain.errors import GatewayError
from gateway.domain.ids import Address, ModelName, ReplicaId, RequestId
from gateway.domain.inference import Completion, Delta, Embedding, EmbeddingInput, Generation


@dataclass(frozen=True)
class Target:
    """One replica as an address to call. Lives no longer than one request (R1)."""

    replica_id: ReplicaId
    model: ModelName
    address: Address
    token: str = field(repr=False)


class RouteError(Exception):
    """The call ended without an answer for a reason of the place it went to."""


class Refused(RouteError):
    """Turned away before any work because no slot is free or the replica drains. No failure of the replica."""

    def __init__(self, *, draining: bool) -> None:
        super().__init__("draining" if draining else "no free slot")
        self.draining = draining


class Stale(RouteError):
    """What answers there is not the replica we mean: nothing loaded, another model, another process (R14, H5)."""


class Unreachable(RouteError):
    """No connection came about: the request was not sent."""


class Lost(RouteError):
    """The connection broke after the request was sent: it may have been worked on."""


class AnswerStream(Protocol):
    """A generation as it comes: pieces, then exactly one `Completion`, which is the last item."""

    async def receive(self) -> Delta | Completion:
        """The next item. Raises `RouteError` or `GatewayError` when the stream ends without a completion."""

    def receive_nowait(self) -> Delta | Completion:
        """The next item if it is here already; raises `trio.WouldBlock` if not, else as `receive`."""


OnEnd = Callable[[RouteError | GatewayError | None], None]
"""Called once, synchronously, when a call has ended by itself after it had begun to answer: the backend has nothing
more to do with it, however much of the answer nobody has read yet. The argument says what broke it; None: nothing."""


class Backends(Protocol):
    """Calls for inference. Cancelling any of them reaches the backend."""

    def open_stream(
        self, target: Target, generation: Generation, request_id: RequestId, on_end: OnEnd
    ) -> AbstractAsyncContextManager[AnswerStream]:
        """Leaving the context ends the call, whether the answer was complete or not."""

    async def generate(self, target: Target, generation: Generation, request_id: RequestId) -> Completion:
        """Returns the whole answer at once. Raises `RouteError` or `GatewayError`."""

    async def embed(self, target: Target, item: EmbeddingInput, request_id: RequestId) -> Embedding:
        """Returns the vector of the text. Raises `RouteError` or `GatewayError`."""


class BackendNotReady(Exception):
    """Health did not answer "OK" in time; the message says what happened instead."""


class LoadFailed(Exception):
    """LoadModel did not succeed; the message is the backend's own where it gave one (L20)."""


class BackendControl(Protocol):
    """What a worker asks of a backend process it has started."""

    async def health(self, address: Address, token: str, timeout_seconds: float) -> None:
        """Returns once Health answers "OK". Raises `BackendNotReady`."""

    async def load_model(self, address: Address, token: str, options: pb.ModelOptions, timeout_seconds: float) -> None:
        """Raises `LoadFailed`, also after `timeout_seconds`; the backend may still be loading then (L8)."""

    async def free(self, address: Address, token: str, timeout_seconds: float) -> None:
        """Asks it to let its model go before it is ended. Best effort: it takes no longer than `timeout_seconds` and
        raises nothing, since many backends can't, and one that hangs is to be ended all the same (W8)."""
