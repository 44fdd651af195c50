"""Turns the body of an OpenAI request into a domain request, or refuses it by the name of the wrong field.

A parameter is honoured, or accepted at the value where it changes nothing, or refused. It is never ignored, except for
what says nothing to the model. `parameter_rows.py` has them all, and `tolerance.py` reads what the classes here refuse
as it is. `null` means "not set" for every optional parameter.
`chat_template_kwargs` is an extension that other servers share; here it may contain `enable_thinking` only. Source: the
OpenAI API reference, endpoints chat/completions, completions and embeddings.

The file is longer than others because it has the bodies of three endpoints, which share most of their parameters.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from sys import getsizeof
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, Field
from pydantic_core import to_json

from gateway.api.http.json_body import (
    INVALID_VALUE,
    UNSUPPORTED_VALUE,
    Body,
    JsonBody,
    parse_object,
    read_object,
)
from gateway.api.openai.choices.requested import chat_alternatives, check_choices, repeated
from gateway.api.openai.content import Messages
from gateway.api.openai.inputs import Inputs, Prompts
from gateway.api.openai.parameter_rows import CHAT, COMPLETIONS, EMBEDDINGS
from gateway.api.openai.parameter_table import ParameterTable
from gateway.api.openai.parameters import (
    CHOICES_MAX,
    TOP_LOGPROBS_MAX,
    GenerationBody,
    Name,
    StreamOptions,
    TokenLimit,
    User,
    wire_seed,
)
from gateway.api.openai.response_format import ResponseFormat, answer_grammar
from gateway.api.openai.template_settings import THINKING, TemplateSettings, thinking_of
from gateway.api.openai.tolerance import read_rewritten
from gateway.api.openai.tools import ToolChoice, Tools, offer
from gateway.domain.errors import BadRequest
from gateway.domain.ids import ModelName
from gateway.domain.inference import (
    NO_BIAS,
    ChatMessage,
    EmbeddingInput,
    Generation,
    Sampling,
    Text,
    kept_text,
)

Call = TypeVar("Call", bound="GenerationCall")

COMPLETION_TOKENS_DEFAULT: Final = 16
"""OpenAI's default of `max_tokens` for /v1/completions; chat has none."""

RARE: Final = frozenset(
    {"response_format", "grammar", "chat_template_kwargs", "reasoning_effort", "logprobs", "top_logprobs"}
)
"""The parameters of a chat that few requests have. Others pay nothing for them."""
OBJECT_BYTES: Final = 400
"""The memory of one message, tool call or input, without its texts. This and the next two are rather too much than too
little."""
BIAS_BYTES: Final = 130
"""The memory of one entry of `logit_bias`: a place in a dictionary, an integer and a float."""
TOKEN_BYTES: Final = 40
"""The memory of one token id: an integer and the reference to it."""


@dataclass(frozen=True)
class GenerationCall:
    """A parsed request for a chat answer or a text completion: what to generate, and how to answer."""

    generations: tuple[Generation, ...]
    """The generation of each choice, in their order: `copies` times the same for each prompt."""
    stream: bool
    include_usage: bool
    """Whether a last chunk carries the token counts. It is possible only with `stream`."""
    user: str | None
    """The caller's own name for its user. It has no effect on the answer."""
    kept_bytes: int
    """About how much memory it takes while it waits and is answered."""
    ignored: tuple[str, ...] = ()
    """The parameters that were dropped because nobody knows them."""
    counts_in_each_chunk: bool = False
    """Whether each chunk carries the token counts so far. It is possible only with `include_usage`."""

    copies: int = 1
    """How many answers there are to each prompt."""
    echo: bool = False
    """Whether the text of an answer begins with its prompt."""

    @property
    def generation(self) -> Generation:
        """The first of the generations."""
        return self.generations[0]

    def echoes(self) -> Iterator[str]:
        """Yields the prompt of each choice of a completion."""
        for generation in self.generations:
            if isinstance(generation.prompt, Text):
                yield generation.prompt if isinstance(generation.prompt, str) else generation.prompt.decode()


@dataclass(frozen=True)
class ChatCall(GenerationCall):
    """A request to /v1/chat/completions."""


@dataclass(frozen=True)
class CompletionCall(GenerationCall):
    """A request to /v1/completions."""


@dataclass(frozen=True)
class EmbeddingsCall:
    """A request to /v1/embeddings; the answer has one vector for each of `inputs` (at least one), in their order."""

    model: ModelName
    inputs: tuple[EmbeddingInput, ...]
    encoding_format: Literal["float", "base64"]
    user: str | None
    kept_bytes: int
    """About how much memory it takes while it waits and is answered."""
    ignored: tuple[str, ...] = ()
    """The parameters that were dropped because nobody knows them."""


