"""The inference endpoints: parse, route, encode. Each handler is thin over `schema`, `Router` and `encode`.

The file is longer than others because it has the handlers of all endpoints, which share how a request is parsed,
refused and recorded.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar, TypeVarTuple

import trio

from gateway.api.http.auth import Caller, Role
from gateway.api.http.event_stream import DONE, event
from gateway.api.http.exchange import Exchange, Headers
from gateway.api.http.http_app import Route
from gateway.api.http.json_body import READ_ON_LOOP_BYTES
from gateway.api.http.stream_keepalive import StreamKeepalive
from gateway.api.openai import encode, schema, text_bodies
from gateway.api.openai.abilities import check_abilities, check_inputs
from gateway.api.openai.choices.at_once import call_each
from gateway.api.openai.choices.streams import ChoiceStreams, has_content
from gateway.api.openai.chunks import ChatChunks, ChunkEncoder, CompletionChunks, CountingChunks
from gateway.api.openai.errors import error_object
from gateway.api.openai.tolerance import IGNORED_PARAMETERS, names_header
from gateway.api.openai.tools import check_call
from gateway.domain.builtin_backends import BUILTIN_BACKENDS
from gateway.domain.errors import ModelNotFound
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Generation, Origin
from gateway.domain.model_spec import NOTHING_KNOWN, Ability, infill_refusal, refusal
from gateway.domain.routability import Candidate, FleetView
from gateway.observability.metrics import RequestMetrics
from gateway.routing.router import RoutedStream, Router

T = TypeVar("T")
StreamEncoder = ChunkEncoder | CountingChunks
Call = TypeVar(
    "Call",
    schema.GenerationCall,
    schema.EmbeddingsCall,
    text_bodies.RerankCall,
    text_bodies.TokenizeCall,
    text_bodies.DetokenizeCall,
)
Parse = Callable[[bytes, bool], Call]
"""Parses a body. The second argument says whether unknown parameters are ignored."""
Ts = TypeVarTuple("Ts")

SCHEMA_BYTES: Final = 4 * 1024
"""The size from which on a body with a schema is read in a thread."""
SCHEMA_MARK: Final = b"schema"

LARGE_BYTES: Final = 256 * 1024
"""The size of JSON that takes milliseconds to write, which would delay every stream of this process."""
HUGE_BYTES: Final = 1024 * 1024
"""The size from which on bodies are parsed one at a time, because parsing may take several times their size."""
NUMBER_BYTES: Final = 20
"""The approximate size of one number of an embedding as JSON."""


class Chunks(Protocol):
    """Makes the encoder of one stream."""

    def __call__(
        self, request_id: RequestId, model: ModelName, created: int, *, include_usage: bool, index: int = 0
    ) -> ChunkEncoder: ...


class Answer(Protocol):
    """Encodes one answer that is not streamed, with all its choices."""

    def __call__(
        self, request_id: RequestId, model: ModelName, created: int, *answers: Completion, copies: int = 1
    ) -> bytes: ...


class CurrentView(Protocol):
    """Holds the view of routing, which says what models there are. The request path reads it without a call."""

    current: FleetView


class OpenAiApi:
    """Serves OpenAI's endpoints for chat, text completions, embeddings and the list of models, and beside them those of
    other servers for ranking and tokens."""

    def __init__(
        self,
        router: Router,
        views: CurrentView,
        metrics: RequestMetrics,
        *,
        wall_clock: Callable[[], float],
        expose_replica: bool,
        keepalive: StreamKeepalive | None,
        ignore_unknown: bool,
    ) -> None:
        """`keepalive` sends comments to streams that wait. None means that nobody does."""
        self._keepalive = keepalive
        self._router = router
        self._views = views
        self._metrics = metrics
        self._wall_clock = wall_clock
        self._started = int(wall_clock())
        self._expose_replica = expose_replica
        self._ignore_unknown = ignore_unknown
        # There is one thread for each, because several would compete with the event loop for the processor.
        self._large, self._huge = trio.CapacityLimiter(1), trio.CapacityLimiter(1)

    def routes(self) -> Sequence[Route]:
        """Returns the routes, all of which ask for the inference role. What OpenAI does not have is also found where
        other servers have it."""
        handlers = (
            ("POST", "/v1/chat/completions", self._chat),
            ("POST", "/v1/completions", self._completion),
            ("POST", "/v1/embeddings", self._embeddings),
            ("POST", "/v1/rerank", self._rerank),
            ("POST", "/rerank", self._rerank),
            ("POST", "/v1/tokenize", self._tokenize),
            ("POST", "/tokenize", self._tokenize),
            ("POST", "/v1/detokenize", self._detokenize),
            ("POST", "/detokenize", self._detokenize),
            ("GET", "/v1/models", self._models),
            ("GET", "/v1/models/", self._model),
        )
        return tuple(
            Route(method, path, Role.INFERENCE, handler, encode_error=error_object)
            for method, path, handler in handlers
        )

    async def _chat(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        call = await self._parse(exchange, schema.parse_chat, body)
        del body  # Only the parsed request is kept while it waits.
        origin = Origin(exchange.request_id, caller.name)
        await self._generate(exchange, origin, call, ChatChunks, encode.chat_completion)

    async def _completion(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        call = await self._parse(exchange, schema.parse_completion, body)
        del body
        origin = Origin(exchange.request_id, caller.name)
        if not call.echo:
            await self._generate(exchange, origin, call, CompletionChunks, encode.text_completion)
            return
        echoes = list(call.echoes())
        answer = partial(encode.text_completion, echoes=echoes)
        await self._generate(exchange, origin, call, partial(_echoing_chunks, echoes), answer)

    async def _parse(self, exchange: Exchange, parse: Parse[Call], body: bytes) -> Call:
        """Parses a body, in a thread if that may take milliseconds. Raises `BadRequest`, `NoRoomForBody`."""
        # Making a grammar of a schema takes longer than reading it.
        on_loop = READ_ON_LOOP_BYTES if len(body) <= SCHEMA_BYTES or SCHEMA_MARK not in body else SCHEMA_BYTES
        if len(body) <= on_loop:
            call = parse(body, self._ignore_unknown)
        else:
            limiter = self._large if len(body) < HUGE_BYTES else self._huge
            call = await trio.to_thread.run_sync(parse, body, self._ignore_unknown, limiter=limiter)
        if call.ignored:
            exchange.response_headers.append((IGNORED_PARAMETERS, names_header(call.ignored)))
        if exchange.charge is not None:
            exchange.charge.record_kept(call.kept_bytes)
        return call

    async def _generate(
        self, exchange: Exchange, origin: Origin, call: schema.GenerationCall, chunks: Chunks, answer: Answer
    ) -> None:
        first, created = call.generations[0], int(self._wall_clock())
        model = first.model
        self._record_model(exchange, model, call.user)
        self._check_kind(model, Ability.GENERATES)
        if first.suffix is not None:
            self._check_infill(model)
        spec = self._views.current.state.models.get(model)
        if spec is not None and spec.backend not in BUILTIN_BACKENDS:
            check_abilities(spec, call.generations)
        if call.stream:
            encoders = [
                chunks(exchange.request_id, model, created, include_usage=call.include_usage, index=index)
                for index in range(len(call.generations))
            ]
            await self._stream(exchange, origin, call, encoders)
            return
        if len(call.generations) > 1:
            await self._answer_with_choices(
                exchange, origin, call, partial(answer, exchange.request_id, model, created)
            )
            return
        completion, candidate = await self._router.generate(first, origin)
        headers = self._record_replica(exchange, candidate)
        self._record_tokens(exchange, model, completion.prompt_tokens, completion.completion_tokens)
        if first.tool_choice is not None:
            check_call(first, completion)
        await exchange.respond(200, answer(exchange.request_id, model, created, completion), headers=headers)

    async def _answer_with_choices(
        self, exchange: Exchange, origin: Origin, call: schema.GenerationCall, answer: Callable[..., bytes]
    ) -> None:
        """Answers with several choices at once."""
        found = await call_each(lambda each: self._router.generate(each, origin), call.generations)
        completions = [completion for completion, _ in found]
        headers = self._record_replica(exchange, found[0][1])
        self._record_answers(exchange, call, completions)
        for completion in completions:
            check_call(call.generation, completion)
        await exchange.respond(200, answer(*completions, copies=call.copies), headers=headers)

    async def _stream(
        self, exchange: Exchange, origin: Origin, call: schema.GenerationCall, encoders: Sequence[ChunkEncoder]
    ) -> None:
        """Answers with a stream, which gets comments while it waits: for a slot, a load, or the backend."""
        if self._keepalive is not None:
            self._keepalive.add(exchange)
        try:
            if len(encoders) == 1:
                encoder = CountingChunks(encoders[0]) if call.counts_in_each_chunk else encoders[0]
                async with self._router.open_stream(call.generation, origin) as stream:
                    await self._relay(exchange, call.generation, encoder, stream)
            else:
                await self._relay_choices(exchange, origin, call, encoders)
        finally:
            if self._keepalive is not None:
                self._keepalive.discard(exchange)

    async def _relay_choices(
        self, exchange: Exchange, origin: Origin, call: schema.GenerationCall, encoders: Sequence[ChunkEncoder]
    ) -> None:
        """Relays several streams as the choices of one."""
        streams = ChoiceStreams(
            exchange,
            partial(self._router.open_stream, origin=origin),
            partial(self._record_first, exchange, call.generation.model),
        )
        counting = [CountingChunks(encoder) for encoder in encoders] if call.counts_in_each_chunk else encoders
        completions = await streams.relay(call.generations, counting)
        self._record_answers(exchange, call, completions)
        counts = encoders[0].counts(encode.total_usage(completions, call.copies))
        await exchange.end_stream(b"".join(map(event, counts)) + DONE)

    def _record_first(self, exchange: Exchange, model: ModelName, candidate: Candidate) -> Headers:
        """Records the first part of a stream. Returns the headers that name its replica."""
        self._metrics.first_token.labels(model).observe(trio.current_time() - exchange.started_at)
        return self._record_replica(exchange, candidate)

    def _record_answers(self, exchange: Exchange, call: schema.GenerationCall, answers: Sequence[Completion]) -> None:
        prompt_tokens = sum(answer.prompt_tokens for answer in answers[:: call.copies])
        completion_tokens = sum(answer.completion_tokens for answer in answers)
        self._record_tokens(exchange, call.generation.model, prompt_tokens, completion_tokens)

    async def _relay(
        self, exchange: Exchange, generation: Generation, encoder: StreamEncoder, stream: RoutedStream
    ) -> None:
        """Relays a stream: it writes everything that has arrived in one send, and never waits for more before it
        writes."""
        model = generation.model
        await exchange.start_event_stream(self._record_first(exchange, model, stream.candidate))
        frames = [event(chunk) for chunk in encoder.opening()]
        before = trio.current_time()
        while True:
            exchange.record_silence(before)
            batch = await stream.receive_batch()
            now = trio.current_time()
            self._metrics.inter_token.labels(model).observe((now - before) / len(batch))
            before = now
            frames += [event(encoder.part(item)) for item in batch if has_content(item)]
            last = batch[-1]
            if isinstance(last, Completion):
                break
            if frames:
                await exchange.send_part(b"".join(frames))
                frames = []
        self._record_tokens(exchange, model, last.prompt_tokens, last.completion_tokens)
        check_call(generation, last)
        frames += [event(chunk) for chunk in encoder.ending(last)]
        await exchange.end_stream(b"".join(frames) + DONE)

    async def _embeddings(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        call = await self._parse(exchange, schema.parse_embeddings, body)
        del body
        self._record_model(exchange, call.model, call.user)
        self._check_kind(call.model, Ability.EMBEDS)
        spec = self._views.current.state.models.get(call.model)
        check_inputs(spec, call.inputs)
        origin = Origin(exchange.request_id, caller.name)
        # One call has one input (backend-protocol.md B3).
        found = await call_each(lambda item: self._router.embed(item, origin), call.inputs)
        vectors = [embedding for embedding, _ in found]
        headers = self._record_replica(exchange, found[-1][1])
        self._record_tokens(exchange, call.model, sum(each.prompt_tokens for each in vectors), 0)
        size = sum(NUMBER_BYTES * len(each.vector) for each in vectors)
        answer = await run_off_loop_if_large(size, encode.embeddings, call.model, vectors, call.encoding_format)
        await exchange.respond(200, answer, headers=headers)

    async def _rerank(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        call = await self._parse(exchange, text_bodies.parse_rerank, body)
        del body
        model = call.item.model
        self._record_model(exchange, model, call.user)
        self._check_kind(model, Ability.RERANKS)
        ranking, candidate = await self._router.rerank(call.item, Origin(exchange.request_id, caller.name))
        headers = self._record_replica(exchange, candidate)
        self._record_tokens(exchange, model, ranking.prompt_tokens, 0)
        await exchange.respond(200, text_bodies.rerank_answer(exchange.request_id, call, ranking), headers=headers)

    async def _tokenize(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        call = await self._parse(exchange, text_bodies.parse_tokenize, body)
        del body
        self._record_model(exchange, call.item.model, call.user)
        tokens, candidate = await self._router.tokenize(call.item, Origin(exchange.request_id, caller.name))
        headers = self._record_replica(exchange, candidate)
        known = self._views.current.state.capabilities.get(call.item.model, NOTHING_KNOWN)
        size = NUMBER_BYTES * len(tokens.ids)
        answer = await run_off_loop_if_large(size, text_bodies.tokenize_answer, call, tokens, known.context_tokens)
        await exchange.respond(200, answer, headers=headers)

    async def _detokenize(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        call = await self._parse(exchange, text_bodies.parse_detokenize, body)
        del body
        self._record_model(exchange, call.item.model, call.user)
        text, candidate = await self._router.detokenize(call.item, Origin(exchange.request_id, caller.name))
        headers = self._record_replica(exchange, candidate)
        await exchange.respond(200, text_bodies.detokenize_answer(text), headers=headers)

    async def _models(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        state = self._views.current.state
        models = [(spec, state.capabilities.get(name, NOTHING_KNOWN)) for name, spec in sorted(state.models.items())]
        await exchange.respond(200, encode.model_list(models, self._started))

    async def _model(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        name = ModelName(exchange.path.removeprefix("/v1/models/"))
        state = self._views.current.state
        if (spec := state.models.get(name)) is None:
            raise ModelNotFound(name)
        capabilities = state.capabilities.get(name, NOTHING_KNOWN)
        await exchange.respond(200, encode.model_object(spec, capabilities, self._started))

    def _record_model(self, exchange: Exchange, model: ModelName, user: str | None) -> None:
        exchange.notes["model"] = model
        if user is not None:
            exchange.notes["user"] = user
        if model in self._views.current.state.models:
            exchange.count_for(model)

    def _check_kind(self, model: ModelName, needed: Ability) -> None:
        """Refuses what the model is not made for, without waiting for a replica. Raises `BadRequest`."""
        capabilities = self._views.current.state.capabilities.get(model)
        if capabilities is not None and (error := refusal(model, capabilities, needed)) is not None:
            raise error

    def _check_infill(self, model: ModelName) -> None:
        """Refuses a suffix if the model can't take one. Raises `BadRequest`."""
        state = self._views.current.state
        spec, capabilities = state.models.get(model), state.capabilities.get(model, NOTHING_KNOWN)
        if spec is not None and (error := infill_refusal(spec, capabilities)) is not None:
            raise error

    def _record_replica(self, exchange: Exchange, candidate: Candidate) -> Headers:
        exchange.notes["replica_id"] = candidate.replica_id
        exchange.notes["node"] = candidate.node_name
        if not self._expose_replica:
            return []
        node = candidate.node_name.encode("ascii", "replace")
        return [(b"x-gateway-replica", candidate.replica_id.encode()), (b"x-gateway-node", node)]

    def _record_tokens(self, exchange: Exchange, model: ModelName, prompt: int, completion: int) -> None:
        exchange.notes["prompt_tokens"], exchange.notes["completion_tokens"] = prompt, completion
        self._metrics.tokens.labels(model, "prompt").inc(prompt)
        self._metrics.tokens.labels(model, "completion").inc(completion)


async def run_off_loop_if_large(size_bytes: int, function: Callable[[*Ts], T], *args: *Ts) -> T:
    """Returns `function(*args)`, computed in a thread if there is much to do."""
    if size_bytes <= LARGE_BYTES:
        return function(*args)
    return await trio.to_thread.run_sync(function, *args)


def _echoing_chunks(
    echoes: Sequence[str], request_id: RequestId, model: ModelName, created: int, *, include_usage: bool, index: int = 0
) -> CompletionChunks:
    """Returns the encoder of one choice, which begins with its prompt."""
    return CompletionChunks(request_id, model, created, include_usage=include_usage, index=index, echo=echoes[index])
