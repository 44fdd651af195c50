"""A request and its answer as the gateway understands them, whatever API they came through."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final, Literal

from gateway.domain.ids import ModelName, RequestId

ANYBODY: Final = "anonymous"


@dataclass(frozen=True, slots=True)
class Origin:
    """Which request, and whose: the queue is fair between callers, and traces name the request."""

    request_id: RequestId
    caller: str = ANYBODY
    """Name of the API key, or of whoever needs none."""


Text = str | bytes
"""Text of a request; as UTF-8 where it is long, since one emoji makes a `str` four times as large. See `kept_text`."""
LONG_CHARACTERS: Final = 4096

NO_BIAS: Final[Mapping[int, float]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What a model wants to have called, whole."""

    id: str
    """By which the message with the result names this call. "": the backend gave it none."""
    name: str
    arguments: str
    """JSON text, as the model wrote it: a broken one if the answer was cut short."""


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next part of a tool call. The name and the id come with its first part, the arguments bit by bit."""

    index: int
    """Which call of this answer it belongs to, from 0."""
    id: str = ""
    name: str = ""
    arguments: str = ""


def kept_text(text: str) -> Text:
    """`text` in its smaller form."""
    return text if len(text) < LONG_CHARACTERS or text.isascii() else text.encode()


@dataclass(frozen=True)
class ChatMessage:
    """One message of a conversation, as in OpenAI's chat API."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Text
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    """Of an assistant that wanted them called."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn and when to stop. `None`: the backend's own default."""

    max_tokens: int | None = None
    """None: until the model ends or its context is full."""
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
    """Token id -> what is added to its logit, -100 (never) to 100 (always)."""
    ignore_end: bool = False
    """Go on past the model's end token (for tests and measurements)."""


@dataclass(frozen=True)
class Generation:
    """Text to be generated: from a conversation through the model's own template, or from a raw prompt."""

    model: ModelName
    prompt: Text | tuple[ChatMessage, ...]
    sampling: Sampling
    tools: str | None = None
    """What a chat may call: OpenAI's `tools` array as JSON text, its keys in a fixed order. None: nothing."""
    tool_choice: str | None = None
    """`required`, or the JSON text of OpenAI's object that names one tool. None: the model decides."""
    thinking: bool | None = None
    """Whether the model is to think before it answers. None: as its template has it."""


@dataclass(frozen=True)
class EmbeddingInput:
    """One text (or its token ids) to be turned into one vector."""

    model: ModelName
    text: Text | tuple[int, ...]


class FinishReason(StrEnum):
    """Why a generation ended, in OpenAI's words."""

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Delta:
    """The next part of an answer. Counts are totals so far, not differences; 0: the backend does not count."""

    text: str
    reasoning: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    tool_calls: tuple[ToolCallDelta, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """How a generation ended; the text of a unary one is in `text`, a streamed one's came in pieces.

    `tool_calls` are whole in both cases: they can be acted on only when all of them are there.
    """

    finish_reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()


@dataclass(frozen=True, slots=True)
class Embedding:
    """The embedding vector of one text, with the number of tokens that were read for it."""

    vector: tuple[float, ...]
    prompt_tokens: int
