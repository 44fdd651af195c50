"""Clients: each sends one request, reads as fast as it likes, leaves when it likes, and checks every word it gets."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, Literal

import trio

from gateway.domain.errors import GatewayError
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Delta, EmbeddingInput, Generation, Origin, Sampling
from gateway.routing.router import Router
from tests.simulation.world import World

Kind = Literal["stream", "unary", "embedding"]
CALLERS: Final = ("ann", "bob", "eve")


@dataclass(eq=False)
class Request:
    id: RequestId
    model: ModelName
    caller: str
    kind: Kind
    tokens: int
    timeout_seconds: float
    pause_seconds: float
    """Between two reads of a stream."""
    prompt: str = "hello"
    begun_at: float = 0.0
    outcome: str | None = None
    """`answered`, `left`, or the name of the error; None while it runs."""
    error: GatewayError | None = None
    words: list[str] = field(default_factory=list)
    leave: trio.CancelScope = field(default_factory=trio.CancelScope)

    def __str__(self) -> str:
        return f"{self.id} ({self.kind} of {self.model} by {self.caller})"


class Clients:
    """`live` holds the requests that have not ended, `ended` the others; each request is in exactly one of them."""

    def __init__(self, world: World, router: Router) -> None:
        self._world = world
        self._router = router
        self.live: dict[RequestId, Request] = {}
        self.ended: dict[RequestId, Request] = {}
        self.on_error: Callable[[Request, GatewayError], None] = lambda _request, _error: None

    async def run(self, request: Request) -> None:
        self._world.note(f"{request} begins")
        request.begun_at = trio.current_time()
        self.live[request.id] = request
        request.leave.deadline = request.begun_at + request.timeout_seconds
        with request.leave:
            try:
                await self._ask(request)
                self._end(request, "answered")
            except GatewayError as error:
                request.error = error
                self.on_error(request, error)
                self._end(request, type(error).__name__)
            except Exception as error:  # noqa: BLE001 - any other error is one that a client must never see
                self._world.object_to(f"{request} was told {error!r}")
        if request.leave.cancelled_caught:
            self._end(request, "left")

    def _end(self, request: Request, outcome: str) -> None:
        self._world.note(f"{request} ends: {outcome} {request.error or ''}")
        if request.outcome is not None:
            self._world.object_to(f"{request} ends as {outcome} after it has ended as {request.outcome}")
        request.outcome = outcome
        self.ended[request.id] = self.live.pop(request.id)

    async def _ask(self, request: Request) -> None:
        origin = Origin(request.id, request.caller)
        generation = Generation(request.model, request.prompt, Sampling(max_tokens=request.tokens))
        match request.kind:
            case "stream":
                await self._read_stream(request, generation, origin)
            case "unary":
                completion, _ = await self._router.generate(generation, origin)
                self._take(request, completion.text.split())
            case "embedding":
                embedding, _ = await self._router.embed(EmbeddingInput(request.model, request.prompt), origin)
                model, _, request_id = bytes(int(number) % 256 for number in embedding.vector).partition(b"\xff")
                self._expect(request, [model.decode(), request_id.decode()], [request.model, request.id])
                return
        self._expect(request, len(request.words), request.tokens)

    async def _read_stream(self, request: Request, generation: Generation, origin: Origin) -> None:
        async with self._router.open_stream(generation, origin) as stream:
            while True:
                batch = await stream.receive_batch()
                self._take(request, [word for item in batch for word in _words_of(item)])
                if isinstance(batch[-1], Completion):
                    return
                await trio.sleep(request.pause_seconds)

    def _take(self, request: Request, words: Iterable[str]) -> None:
        """Each word names the model, the request, the visit that made it and its place: nothing of another model or
        request, nothing from two visits, nothing twice, nothing missing."""
        for word in words:
            place = len(request.words)
            visit = request.words[0].split("/")[2] if request.words else word.split("/")[2]
            self._expect(request, word, f"{request.model}/{request.id}/{visit}/{place}")
            request.words.append(word)

    def _expect(self, request: Request, got: object, wanted: object) -> None:
        if got != wanted:
            self._world.object_to(f"{request} got {got!r} instead of {wanted!r}")


def _words_of(item: Delta | Completion) -> list[str]:
    return item.text.split()
