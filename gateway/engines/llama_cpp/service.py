"""The RPCs of the engine. It has at most one model, which LoadModel loads."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from threading import Event
from types import MappingProxyType
from typing import Any

from gateway.backends.metadata import ADD_SPECIAL_KEY, CACHED_TOKENS, FINISH_REASON, HEALTHY
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.chunks import Chunk, read_chunk
from gateway.engines.llama_cpp.dispatch import Call, Method
from gateway.engines.llama_cpp.errors import LoadError, draining, identity_mismatch, not_loaded
from gateway.engines.llama_cpp.forms.forced_call import CallReader
from gateway.engines.llama_cpp.generation import RunningGeneration
from gateway.engines.llama_cpp.model import Model
from gateway.engines.llama_cpp.options import LoadOptions, load_options
from gateway.engines.llama_cpp.requests import GenerationRequest, embedding_input, generation_request
from gateway.engines.llama_cpp.slots import Slots
from gateway.engines.llama_cpp.text_calls import best_of, rerank_input, tokenization


@dataclass(frozen=True)
class Loaded:
    """The loaded model with the slots in which its calls run."""

    model: Model
    slots: Slots

    def serves(self, options: LoadOptions) -> bool:
        """Returns whether a LoadModel call with these options asks for this very model: the same identity and the same
        file."""
        return (self.model.options.identity, self.model.options.file) == (options.identity, options.file)


class EngineService:
    """The RPCs. They run on the event loop. Blocking code runs in a slot's thread or, if it needs no slot, in the
    loop's own threads."""

    def __init__(self) -> None:
        self._loaded: Loaded | None = None
        self._changing = asyncio.Lock()
        """The lock that is held while a model is loaded or unloaded."""
        self._loads: set[asyncio.Task[pb.Result]] = set()
        self._draining = False

    @property
    def methods(self) -> Mapping[str, Method]:
        """The handlers by the name of their RPC. An RPC that is missing here is answered with UNIMPLEMENTED."""
        return MappingProxyType(
            {
                "Health": self.health,
                "Status": self.status,
                "LoadModel": self.load_model,
                "Free": self.free,
                "ModelMetadata": self.model_metadata,
                "Predict": self.predict,
                "PredictStream": self.predict_stream,
                "Embedding": self.embedding,
                "TokenizeString": self.tokenize_string,
                "Detokenize": self.detokenize,
                "Rerank": self.rerank,
            }
        )

    def drain(self) -> None:
        """Refuses new calls from now on. Open calls continue."""
        self._draining = True

    async def health(self, call: Call[pb.HealthMessage]) -> None:
        """Answers OK as long as the process lives, also without a model and while draining."""
        await call.receive()
        await call.send(pb.Reply(message=HEALTHY))

    async def status(self, call: Call[pb.HealthMessage]) -> None:
        """Answers with the state of the engine. READY means that at least one slot is free."""
        await call.receive()
        await call.send(pb.StatusResponse(state=self._state()))

    def _state(self) -> pb.StatusResponse.State:
        if self._changing.locked():
            return pb.StatusResponse.BUSY
        if self._loaded is None:
            return pb.StatusResponse.UNINITIALIZED
        return pb.StatusResponse.READY if self._loaded.slots.has_free else pb.StatusResponse.BUSY

    async def load_model(self, call: Call[pb.ModelOptions]) -> None:
        """Loads a model. If the client leaves, the load continues (L4) and its result is kept."""
        request = await call.receive()
        self._refuse_when_draining()
        load = asyncio.create_task(self._load(request))
        self._loads.add(load)
        load.add_done_callback(self._loads.discard)
        await call.send(await asyncio.shield(load))

    async def _load(self, request: pb.ModelOptions) -> pb.Result:
        try:
            options = load_options(request)
            async with self._changing:
                await self._change_to(options)
        except LoadError as error:
            return pb.Result(success=False, message=str(error))
        return pb.Result(success=True, message=f"{options.identity!r} is loaded")

    async def _change_to(self, options: LoadOptions) -> None:
        """Loads the model unless this very model is loaded: LoadModel may be repeated."""
        if self._loaded is None:
            model = await asyncio.to_thread(Model, options)
            self._loaded = Loaded(model, Slots(options.parallel))
        elif not self._loaded.serves(options):
            loaded = self._loaded.model.options
            raise LoadError(f"already loaded: {loaded.identity!r} from {loaded.file}")

    async def free(self, call: Call[pb.HealthMessage]) -> None:
        """Frees the model. New calls find no model at once, open calls finish, then the memory is freed."""
        await call.receive()
        async with self._changing:
            loaded, self._loaded = self._loaded, None
            if loaded is not None:
                await loaded.slots.wait_idle()
                loaded.slots.close()
                # The last reference is dropped where waiting for llama.cpp's own threads (up to a second) blocks
                # nobody.
                await asyncio.to_thread(loaded.model.unload)
        await call.send(pb.Result(success=True))

    async def model_metadata(self, call: Call[pb.ModelOptions]) -> None:
        """Answers with what the loaded model can do. Raises `CallError` if there is none."""
        await call.receive()
        if self._loaded is None:
            raise not_loaded()
        await call.send(self._loaded.model.metadata)

    async def predict_stream(self, call: Call[pb.PredictOptions]) -> None:
        """Answers with a reply for each part of the answer and the counts so far. The last reply has only the totals
        and the timings."""
        last = Chunk()
        async with self._open_generation(await call.receive()) as generation:
            while chunks := await generation.next_chunks():
                for chunk in chunks:
                    last = _later(last, chunk)
                    if chunk.has_content:
                        await call.send(_reply([chunk]))
        await call.send(_last_reply(last, []))
        call.trailers.update(_trailers(last))

    async def predict(self, call: Call[pb.PredictOptions]) -> None:
        """Answers with the whole generation in one reply; like a stream it can be cancelled at any time."""
        last, deltas = Chunk(), list[Chunk]()
        async with self._open_generation(await call.receive()) as generation:
            while chunks := await generation.next_chunks():
                for chunk in chunks:
                    last = _later(last, chunk)
                    if chunk.has_content:
                        deltas.append(chunk)
        await call.send(_last_reply(last, deltas))
        call.trailers.update(_trailers(last))

    @asynccontextmanager
    async def _open_generation(self, options: pb.PredictOptions) -> AsyncIterator[RunningGeneration]:
        loaded = self._loaded_for(options.ModelIdentity)
        loaded.model.check_kind("generates")
        request = generation_request(options, loaded.model.limits)
        generation = RunningGeneration(loaded.slots, partial(loaded.model.generate, request), _reader(request))
        try:
            yield generation
        finally:
            generation.cancel()

    async def embedding(self, call: Call[pb.PredictOptions]) -> None:
        """Answers with the embedding of one input, computed in a slot. Raises `CallError` if no slot is free."""
        request = await call.receive()
        loaded = self._loaded_for(request.ModelIdentity)
        loaded.model.check_kind("embeds")
        item = embedding_input(request, loaded.model.limits)
        answer = await loaded.slots.start(loaded.model.embed, item)
        await call.send(_embedding_result(answer))

    async def tokenize_string(self, call: Call[pb.PredictOptions]) -> None:
        """Answers with the token ids of a prompt and their number, without taking a slot. Raises `CallError`."""
        request = await call.receive()
        model = self._loaded_for(request.ModelIdentity).model
        add_special = request.Metadata.get(ADD_SPECIAL_KEY) != "false"
        tokens = await asyncio.to_thread(model.token_texts, request.Prompt, add_special=add_special)
        await call.send(tokenization(tokens))

    async def detokenize(self, call: Call[pb.DetokenizeRequest]) -> None:
        """Answers with the text of tokens, without taking a slot. Raises `CallError`."""
        request = await call.receive()
        model = self._loaded_for(request.ModelIdentity).model
        await call.send(pb.DetokenizeResponse(content=await asyncio.to_thread(model.detokenize, request.tokens)))

    async def rerank(self, call: Call[pb.RerankRequest]) -> None:
        """Answers with the scores of documents, computed in a slot. Raises `CallError` if no slot is free."""
        request = await call.receive()
        loaded = self._loaded_for(request.ModelIdentity)
        loaded.model.check_kind("reranks")
        query, documents = rerank_input(request)
        over = Event()
        try:
            result = await loaded.slots.start(loaded.model.rerank, query, documents, over.is_set)
        finally:
            over.set()
        await call.send(best_of(result, request.top_n))

    def _loaded_for(self, wanted: str) -> Loaded:
        """Returns the model if this call may use it: not while draining, and only under its own name (H5)."""
        self._refuse_when_draining()
        if self._loaded is None:
            raise not_loaded()
        identity = self._loaded.model.options.identity
        if wanted not in ("", identity):
            raise identity_mismatch(wanted, identity)
        return self._loaded

    def _refuse_when_draining(self) -> None:
        if self._draining:
            raise draining()


