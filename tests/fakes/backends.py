"""A `Backends` in memory whose answers a test scripts, replica by replica."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from gateway.backends.protocol import AnswerStream, OnEnd, RouteError, Target
from gateway.domain.errors import GatewayError
from gateway.domain.ids import ReplicaId, RequestId
from gateway.domain.inference import (
    Completion,
    Delta,
    DetokenizeInput,
    Embedding,
    EmbeddingInput,
    FinishReason,
    Generation,
    Ranking,
    RerankInput,
    Sampling,
    TokenizeInput,
    Tokens,
)

DONE = Completion(FinishReason.STOP, 3, 2)
NO_SAMPLING = Sampling()
Item = Delta | Completion | RouteError | GatewayError | trio.Event
"""Given, raised, or waited for."""


@dataclass
class Script:
    """How one replica answers: the items in order, each either given, raised or waited for."""

    items: list[Item] = field(default_factory=lambda: [Delta("hello"), DONE])


class FakeBackends:
    """Records who was called; a call is running from its start to the end of its scope."""

    def __init__(self) -> None:
        self.scripts: dict[ReplicaId, Script] = {}
        self.calls: list[ReplicaId] = []
        self.running: list[ReplicaId] = []
        self.ends: dict[ReplicaId, OnEnd] = {}
        """How the last stream of each replica is told that its call has ended, before all of it was read."""
        self.on_call: Callable[[Target], None] = lambda _target: None

    def script(self, replica_id: ReplicaId, *items: Item) -> None:
        self.scripts[replica_id] = Script(list(items))

    @asynccontextmanager
    async def open_stream(
        self, target: Target, generation: Generation, request_id: RequestId, on_end: OnEnd
    ) -> AsyncIterator[AnswerStream]:
        self.calls.append(target.replica_id)
        self.on_call(target)
        self.running.append(target.replica_id)
        self.ends[target.replica_id] = on_end
        try:
            yield FakeAnswerStream(list(self.scripts.get(target.replica_id, Script()).items), on_end)
        finally:
            self.running.remove(target.replica_id)

    async def generate(self, target: Target, generation: Generation, request_id: RequestId) -> Completion:
        async with self.open_stream(target, generation, request_id, lambda _error: None) as stream:
            while True:
                item = await stream.receive()
                if isinstance(item, Completion):
                    return item

    async def embed(self, target: Target, item: EmbeddingInput, request_id: RequestId) -> Embedding:
        completion = await self.generate(target, Generation(item.model, "", NO_SAMPLING), request_id)
        return Embedding((1.0, 0.0), completion.prompt_tokens)

    async def rerank(self, target: Target, item: RerankInput, request_id: RequestId) -> Ranking:
        completion = await self.generate(target, Generation(item.model, "", NO_SAMPLING), request_id)
        return Ranking(tuple((index, -float(index)) for index in range(len(item.documents))), completion.prompt_tokens)

    async def tokenize(self, target: Target, item: TokenizeInput, request_id: RequestId) -> Tokens:
        await self.generate(target, Generation(item.model, "", NO_SAMPLING), request_id)
        return Tokens((1,), (b"a",))

    async def detokenize(self, target: Target, item: DetokenizeInput, request_id: RequestId) -> str:
        await self.generate(target, Generation(item.model, "", NO_SAMPLING), request_id)
        return "a"


class FakeAnswerStream:
    """Its call ends when the last item is read."""

    def __init__(self, items: list[Item], on_end: OnEnd) -> None:
        self._items = items
        self._on_end = on_end
        self._has_begun = False

    async def receive(self) -> Delta | Completion:
        await trio.lowlevel.checkpoint()
        while isinstance(self._items[0], trio.Event):
            await self._items[0].wait()
            self._items.pop(0)
        return self._take()

    def receive_nowait(self) -> Delta | Completion:
        if isinstance(self._items[0], trio.Event):
            raise trio.WouldBlock
        return self._take()

    def _take(self) -> Delta | Completion:
        item = self._items[0]
        if isinstance(item, Exception):
            if self._has_begun:
                self._on_end(item)
            raise item  # again and again, as a closed stream does
        assert isinstance(item, Delta | Completion)
        del self._items[0]
        self._has_begun = True
        if isinstance(item, Completion):
            self._on_end(None)
        return item
