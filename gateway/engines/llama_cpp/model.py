"""llama.cpp with one loaded model, through xllamacpp. Every method blocks and has to run in a thread."""

import http.client
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final
from urllib.parse import urlsplit

import xllamacpp
from grpclib.const import Status

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.capabilities import kind_of, metadata_of
from gateway.engines.llama_cpp.chunks import Param, raise_error, too_long, unreadable
from gateway.engines.llama_cpp.errors import CallError, LoadError, invalid
from gateway.engines.llama_cpp.forms.answer_start import answer_start
from gateway.engines.llama_cpp.forms.call_format import PLAIN, CallFormat, find_call_format
from gateway.engines.llama_cpp.generation import Sink
from gateway.engines.llama_cpp.infill import InfillTokens, find_infill_tokens
from gateway.engines.llama_cpp.options import LoadOptions
from gateway.engines.llama_cpp.requests import GenerationRequest
from gateway.engines.llama_cpp.sampling import SamplingLimits
from gateway.engines.llama_cpp.template_settings import names_in
from gateway.engines.llama_cpp.tools import takes_text_arguments
from gateway.gguf.errors import BrokenHeader
from gateway.gguf.files import read_file
from gateway.gguf.header import Header

log = logging.getLogger(__name__)

LISTENER_TIMEOUT_SECONDS: Final = 60.0
"""The time limit for llama.cpp's own listener, which needs no slot but answers only after the current batch."""
LISTENER_THREADS: Final = 2
MIB_BYTES: Final = 2**20
LOG_ERRORS_ONLY: Final = 1
FLASH_ATTENTION: Final = {
    "auto": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_AUTO,
    "on": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    "off": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}
TOPOLOGY: Final = Path("/sys/devices/system/cpu")


