"""A backend process as others see it: it loads, answers, refuses, falls silent, lies about itself and dies."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum, auto
from functools import partial
from typing import Any, Final

import trio
from grpclib import GRPCError, Status
from grpclib.const import Handler
from grpclib.protocol import H2Protocol
from grpclib.server import Server

from gateway.backends import metadata as names
from gateway.backends.pb import backend_pb2 as pb
from gateway.domain.ids import Address
from tests.fakes.in_memory_backend import InMemoryBackend, ServerStream
from tests.simulation.call_ledger import CallLedger, Visit
from tests.simulation.network import Network
from tests.simulation.world import World

SECONDS_PER_TOKEN: Final = 0.05
SLOW_SECONDS_PER_TOKEN: Final = 2.0
START_SECONDS: Final = 0.2
"""Until a new process listens."""
GOODBYE_SECONDS: Final = 0.02
"""From the end of a call until a process that drains may exit: the answer has to be on its way."""
SILENCE_STEP_SECONDS: Final = 0.25
POISON: Final = "poison"
"""A prompt that kills the process that works on it."""
IMPOSTOR: Final = "impostor"
"""The model of a process that was given another one behind our back."""


class Mood(StrEnum):
    WELL = auto()
    SLOW = auto()
    SILENT = auto()
    """Health is not answered, everything else is."""
    FULL = auto()
    """All slots are taken by others."""
    LEAVING = auto()
    """Refuses as if it drained, though nobody asked it to."""
    UNLOADED = auto()
    """Has lost its model."""
    IMPOSTOR = auto()
    """Has another model."""
    OTHER_PROGRAM = auto()
    """Another process has its address: it knows no token of ours."""
    BROKEN = auto()
    """Answers with an internal error."""
    RESETS = auto()
    """The connection breaks in the middle of an answer."""
    DIES = auto()
    """So does the process."""


@dataclass
class Load:
    """How the next LoadModel goes."""

    seconds: float
    error: str | None = None


class SimBackend:
    """`refuses`: it is of our own kind, which turns calls away when full and notices when they are cancelled. The other
    kind answers Health only when one of its workers is free, and works on when nobody listens any more.

    `callers` is how many gateways there are."""

    def __init__(
        self,
        world: World,
        network: Network,
        call_ledger: CallLedger,
        address: Address,
        token: str,
        *,
        refuses: bool,
        load: Callable[[str], Load],
        callers: int = 1,
    ) -> None:
        self._world = world
        self._network = network
        self._call_ledger = call_ledger
        self.address = address
        self.token = token
        self.refuses = refuses
        self._load = load
        self._callers = callers
        self._listens_at = trio.current_time() + START_SECONDS
        self._mood = Mood.WELL
        self._mood_until = float("-inf")
        self.disturbed = False
        """Something has happened to it after which the gateway can't know what it works on."""
        self.model: str | None = None
        self.slots = 1
        self.calls: set[Visit] = set()
        self._answered: list[Visit] = []
        """Of this moment."""
        self._ghosts: list[float] = []
        """When each cancelled call, that is worked on all the same, will be done."""
        self.probes_now = 0
        self.drains = False
        self.on_idle: Callable[[], None] = lambda: None
        """Called soon after a call has ended."""
        self.end: Callable[[int], None] = lambda _code: None
        """Ends the process."""
        network.listen(address, self)

    @property
    def listens(self) -> bool:
        return trio.current_time() >= self._listens_at

    def accept(self) -> H2Protocol:
        return Server([self])._protocol_factory()

    def be(self, mood: Mood, seconds: float) -> None:
        self._mood, self._mood_until = mood, trio.current_time() + seconds
        self.disturbed |= mood in (Mood.OTHER_PROGRAM, Mood.RESETS)

    @property
    def mood(self) -> Mood:
        return self._mood if trio.current_time() < self._mood_until else Mood.WELL

    def taken(self) -> int:
        self._ghosts = [until for until in self._ghosts if until > trio.current_time()]
        return len(self.calls) + len(self._ghosts)

    def __mapping__(self) -> dict[str, Handler]:
        return {
            f"/backend.Backend/{name}": Handler(partial(self._serve, name), *shape)
            for name, *shape in InMemoryBackend.METHODS
        }

    async def _serve(self, method: str, stream: ServerStream) -> None:
        request = await stream.recv_message()
        given = dict(stream.metadata or {}).get(names.AUTHORIZATION)
        if given != f"Bearer {self.token}" or self.mood is Mood.OTHER_PROGRAM:
            if isinstance(request, pb.PredictOptions):
                self._call_ledger.visit(request.CorrelationId, self.token).outcome = "stale"
            raise GRPCError(Status.UNAUTHENTICATED, "wrong or missing token")
        match request:
            case pb.HealthMessage() if method == "Free":
                self.model = None
                await stream.send_message(pb.Result(success=True))
            case pb.HealthMessage():
                await self._answer_health(stream)
            case pb.ModelOptions():
                await self._answer_load(stream, request)
            case pb.PredictOptions():
                await self._answer_call(method, stream, request)

    async def _answer_health(self, stream: ServerStream) -> None:
        self.probes_now += 1
        try:
            while self._keeps_silent():  # noqa: ASYNC110 - the mood ends with time alone
                await asyncio.sleep(SILENCE_STEP_SECONDS)
            await stream.send_message(pb.Reply(message=b"OK"))
        finally:
            self.probes_now -= 1

    def _keeps_silent(self) -> bool:
        has_no_worker = not self.refuses and self.model is not None and self.taken() >= self.slots
        return has_no_worker or self.mood is Mood.SILENT

    async def _answer_load(self, stream: ServerStream, options: pb.ModelOptions) -> None:
        load = self._load(options.Model)
        await asyncio.sleep(load.seconds)
        if load.error is not None:
            await stream.send_message(pb.Result(success=False, message=load.error))
            return
        self.model = options.Model
        given_options = dict(option.split(":", 1) for option in options.Options)
        self.slots = int(given_options.get("parallel", "1"))
        await stream.send_message(pb.Result(success=True))

    async def _answer_call(self, method: str, stream: ServerStream, options: pb.PredictOptions) -> None:
        visit = self._call_ledger.visit(options.CorrelationId, self.token)
        if (why := self._why_refused()) is not None:
            visit.outcome = why
            await stream.send_trailing_metadata(
                status=Status.RESOURCE_EXHAUSTED, status_message=why, metadata={names.REFUSED: why}
            )
            return
        self._check_model(options, visit)
        self._check_room()
        self.calls.add(visit)
        try:
            await self._generate(method, stream, options, visit)
            self._note_answer(visit)
        except asyncio.CancelledError:
            if visit.outcome == "running":
                visit.outcome = "cancelled"
                if not self.refuses:
                    left = max(1, options.Tokens - visit.produced) * self._pace()
                    self._ghosts.append(trio.current_time() + left)
            raise
        finally:
            self.calls.discard(visit)
            asyncio.get_running_loop().call_later(GOODBYE_SECONDS, self.on_idle)

    def _note_answer(self, visit: Visit) -> None:
        if visit.outcome != "running":
            return  # the connection broke in this moment
        visit.outcome = "unheard" if self._network.host(self.address).is_holding else "answered"
        self._answered = [*(each for each in self._answered if each.ended_at == trio.current_time()), visit]
        visit.ended_at = trio.current_time()

    def lose_calls(self) -> None:
        """The connections break; an answer of this moment may or may not be read before that is noticed."""
        for visit in self.calls:
            visit.outcome = "lost"
        for visit in self._answered:
            if visit.ended_at == trio.current_time():
                visit.outcome = "unheard"

    def _why_refused(self) -> str | None:
        if self.drains or self.mood is Mood.LEAVING:
            return names.REFUSED_DRAINING if self.refuses else None
        if self.refuses and (self.mood is Mood.FULL or self.taken() >= self.slots):
            return names.REFUSED_FULL
        return None

    def _check_model(self, options: pb.PredictOptions, visit: Visit) -> None:
        """As every backend of the protocol: a caller that names no model is not checked."""
        if self.mood is Mood.UNLOADED or self.model is None:
            visit.outcome = "stale"
            raise GRPCError(Status.FAILED_PRECONDITION, names.NOT_LOADED)
        if options.ModelIdentity and options.ModelIdentity != self._says_it_is():
            visit.outcome = "stale"
            raise GRPCError(Status.NOT_FOUND, f"{names.IDENTITY_MISMATCH}: {self._says_it_is()}")
        if self.mood is Mood.BROKEN:
            visit.outcome = "broken"
            raise GRPCError(Status.INTERNAL, "the engine broke")

    def _check_room(self) -> None:
        """A foreign backend of several slots answers Health while it works on what was cancelled, so the gateway can't
        know of it; one of a single slot does not. Of several gateways each may give it one call before the others know
        of that."""
        at_work = self.taken() if self._callers == 1 else len(self.calls) + 1 - self._callers
        if at_work >= self.slots == 1 and not self.disturbed:
            self._world.object_to(f"{self.address} with {self.slots} slots got one call more than it can work on")

    def _says_it_is(self) -> str:
        return IMPOSTOR if self.mood is Mood.IMPOSTOR else self.model or ""

    def _pace(self) -> float:
        return SLOW_SECONDS_PER_TOKEN if self.mood is Mood.SLOW else SECONDS_PER_TOKEN

    async def _generate(self, method: str, stream: ServerStream, options: pb.PredictOptions, visit: Visit) -> None:
        model = self._says_it_is()
        words = [f"{model}/{options.CorrelationId}/{visit.number}/{i} " for i in range(options.Tokens)]
        for word in words:
            await asyncio.sleep(self._pace())
            if POISON in (options.Prompt, options.Embeddings) or self._breaks_now():
                await self._break()
            if method == "PredictStream":
                await stream.send_message(pb.Reply(message=word.encode(), tokens=visit.produced + 1, prompt_tokens=1))
            visit.produced += 1
        match method:
            case "Predict":
                await stream.send_message(pb.Reply(message="".join(words).encode(), tokens=len(words)))
            case "Embedding":
                await asyncio.sleep(self._pace())
                await stream.send_message(pb.EmbeddingResult(embeddings=_vector(model, options)))
        await stream.send_trailing_metadata()

    def _breaks_now(self) -> bool:
        return self.mood in (Mood.RESETS, Mood.DIES) and self._world.random.random() < 0.5

    async def _break(self) -> None:
        self.lose_calls()
        if self.mood is Mood.RESETS:
            self._network.reset(self.address)
        else:
            self.end(-11)
        await asyncio.Event().wait()


def _vector(model: str, options: pb.PredictOptions) -> list[Any]:
    """Numbers from which the client can tell model and request."""
    return [*map(float, model.encode()), -1.0, *map(float, options.CorrelationId.encode())]
