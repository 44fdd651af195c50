"""Carries one request to a replica and its answer back: a lease, a probe, the call, and another replica if that one
fails.

Nothing in here outlives a request (R1). A call may be sent elsewhere only while no byte of its answer has come; what
each `RouteError` means for the request is decided in `attempt.Retries`.
"""

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import trio

from gateway.backends.protocol import AnswerStream, Backends, RouteError, Target
from gateway.domain.errors import BackendFailed, GatewayError
from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import (
    Completion,
    Delta,
    DetokenizeInput,
    Embedding,
    EmbeddingInput,
    Generation,
    Origin,
    Ranking,
    RerankInput,
    TokenizeInput,
    Tokens,
)
from gateway.domain.routability import Candidate
from gateway.routing.admission import Admission
from gateway.routing.attempt import Attempt, Retries
from gateway.routing.open_calls import OpenCalls
from gateway.routing.pending_request import PendingRequest
from gateway.routing.probe_cache import ProbeCache
from gateway.routing.reservation import StrictReservations

Q = TypeVar("Q", Generation, EmbeddingInput, RerankInput, TokenizeInput, DetokenizeInput)
R = TypeVar("R")
Begin = Callable[[Attempt, AsyncExitStack], Awaitable[R]]
"""Begins the call of one attempt, and returns its answer or the beginning of it. The stack receives what has to end
with the answer. Raises `RouteError` if the request may be tried elsewhere, or `GatewayError`."""

BATCH_MAX: Final = 64
"""The largest number of parts of an answer that are passed on together if they have already arrived."""


@dataclass(frozen=True)
class RouterStatistics:
    """The leases that requests took, and the retries."""

    picks: dict[tuple[ModelName, str], int]
    """The number of leases by model and reason: `first`, or the cause of the retry."""
    reroutes: dict[str, int]
    """The number of retries by cause."""


class RoutedStream:
    """The answer of the chosen replica: parts, then one `Completion`."""

    def __init__(self, attempt: Attempt, first: Delta | Completion, rest: AnswerStream) -> None:
        self.candidate = attempt.lease.candidate
        self._attempt = attempt
        self._first: Delta | Completion | None = first
        self._rest = rest

    async def receive_batch(self) -> list[Delta | Completion]:
        """Returns at least one item, and all others that have already arrived. A `Completion` is the last item of the
        last batch.

        Raises `GatewayError`. If items arrived before an error, the next call raises it and not this one.
        """
        batch = [await self._next()]
        try:
            while len(batch) < BATCH_MAX and not isinstance(batch[-1], Completion):
                batch.append(self._rest.receive_nowait())
        except (trio.WouldBlock, RouteError, GatewayError):
            pass  # nothing more now; an ended stream says so again when it is asked again
        self._attempt.record_progress(done=isinstance(batch[-1], Completion))
        return batch

    async def _next(self) -> Delta | Completion:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await self._attempt.wait(self._rest.receive)
        except RouteError as error:
            self._attempt.record_failure("lost")
            raise BackendFailed(f"The backend was lost in the middle of its answer ({error}).") from error


