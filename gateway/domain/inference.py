"""A request and its answer as the gateway understands them, in any dialect."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from gateway.domain.ids import ModelName, RequestId

INT32_MAX: Final = 2**31 - 1
"""The largest integer of a message to a backend or a worker, for token ids and counts, too (backend-protocol.md)."""
ANYBODY: Final = "anonymous"


@dataclass(frozen=True, slots=True)
class Origin:
    """The id of a request and its caller. The queue is fair between callers, and traces name the request."""

    request_id: RequestId
    caller: str = ANYBODY
    """The name of the API key, or the name that stands for callers without a key."""


Text = str | bytes
"""The text of a request. A long one is UTF-8, because one emoji makes a `str` four times as large. See `kept_text`."""
LONG_CHARACTERS: Final = 4096

NO_BIAS: Final[Mapping[int, float]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A complete tool call of a model."""

    id: str
    """The id by which the message with the result names this call. It is empty if the backend gave none."""
    name: str
    arguments: str
    """The arguments as JSON text, as the model wrote it. It is incomplete if the answer was cut short, here and in the
    history of a later request."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next part of a tool call. The name and the id come with its first part, the arguments bit by bit."""

    index: int
    """The index of the call within this answer, from 0."""
    id: str = ""
    name: str = ""
    arguments: str = ""


def kept_text(text: str) -> Text:
    """Returns `text` in its smaller form."""
    return text if len(text) < LONG_CHARACTERS or text.isascii() else text.encode()


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation, as in OpenAI's chat API."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """The tool calls of an assistant's message."""
    reasoning: Text = ""
    """The reasoning of an assistant's message, for templates that repeat it."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when to stop. None means the backend's own default."""

    max_tokens: int | None = None
    """The limit. None means until the model ends or its context is full."""
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: Mapping[int, float] = field(default_factory=lambda: NO_BIAS)
    """The number that is added to the logit of each token id, from -100 (never) to 100 (always)."""
    ignore_end: bool = False
    """Whether to continue after the model's end token (for tests and measurements)."""
    reproducible: bool | None = None
    """Whether an equal request gets an equal answer, which costs the prompt cache. None means as the model says."""


@dataclass(frozen=True)
class Generation:
    """A text to be generated, from a conversation through the model's own template or from a raw prompt."""

    model: ModelName
    prompt: Text | tuple[ChatMessage, ...]
    sampling: Sampling
    tools: str | None = None
    """The tools that a chat may call: OpenAI's `tools` array as JSON text, its keys in a fixed order. None means no
    tool."""
    tool_choice: str | None = None
    """`required`, or the JSON text of OpenAI's object that names one tool. None means that the model decides."""
    thinking: bool | None = None
    """Whether the model should reason before it answers. None means as its template says."""
    single_call: bool = False
    """Whether the answer ends after its first tool call."""
    grammar: str | None = None
    """The grammar (GBNF) of the whole answer, which then begins without reasoning. None means any text."""
    template: str | None = None
    """Further settings of the model's chat template, as the JSON text of an object."""
    effort: str | None = None
    """How much the model should reason, in words that some templates read. Others do not change for it."""
    logprobs: int | None = None
    """The number of alternatives that are told for each token beside its own probability. None means no
    probabilities."""
    tokens: tuple[int, ...] = ()
    """The token ids of a raw prompt, which has no text then."""
    grammar_param: str = "grammar"
    """The parameter that the grammar was made from. Errors about the grammar name it."""
    suffix: str | None = None
    """The text that follows the answer to a raw prompt. None means that the answer only continues the prompt."""


@dataclass(frozen=True)
class EmbeddingInput:
    """One text (or its token ids) to be turned into one vector."""

    model: ModelName
    text: Text | tuple[int, ...]


@dataclass(frozen=True)
class RerankInput:
    """Documents to be ordered by how well they answer a query."""

    model: ModelName
    query: Text
    documents: tuple[Text, ...]
    top_n: int | None = None
    """The number of documents to return. None means all."""


@dataclass(frozen=True)
class TokenizeInput:
    """A text to be divided into tokens."""

    model: ModelName
    text: Text
    add_special: bool
    """Whether tokens are added that begin or end each prompt of the model."""


@dataclass(frozen=True)
class DetokenizeInput:
    """Token ids to be joined to a text."""

    model: ModelName
    tokens: tuple[int, ...]


class FinishReason(StrEnum):
    """The reason why a generation ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token with the logarithm of its probability."""

    token: str
    logprob: float
    utf8: tuple[int, ...] = ()
    """The bytes of the token, which may be a part of a character."""
    top: tuple["TokenLogprob", ...] = ()
    """The most likely tokens at this place."""


@dataclass(frozen=True, slots=True)
class Delta:
    """The next part of an answer. Counts are totals so far and not differences. 0 means that the backend does not
    count."""

    text: str
    reasoning: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_calls: tuple[ToolCallDelta, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """The end of a generation. `text` is the text of a unary answer; that of a streamed one came in parts.

    `tool_calls` are complete in both cases, because nobody can act on an incomplete one.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    cached_tokens: int | None = None
    """The number of tokens of the prompt that were read from a cache. None means that the backend does not say."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The embedding vector of one text, with the number of tokens that were read for it."""

    vector: tuple[float, ...]
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """The documents that answer a query best."""

    scores: tuple[tuple[int, float], ...]
    """The index and the score of each, the best first. The range of scores is the model's own."""
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a text."""

    ids: tuple[int, ...]
    texts: tuple[bytes, ...]
    """The bytes of each, which need not be whole characters. It is empty if the backend does not say."""
