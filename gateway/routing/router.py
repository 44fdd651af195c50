"""Carries one request to a replica and its answer back: a lease, a probe, the call, and another replica if that one
fails.

Nothing in here outlives a request (R1). A call may be sent to another replica only while no byte of its answer has
come; `RetryState.record` says what each `RouteError` means for the request.
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
from gateway.domain.ids import ModelName, ReplicaId
from gateway.domain.inference import Completion, Delta, Embedding, EmbeddingInput, Generation, Origin
from gateway.domain.routability import Candidate
from gateway.routing.admission import Admission
from gateway.routing.attempt import Passage, RetryState
from gateway.routing.open_calls import OpenCalls
from gateway.routing.probe_cache import ProbeCache
from gateway.routing.reservation import StrictReservations

R = TypeVar("R")

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

    def __init__(self, passage: Passage, first: Delta | Completion, rest: AnswerStream) -> None:
        self.candidate = passage.candidate
        self._passage = passage
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
            pass  # There is nothing more now. A stream that has ended says so again at the next call.
        self._passage.record_progress(done=isinstance(batch[-1], Completion))
        return batch

    async def _next(self) -> Delta | Completion:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        try:
            return await self._passage.wait(self._rest.receive)
        except RouteError as error:
            self._passage.record_failure("lost")
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
        self._attempts = attempts
        self._token_of = token_of
        self._reservations = reservations
        self._calls = calls or OpenCalls()
        self._picks: Counter[tuple[ModelName, str]] = Counter()
        self._reroutes: Counter[str] = Counter()

    @asynccontextmanager
    async def open_stream(self, generation: Generation, origin: Origin) -> AsyncIterator[RoutedStream]:
        """Yields the answer once its first item is there, so that nothing is sent to the client before that (A10).

        Raises `GatewayError`.
        """
        async with AsyncExitStack() as held:
            yield await self._start_stream(held, generation, origin)

    async def _start_stream(self, held: AsyncExitStack, generation: Generation, origin: Origin) -> RoutedStream:
        """Starts the answer. `held` gets the call and the lease, and has to be closed when the answer has ended."""
        retry = self._route(generation.model, origin)
        while True:
            async with AsyncExitStack() as attempt:
                passage = await self._take(attempt, retry)
                if passage is None:
                    continue
                call = self._backends.open_stream(passage.target, generation, origin.request_id, passage.end_call)
                stream = await attempt.enter_async_context(call)
                try:
                    first = await passage.wait(stream.receive)
                except RouteError as error:
                    retry.record(error, passage)
                    continue
                held.push_async_exit(attempt.pop_all())
                return RoutedStream(passage, first, stream)

    async def generate(self, generation: Generation, origin: Origin) -> tuple[Completion, Candidate]:
        """Raises `GatewayError`."""

        async def call(target: Target) -> Completion:
            return await self._backends.generate(target, generation, origin.request_id)

        return await self._unary(generation.model, origin, call)

    async def embed(self, item: EmbeddingInput, origin: Origin) -> tuple[Embedding, Candidate]:
        """Raises `GatewayError`."""

        async def call(target: Target) -> Embedding:
            return await self._backends.embed(target, item, origin.request_id)

        return await self._unary(item.model, origin, call)

    async def _unary(
        self, model: ModelName, origin: Origin, call: Callable[[Target], Awaitable[R]]
    ) -> tuple[R, Candidate]:
        retry = self._route(model, origin)
        while True:
            async with AsyncExitStack() as attempt:
                passage = await self._take(attempt, retry)
                if passage is None:
                    continue
                try:
                    answer = await passage.wait(partial(call, passage.target))
                except RouteError as error:
                    retry.record(error, passage)
                    continue
                passage.record_progress(done=True)
                return answer, passage.candidate

    async def _take(self, attempt: AsyncExitStack, retry: RetryState) -> Passage | None:
        """Returns a lease on a replica that is alive or at least busy, or None if that replica was neither and another
        one has to be picked.

        The lease lives in `attempt`. If the call is cancelled on a backend that may not notice it, the probe cache
        takes the lease.
        """
        lease = await self._admission.wait_lease(retry.ticket)
        decided, target = retry.ticket.decision.attempts[-1], self._target(lease.candidate)
        passage = Passage(
            lease=lease,
            target=target,
            attempt=decided,
            loads=self._admission.loads,
            probes=self._probes,
            calls=self._calls,
        )
        attempt.enter_context(passage)
        if self._reservations is not None:
            if not await self._reservations.confirm(retry.ticket, lease):
                retry.record_no_slot(passage)
                return None
            passage.target = self._target(lease.candidate)
        self._picks[lease.candidate.model, retry.reason] += 1
        outcome = await self._probes.check(passage.target)
        return passage if retry.accepts(outcome, passage) else None

    def _target(self, candidate: Candidate) -> Target:
        token = self._token_of(candidate.replica_id)
        return Target(candidate.replica_id, candidate.model, candidate.address, token)

    def _route(self, model: ModelName, origin: Origin) -> RetryState:
        ticket = self._admission.open_ticket(model, origin)
        return RetryState(ticket, self._admission, self._attempts, self._reroutes)

    def statistics(self) -> RouterStatistics:
        """Returns the numbers of leases and retries since this gateway started."""
        return RouterStatistics(dict(self._picks), dict(self._reroutes))
