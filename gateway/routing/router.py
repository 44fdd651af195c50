"""Carries one request to a replica and its answer back: lease, call, and another replica if the first was no good.

Nothing in here outlives a request (R1). A call may be sent elsewhere only while no byte of its answer has come: what
`RouteError` each kind means for the request is decided in `_Route.note`.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import structlog
import trio

from gateway.backends.protocol import AnswerStream, Backends, Refused, RouteError, Target
from gateway.backends.protocol import Lost as ConnectionLost
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import Completion, Embedding, EmbeddingInput, Generation, Piece
from gateway.routing.admission import Admission, Ticket
from gateway.routing.eligibility import Candidate
from gateway.routing.lease import Lease

log = structlog.get_logger(__name__)

R = TypeVar("R")

BATCH_MAX: Final = 64
"""Pieces handed on in one go when that many are there already."""
RERUNS_AFTER_LOSS_MAX: Final = 1
"""A request that has reached a backend which then vanished is sent to one more, not to all of them: it may itself be
what kills them."""


@dataclass(frozen=True)
class RouterStatistics:
    picks: dict[ModelName, int]
    """Leases taken."""
    reroutes: dict[str, int]
    """Requests sent elsewhere, by cause."""


class RoutedStream:
    """The answer of the replica that was chosen: pieces, then one `Completion`."""

    def __init__(self, candidate: Candidate, first: Piece | Completion, rest: AnswerStream) -> None:
        self.candidate = candidate
        self._first: Piece | Completion | None = first
        self._rest = rest

    async def receive_batch(self) -> list[Piece | Completion]:
        """At least one item, and whatever else is here already; a `Completion` is the last item of the last batch.

        Raises `GatewayError`. An error behind items that are here already is raised by the next call, not by this one.
        """
        batch = [await self._next()]
        try:
            while len(batch) < BATCH_MAX and not isinstance(batch[-1], Completion):
                batch.append(self._rest.receive_nowait())
        except (trio.WouldBlock, RouteError, BackendFailed):
            pass  # nothing more now; an ended stream says so again when it is asked again
        return batch

    async def _next(self) -> Piece | Completion:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await self._rest.receive()
        except RouteError as error:
            raise BackendFailed(f"The backend was lost in the middle of its answer ({error}).") from error


class Router:
    def __init__(
        self, admission: Admission, backends: Backends, *, attempts: int, token_of: Callable[[ReplicaId], str]
    ) -> None:
        self._admission = admission
        self._backends = backends
        self._attempts = attempts
        self._token_of = token_of
        self._picks: Counter[ModelName] = Counter()
        self._reroutes: Counter[str] = Counter()

    @asynccontextmanager
    async def open_stream(self, generation: Generation, request_id: RequestId) -> AsyncIterator[RoutedStream]:
        """Yields once the first item of the answer is there, so that nothing is sent to the client before (A10).

        Raises `GatewayError`.
        """
        async with AsyncExitStack() as held:
            yield await self._start_stream(held, generation, request_id)

    async def _start_stream(self, held: AsyncExitStack, generation: Generation, request_id: RequestId) -> RoutedStream:
        """`held` receives what has to be given back when the answer has ended: first the call, then the lease."""
        route = self._route(generation.model, request_id)
        while True:
            async with AsyncExitStack() as attempt:
                lease, target = await self._take(attempt, route)
                stream = await attempt.enter_async_context(self._backends.open_stream(target, generation, request_id))
                try:
                    first = await stream.receive()
                except RouteError as error:
                    route.note(error, lease)
                    continue
                held.push_async_exit(attempt.pop_all())
                return RoutedStream(lease.candidate, first, stream)

    async def generate(self, generation: Generation, request_id: RequestId) -> tuple[Completion, Candidate]:
        """Raises `GatewayError`."""

        async def call(target: Target) -> Completion:
            return await self._backends.generate(target, generation, request_id)

        return await self._unary(generation.model, request_id, call)

    async def embed(self, item: EmbeddingInput, request_id: RequestId) -> tuple[Embedding, Candidate]:
        """Raises `GatewayError`."""

        async def call(target: Target) -> Embedding:
            return await self._backends.embed(target, item, request_id)

        return await self._unary(item.model, request_id, call)

    async def _unary(
        self, model: ModelName, request_id: RequestId, call: Callable[[Target], Awaitable[R]]
    ) -> tuple[R, Candidate]:
        route = self._route(model, request_id)
        while True:
            async with AsyncExitStack() as attempt:
                lease, target = await self._take(attempt, route)
                try:
                    return await call(target), lease.candidate
                except RouteError as error:
                    route.note(error, lease)

    async def _take(self, attempt: AsyncExitStack, route: "_Route") -> tuple[Lease, Target]:
        lease = attempt.enter_context(await self._admission.wait_lease(route.ticket))
        candidate = lease.candidate
        self._picks[candidate.model] += 1
        token = self._token_of(candidate.replica_id)
        return lease, Target(candidate.replica_id, candidate.model, candidate.address, token)

    def _route(self, model: ModelName, request_id: RequestId) -> "_Route":
        ticket = self._admission.open_ticket(model, request_id)
        return _Route(ticket, self._admission, self._attempts, self._reroutes)

    def statistics(self) -> RouterStatistics:
        return RouterStatistics(dict(self._picks), dict(self._reroutes))


class _Route:
    """One request's way over replicas: how often it may go on, and where not."""

    def __init__(self, ticket: Ticket, admission: Admission, attempts: int, reroutes: Counter[str]) -> None:
        self.ticket = ticket
        self._admission = admission
        self._attempts_left = attempts
        self._reruns_left = RERUNS_AFTER_LOSS_MAX
        self._reroutes = reroutes

    def note(self, error: RouteError, lease: Lease) -> None:
        """Prepares the next attempt, or raises `BackendFailed` if there is to be none.

        - refused, full: no attempt; the replica is asked again later;
        - refused, draining: no attempt, but another replica;
        - stale, unreachable: another replica, until the attempts are used up;
        - lost after the request was sent: the same, but only once.
        """
        cause, replica_id = _cause(error), lease.candidate.replica_id
        self._reroutes[cause] += 1
        log.info("request.rerouted", cause=cause, replica_id=replica_id, detail=str(error))
        if isinstance(error, Refused) and not error.draining:
            self._admission.note_refusal(self.ticket, lease)
            return
        self.ticket.excluded.add(replica_id)
        if isinstance(error, Refused):
            return
        self._attempts_left -= 1
        self._reruns_left -= isinstance(error, ConnectionLost)
        if self._attempts_left <= 0 or self._reruns_left < 0:
            raise BackendFailed(f"The backend could not serve the request ({cause}: {error}).") from error


def _cause(error: RouteError) -> str:
    if isinstance(error, Refused):
        return "draining" if error.draining else "full"
    return type(error).__name__.lower()