class ChatBody(GenerationBody):
    """The body of a request to /v1/chat/completions."""

    without_effect = CHAT.without_effect
    reasons = CHAT.reasons

    messages: Messages
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: TemplateSettings | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None
    max_completion_tokens: TokenLimit | None = None
    safety_identifier: User | None = None
    """The newer name of `user`."""

    def token_limit(self) -> int | None:
        """Returns the limit of generated tokens, which has two names, or None. Raises `BadRequest` if they differ."""
        old, new = self.max_tokens, self.max_completion_tokens
        if old is not None and new is not None and old != new:
            message = "'max_tokens' and 'max_completion_tokens' are two names of one limit and differ; set one."
            raise BadRequest(message, param="max_tokens", code=INVALID_VALUE)
        return old if new is None else new


class CompletionBody(GenerationBody):
    """The body of a request to /v1/completions."""

    without_effect = COMPLETIONS.without_effect
    reasons = COMPLETIONS.reasons

    prompt: Prompts
    suffix: str | None = None
    """The text that follows the answer."""
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=TOP_LOGPROBS_MAX)] | None = None

    def check(self) -> None:
        """Raises `BadRequest` for parameters that are right and do not fit together."""
        check_choices(self.prompt, n=self.n, best_of=self.best_of)
        if self.echo and self.logprobs is not None:
            message = "'echo' can't be combined with 'logprobs': the tokens of a prompt get no probabilities."
            raise BadRequest(message, param="echo", code=UNSUPPORTED_VALUE)
        if self.echo and not all(isinstance(prompt, str) for prompt in self.prompt):
            message = "'echo' can't be combined with a prompt of token ids: their text is not known."
            raise BadRequest(message, param="echo", code=UNSUPPORTED_VALUE)

    def token_limit(self) -> int:
        """Returns the limit of generated tokens, which is `COMPLETION_TOKENS_DEFAULT` if the request has none."""
        return COMPLETION_TOKENS_DEFAULT if self.max_tokens is None else self.max_tokens


class EmbeddingsBody(JsonBody):
    """The body of a request to /v1/embeddings."""

    without_effect = EMBEDDINGS.without_effect
    reasons = EMBEDDINGS.reasons

    model: Name
    input: Inputs
    encoding_format: Literal["float", "base64"] | None = None
    user: User | None = None


def _parse(
    read: Callable[[Mapping[str, Any]], Call], table: ParameterTable, body: bytes, ignore_unknown: bool = False
) -> Call:
    given = parse_object(body)
    try:
        return read(given)
    except BadRequest as refusal:
        call, ignored = read_rewritten(read, given, table, refusal, ignore_unknown=ignore_unknown)
        return replace(call, ignored=ignored)


def _chat_call(given: Mapping[str, Any]) -> ChatCall:
    parsed = read_object(ChatBody, given)
    prompt = tuple(message.as_chat_message() for message in parsed.messages)
    user = parsed.safety_identifier if parsed.user is None else parsed.user
    tools = choice = None
    if parsed.tools or parsed.tool_choice is not None:
        tools, choice = offer(parsed.tools or (), parsed.tool_choice)
    rare = {} if RARE.isdisjoint(parsed.model_fields_set) else _rare_fields(parsed, has_tools=tools is not None)
    generation = Generation(
        model=ModelName(parsed.model),
        prompt=prompt,
        sampling=_sampling(parsed, parsed.token_limit()),
        tools=tools,
        tool_choice=choice,
        single_call=tools is not None and parsed.parallel_tool_calls is False,
        **rare,
    )
    copies, options = parsed.n or 1, parsed.stream_options
    return ChatCall(
        (generation,) if copies == 1 else repeated([generation], copies),
        stream=bool(parsed.stream),
        include_usage=options is not None and _wants_usage(parsed, options),
        user=user,
        kept_bytes=_generation_bytes(generation) + OBJECT_BYTES * (copies - 1),
        counts_in_each_chunk=options is not None and options.counts_in_each_chunk,
        copies=copies,
    )


parse_chat = partial(_parse, _chat_call, CHAT)
"""Parses the body of a chat request. Raises `BadRequest`."""


def _rare_fields(parsed: ChatBody, *, has_tools: bool) -> dict[str, Any]:
    """Returns the fields of a generation that few chats ask for. Raises `BadRequest`."""
    grammar, grammar_param = answer_grammar(parsed.response_format, parsed.grammar, has_tools=has_tools)
    settings = dict(parsed.chat_template_kwargs or {})
    thinking, effort = thinking_of(settings.pop(THINKING, None), parsed.reasoning_effort)
    return {
        "thinking": thinking,
        "effort": effort,
        "template": to_json(settings).decode() if settings else None,
        "logprobs": chat_alternatives(parsed.logprobs, parsed.top_logprobs),
        "grammar": grammar,
        "grammar_param": grammar_param,
    }