def _trailers(whole: Chunk) -> Mapping[str, str]:
    return {FINISH_REASON: whole.finish_reason or "stop", CACHED_TOKENS: str(whole.cached_tokens)}


def _reader(request: GenerationRequest) -> Callable[[Mapping[str, Any]], Chunk]:
    """Returns what reads the chunks of one generation."""
    read = partial(read_chunk, param=request.param, grammar_param=request.grammar_param, alternatives=request.logprobs)
    if request.call is None:
        return read
    call = CallReader(request.call)
    return lambda raw: call.read(read(raw))


def _later(known: Chunk, chunk: Chunk) -> Chunk:
    """Returns what is known of the whole answer after `chunk`. Its counts are totals; the finish reason comes only
    once."""
    return replace(chunk, finish_reason=chunk.finish_reason or known.finish_reason)


def _reply(deltas: Sequence[Chunk]) -> pb.Reply:
    """Returns the next part of an answer, with the counts of its last piece.

    `message` has the text. Everything else has its place in `chat_deltas`, which then contain the text, too, because a
    reader of those reads nothing else.
    """
    text = "".join(delta.text for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    tool_calls = [call for delta in deltas for call in delta.tool_calls]
    logprobs = [entry for delta in deltas for entry in delta.logprobs]
    reply = pb.Reply(message=text.encode())
    if reasoning or tool_calls:
        reply.chat_deltas.add(content=text, reasoning_content=reasoning, tool_calls=tool_calls)
    if logprobs:
        reply.logprobs = json.dumps({"content": logprobs}).encode()
    if deltas:
        reply.tokens, reply.prompt_tokens = deltas[-1].completion_tokens, deltas[-1].prompt_tokens
    return reply


def _last_reply(whole: Chunk, deltas: Sequence[Chunk]) -> pb.Reply:
    """Returns the totals and timings, and everything that was not sent yet."""
    reply = _reply(deltas)
    reply.tokens, reply.prompt_tokens = whole.completion_tokens, whole.prompt_tokens
    reply.timing_prompt_processing, reply.timing_token_generation = whole.prompt_ms, whole.generation_ms
    return reply


def _embedding_result(answer: Mapping[str, Any]) -> pb.EmbeddingResult:
    vector = answer["data"][0]["embedding"]
    tokens = answer["usage"]["prompt_tokens"]
    return pb.EmbeddingResult(
        embeddings=vector, prompt_tokens=tokens, tokens=tokens, dim=len(vector), layout=pb.EMBEDDING_LAYOUT_FINAL
    )