class Router:
    """Carries requests to replicas and answers back, and tries another replica if one cannot serve."""

    def __init__(
        self,
        admission: Admission,
        backends: Backends,
        probes: ProbeCache,
        *,
        attempts: int,
        token_of: Callable[[ReplicaId], str],
        reservations: StrictReservations | None = None,
        calls: OpenCalls | None = None,
    ) -> None:
        """`reservations` is given in strict mode only. `calls` is the list in which calls are entered while they wait,
        for the call watch."""
        self._admission = admission
        self._backends = backends
        self._probes = probes
        self._retries = Retries(admission, attempts)
        self._token_of = token_of
        self._reservations = reservations
        self._calls = calls or OpenCalls()
        self._picks: Counter[tuple[ModelName, str]] = Counter()

    @asynccontextmanager
    async def open_stream(self, generation: Generation, origin: Origin) -> AsyncIterator[RoutedStream]:
        """Yields the answer once its first item is there, so that nothing is sent to the client before that (A10).

        Raises `GatewayError`.
        """

        async def begin(attempt: Attempt, held: AsyncExitStack) -> RoutedStream:
            """Opens the stream, and waits for its first item."""
            call = self._backends.open_stream(attempt.target, generation, origin.request_id, attempt.end_call)
            stream = await held.enter_async_context(call)
            return RoutedStream(attempt, await attempt.wait(stream.receive), stream)

        async with AsyncExitStack() as held:
            stream, _ = await self._try(held, generation.model, origin, begin)
            yield stream

    async def generate(self, generation: Generation, origin: Origin) -> tuple[Completion, Candidate]:
        """Gets a whole answer. Returns it with the replica that made it. Raises `GatewayError`."""

        return await self._unary(self._backends.generate, generation, origin)

    async def embed(self, item: EmbeddingInput, origin: Origin) -> tuple[Embedding, Candidate]:
        """Gets the vector of one input. Returns it with the replica that made it. Raises `GatewayError`."""
        return await self._unary(self._backends.embed, item, origin)

    async def rerank(self, item: RerankInput, origin: Origin) -> tuple[Ranking, Candidate]:
        """Gets the best documents. Returns them with the replica that found them. Raises `GatewayError`."""
        return await self._unary(self._backends.rerank, item, origin)

    async def tokenize(self, item: TokenizeInput, origin: Origin) -> tuple[Tokens, Candidate]:
        """Gets the tokens of a text. Returns them with the replica that made them. Raises `GatewayError`."""
        return await self._unary(self._backends.tokenize, item, origin)

    async def detokenize(self, item: DetokenizeInput, origin: Origin) -> tuple[str, Candidate]:
        """Gets the text of tokens. Returns it with the replica that made it. Raises `GatewayError`."""
        return await self._unary(self._backends.detokenize, item, origin)

    async def _unary(
        self, call: Callable[[Target, Q, RequestId], Awaitable[R]], question: Q, origin: Origin
    ) -> tuple[R, Candidate]:
        async def begin(attempt: Attempt, _held: AsyncExitStack) -> R:
            """Makes the call of one attempt."""
            return await attempt.wait(partial(call, attempt.target, question, origin.request_id))

        async with AsyncExitStack() as held:
            answer, attempt = await self._try(held, question.model, origin, begin)
            attempt.record_progress(done=True)
            return answer, attempt.lease.candidate

    async def _try(self, held: AsyncExitStack, model: ModelName, origin: Origin, begin: Begin[R]) -> tuple[R, Attempt]:
        """Returns the result of `begin` for the first attempt that comes to an answer.

        `held` receives what has to be given back when the answer has ended: first the call, then the lease. What a
        failed attempt has is given back before the next one. Raises `GatewayError`.
        """
        request = self._admission.open_request(model, origin)
        while True:
            attempt = await self._take(held, request)
            if attempt is not None:
                try:
                    return await begin(attempt, held), attempt
                except RouteError as error:
                    self._retries.record(request, error, attempt)
            await held.aclose()

    async def _take(self, held: AsyncExitStack, request: PendingRequest) -> Attempt | None:
        """Returns a lease on a replica that is alive or at least busy. Returns None if the picked one was not, and
        another has to be picked.

        The lease lives in `held`. A cancelled call to a backend that may not notice it leaves the lease to the probe
        cache.
        """
        lease = await self._admission.wait_lease(request)
        attempt = Attempt(
            lease=lease,
            target=self._target(lease.candidate),
            record=request.decision.attempts[-1],
            loads=self._admission.loads,
            probes=self._probes,
            calls=self._calls,
        )
        held.push(attempt)
        if self._reservations is not None:
            if not await self._reservations.confirm(request, lease):
                self._retries.record_no_slot(request, attempt)
                return None
            attempt.target = self._target(lease.candidate)
        self._picks[request.model, request.reason] += 1
        outcome = await self._probes.check(attempt.target)
        return attempt if self._retries.accepts(request, outcome, attempt) else None

    def _target(self, candidate: Candidate) -> Target:
        token = self._token_of(candidate.replica_id)
        size = candidate.context_size
        return Target(candidate.replica_id, candidate.model, candidate.address, token, size)

    def statistics(self) -> RouterStatistics:
        """Counts leases and re-routes since this gateway started."""
        return RouterStatistics(dict(self._picks), dict(self._retries.counts))