def _completion_call(given: Mapping[str, Any]) -> CompletionCall:
    parsed = read_object(CompletionBody, given)
    parsed.check()
    sampling = _sampling(parsed, parsed.token_limit())
    first = Generation(
        ModelName(parsed.model),
        "",
        sampling,
        grammar=parsed.grammar,
        logprobs=parsed.logprobs,
        suffix=parsed.suffix or None,
    )
    prompts = [
        replace(first, prompt=kept_text(prompt)) if isinstance(prompt, str) else replace(first, tokens=prompt)
        for prompt in parsed.prompt
    ]
    copies, options = parsed.n or 1, parsed.stream_options
    return CompletionCall(
        repeated(prompts, copies),
        stream=bool(parsed.stream),
        include_usage=options is not None and _wants_usage(parsed, options),
        user=parsed.user,
        kept_bytes=sum(map(_generation_bytes, prompts)) + OBJECT_BYTES * len(prompts) * (copies - 1),
        counts_in_each_chunk=options is not None and options.counts_in_each_chunk,
        copies=copies,
        echo=bool(parsed.echo),
    )


parse_completion = partial(_parse, _completion_call, COMPLETIONS)
"""Parses the body of a completion request. Raises `BadRequest`."""


def parse_embeddings(body: bytes, ignore_unknown: bool = False) -> EmbeddingsCall:
    """Parses an embeddings request. Raises `BadRequest`."""
    parsed, ignored = read_body(EmbeddingsBody, body, EMBEDDINGS, ignore_unknown=ignore_unknown)
    model = ModelName(parsed.model)
    inputs = tuple(
        EmbeddingInput(model, kept_text(entry) if isinstance(entry, str) else entry) for entry in parsed.input
    )
    kept_bytes = sum(map(_input_bytes, inputs))
    encoding = parsed.encoding_format or "float"
    return EmbeddingsCall(model, inputs, encoding, parsed.user, kept_bytes, ignored=ignored)


def read_body(
    model_type: type[Body], body: bytes, table: ParameterTable, *, ignore_unknown: bool
) -> tuple[Body, tuple[str, ...]]:
    """Reads a body, and returns it with the names of the parameters that were dropped. Raises `BadRequest`.

    The common request is read here, and nothing is rewritten.
    """
    given = parse_object(body)
    try:
        return read_object(model_type, given), ()
    except BadRequest as refusal:
        read = partial(read_object, model_type)
        return read_rewritten(read, given, table, refusal, ignore_unknown=ignore_unknown)


def _sampling(body: GenerationBody, max_tokens: int | None) -> Sampling:
    """Returns the sampling parameters for a backend. What the request does not set is left to the backend."""
    return Sampling(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_p=body.top_p,
        top_k=body.top_k,
        min_p=body.min_p,
        repeat_penalty=body.repeat_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        seed=None if body.seed is None else wire_seed(body.seed),
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        logit_bias=MappingProxyType(body.logit_bias) if body.logit_bias else NO_BIAS,
        ignore_end=bool(body.ignore_eos),
        reproducible=body.reproducible,
    )


def _wants_usage(body: GenerationBody, options: StreamOptions) -> bool:
    """Returns whether the stream ends with a usage chunk. Raises `BadRequest` if there is no stream to end."""
    if not body.stream:
        message = "The 'stream_options' parameter is only allowed when 'stream' is enabled."
        raise BadRequest(message, param="stream_options", code=INVALID_VALUE)
    return bool(options.include_usage)


def _generation_bytes(generation: Generation) -> int:
    prompt, sampling = generation.prompt, generation.sampling
    texts = getsizeof(prompt) if isinstance(prompt, Text) else sum(map(_message_bytes, prompt))
    options = TOKEN_BYTES * len(generation.tokens)
    options += sum(
        map(getsizeof, (generation.tools or "", generation.grammar or "", generation.suffix or "", *sampling.stop))
    )
    return OBJECT_BYTES + texts + options + BIAS_BYTES * len(sampling.logit_bias)


def _message_bytes(message: ChatMessage) -> int:
    calls = sum(OBJECT_BYTES + getsizeof(call.id) + getsizeof(call.arguments) for call in message.tool_calls)
    texts = getsizeof(message.content) + getsizeof(message.name or "") + getsizeof(message.tool_call_id or "")
    return OBJECT_BYTES + texts + calls + (getsizeof(message.reasoning) if message.reasoning else 0)


def _input_bytes(item: EmbeddingInput) -> int:
    text = item.text
    return OBJECT_BYTES + (getsizeof(text) if isinstance(text, Text) else TOKEN_BYTES * len(text))


def body_schemas(reference: str) -> Mapping[str, Mapping[str, Any]]:
    """Returns the JSON schemas of bodies by the path that takes them. `reference` is the form of references to their
    parts, with `{model}` in it."""
    bodies: Mapping[str, type[BaseModel]] = {
        "/v1/chat/completions": ChatBody,
        "/v1/completions": CompletionBody,
        "/v1/embeddings": EmbeddingsBody,
    }
    return {path: body.model_json_schema(ref_template=reference) for path, body in bodies.items()}