class Model:
    """A loaded model. It must not be used after `unload`."""

    def __init__(self, options: LoadOptions) -> None:
        """Loads the model. That takes seconds to minutes, during which no other thread of this process runs (pitfall
        34).

        Raises `LoadError`.
        """
        self.options = options
        self._api_key = secrets.token_urlsafe()
        header = _read_header(options.file)
        self.kind = kind_of(header, options)
        parameters = _parameters(options, self._api_key, header)
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise LoadError(f"llama.cpp can't load {options.file}: {error}") from error
        self._embedding = Lock()
        """The lock that is held while llama.cpp embeds. llama.cpp pools only inputs of one micro-batch together, so
        the vectors of longer parallel inputs would be wrong."""
        self.limits = self._read_limits(header)
        self.metadata = metadata_of(self.kind, self.limits, self._ask("GET", "/props"))
        if self.limits.context_tokens < options.context_tokens:
            log.warning("the model was trained for a context of %d tokens only", self.limits.context_tokens)

    def unload(self) -> None:
        """Frees the memory, after the last call has returned."""
        del self._server

    def check_kind(self, ability: str) -> None:
        """Raises `CallError` that says which kind the model is, unless it has the ability, a field of `ModelKind`."""
        self.kind.check(ability, self.options.identity)

    def generate(self, request: GenerationRequest, sink: Sink) -> None:
        """Runs a generation, and passes every chunk to `sink` until that returns True. Raises `CallError` for a
        malformed request."""
        server = self._server
        handle = server.handle_chat_completions if request.is_chat else server.handle_completions
        try:
            handle(self._body(request), sink)
        except (ValueError, RuntimeError) as error:
            # llama.cpp raises while it prepares a request and never later. A later error is a chunk.
            raise unreadable(str(error), request.param, request.grammar_param) from error

    def _body(self, request: GenerationRequest) -> Mapping[str, Any]:
        """Returns the whole body of a request. Raises `CallError` for a chat that the template refuses."""
        if request.chat is None:
            return request.body
        opening = "" if request.call is None else request.call.opening
        return {**request.body, "prompt": answer_start(self._render(request.chat)) + opening}

    def _render(self, chat: Mapping[str, Any]) -> str:
        """Returns the prompt that the model's chat template makes of a chat. Raises `CallError`."""
        return str(self._ask("POST", "/apply-template", chat, "messages")["prompt"])

    def embed(self, item: str | Sequence[int]) -> Mapping[str, Any]:
        """Returns OpenAI's embedding object for one input. Raises `CallError`."""
        with self._embedding:
            answer: Mapping[str, Any] = self._server.handle_embeddings({"input": item})
        if "error" in answer:
            self._check_length(item)
            raise_error(answer, "input")
        return answer

    def rerank(self, query: str, documents: Sequence[str], is_over: Callable[[], bool]) -> pb.RerankResult:
        """Scores the documents, as many at a time as there are slots, until `is_over` says that nobody waits. Raises
        `CallError`."""
        result = pb.RerankResult(usage=pb.Usage())
        for first in range(0, len(documents), self.options.parallel):
            if is_over():
                break
            some = documents[first : first + self.options.parallel]
            with self._embedding:
                answer: Mapping[str, Any] = self._server.handle_rerank({"query": query, "documents": list(some)})
            if "error" in answer:
                for text in some:
                    self._check_pair(query, text)
                raise_error(answer, "documents")
            for each in answer["results"]:
                index, score = first + each["index"], each["relevance_score"]
                result.results.add(index=index, text=documents[index], relevance_score=score)
            result.usage.prompt_tokens += answer["usage"]["prompt_tokens"]
        result.usage.total_tokens = result.usage.prompt_tokens
        return result

    def tokenize(self, text: str, *, add_special: bool = True) -> list[int]:
        """Returns the tokens of a raw prompt as a completion counts them, including its special ones."""
        return [int(token["id"]) for token in self.token_texts(text, add_special=add_special)]

    def token_texts(self, text: str, *, add_special: bool = True) -> Sequence[Mapping[str, Any]]:
        """Returns the tokens of a text, each with its `id` and its `piece`: a text, or bytes as an array of numbers."""
        body = {"content": text, "add_special": add_special, "parse_special": True, "with_pieces": True}
        tokens: Sequence[Mapping[str, Any]] = self._ask("POST", "/tokenize", body)["tokens"]
        return tokens

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Returns the text of the tokens. Raises `CallError` for ids that the vocabulary does not have."""
        if any(not 0 <= token < self.limits.vocabulary_size for token in tokens):
            raise invalid(f"tokens must be token ids below {self.limits.vocabulary_size}", param="tokens")
        return str(self._ask("POST", "/detokenize", {"tokens": list(tokens)})["content"])

    def _check_pair(self, query: str, document: str) -> None:
        """Raises `CallError` for a query and a document that are together longer than the batch."""
        count = len(self.tokenize(query)) + len(self.tokenize(document))
        limit = min(self.options.batch_tokens, self.limits.context_tokens)
        if count > limit:
            raise too_long(
                f"the query and one of the documents have {count} tokens; this model reads at most {limit} at once",
                "documents",
            )

    def _check_length(self, item: str | Sequence[int]) -> None:
        """Raises `CallError` for an input that is longer than the batch. llama.cpp reports it as an internal error, but
        it is the user's."""
        tokens = self.tokenize(item) if isinstance(item, str) else item
        limit = min(self.options.batch_tokens, self.limits.context_tokens)
        if len(tokens) > limit:
            raise too_long(f"input has {len(tokens)} tokens; this model embeds at most {limit} at once", "input")

    def _read_limits(self, header: Header) -> SamplingLimits:
        (entry,) = self._ask("GET", "/v1/models")["data"]
        properties = self._ask("GET", "/props")
        abilities = properties["chat_template_caps"]
        return SamplingLimits(
            context_tokens=entry["meta"]["n_ctx"],
            vocabulary_size=entry["meta"]["n_vocab"],
            takes_tools=abilities["supports_tools"],
            call_format=self._read_call_format() if abilities["supports_tools"] else PLAIN,
            template_names=names_in(properties["chat_template"] + properties.get("chat_template_tool_use", "")),
            infill=self._find_infill_tokens(header) if self.kind.generates else None,
            reproducible=self.options.reproducible,
            parses_arguments=abilities["supports_object_arguments"],
            takes_text_arguments=abilities["supports_object_arguments"] and takes_text_arguments(self._render),
        )

    def _read_call_format(self) -> CallFormat:
        try:
            return find_call_format(self._render)
        except CallError as error:
            log.info("the template can't write a tool call: %s", error)
            return PLAIN

    def _find_infill_tokens(self, header: Header) -> InfillTokens | None:
        plain = partial(self.tokenize, add_special=False)
        return find_infill_tokens(header.metadata, plain, self.tokenize(""))

    def _ask(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, param: Param = "prompt"
    ) -> Mapping[str, Any]:
        """Asks llama.cpp's own HTTP listener, for everything that xllamacpp has no method for."""
        connection = http.client.HTTPConnection(
            str(urlsplit(self._server.listening_address).netloc), timeout=LISTENER_TIMEOUT_SECONDS
        )
        headers = {"authorization": f"Bearer {self._api_key}", "content-type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise CallError(Status.INTERNAL, f"llama.cpp did not answer {path}: {error}") from error
        finally:
            connection.close()
        raise_error(answer, param)
        return answer  # type: ignore[no-any-return]  # an object: every answer of the listener is one


def _read_header(file: Path) -> Header:
    """Returns the header of the model's file. Raises `LoadError`."""
    try:
        return read_file(file)
    except (OSError, BrokenHeader) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LoadError(f"can't load {file}: {reason}") from error


def _parameters(options: LoadOptions, api_key: str, header: Header) -> xllamacpp.CommonParams:
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(options.file)
    parameters.n_parallel = options.parallel
    parameters.n_ctx = options.context_tokens * options.parallel
    parameters.n_batch = parameters.n_ubatch = options.batch_tokens
    parameters.n_gpu_layers = options.gpu_layers
    threads = options.threads or physical_cores()
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = threads
    # A ranking is an embedding with one number.
    parameters.embedding = options.embeddings or kind_of(header, options).reranks
    parameters.pooling_type = _pooling_type(options, header)
    parameters.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    parameters.verbosity = LOG_ERRORS_ONLY
    # Prompts of past requests in RAM. The planner has reserved that much for this model (P2).
    parameters.cache_ram_mib = -(-options.prompt_cache_bytes // MIB_BYTES)
    # Each slot has a cache of its own, so a prompt has to be kept elsewhere only when another one takes its slot.
    parameters.cache_idle_slots = False
    # Each request says whether its last message is continued: one with tool calls can't be.
    parameters.prefill_assistant = False
    _close_listener(parameters, api_key)
    return parameters


def _close_listener(parameters: xllamacpp.CommonParams, api_key: str) -> None:
    """Closes llama.cpp's HTTP listener to others: xllamacpp always opens it, so it gets the loopback and a key that
    nobody else knows."""
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = 0
    parameters.api_keys = [api_key]
    parameters.n_threads_http = LISTENER_THREADS
    parameters.ui = False
    parameters.endpoint_slots = False


def _pooling_type(options: LoadOptions, header: Header) -> xllamacpp.llama_pooling_type:
    """Returns how llama.cpp pools. It ranks only if it is told so, whatever the file says."""
    pooling = options.pooling
    if kind_of(header, options).reranks:
        pooling = "rank"
    elif pooling == "auto":
        pooling = "unspecified" if f"{header.architecture}.pooling_type" in header.metadata else "mean"
    return xllamacpp.llama_pooling_type[f"LLAMA_POOLING_TYPE_{pooling.upper()}"]


def physical_cores() -> int:
    """Returns the number of cores that this process may use. Two hardware threads of one core only slow each other down
    here."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    return len({_siblings(cpu) for cpu in cpus})


def _siblings(cpu: int) -> str:
    """Returns the name of the core of `cpu`, or the cpu itself if the system does not say."""
    try:
        return (TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:
        return str(cpu)
