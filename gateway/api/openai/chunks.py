"""Encodes the chunks of a streamed answer, fast: everything but the text is encoded once per stream.

Both kinds of stream are used alike: `opening`, a `text` for each part, `ending`. The results are JSON texts without
framing (see `event_stream`).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final

from pydantic_core import to_json

from gateway.api.openai.encode import CHAT_ID, COMPLETION_ID, tool_call_id, usage
from gateway.api.openai.logprobs import chat_logprobs, text_logprobs
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Delta, ToolCallDelta


class ChunkEncoder(ABC):
    """The encoder of one stream. With `include_usage` a usage chunk ends it, and all others carry `"usage": null`."""

    _open: ClassVar[bytes]
    """The JSON of a choice before its text, or before the fields of its delta."""
    _close: ClassVar[bytes]
    """The JSON after the text or the fields."""
    _nothing: ClassVar[bytes]
    """The JSON between the two if there is no text."""

    def __init__(
        self, answer_id: str, kind: str, model: ModelName, created: int, *, include_usage: bool, index: int
    ) -> None:
        envelope = {"id": answer_id, "object": kind, "created": created, "model": model}
        self._envelope: Final = to_json(envelope).removesuffix(b"}")
        self._include_usage: Final = include_usage
        self._before: Final = self._envelope + b',"choices":[{"index":%d,' % index + self._open
        self._after_reason: Final = b'}],"usage":null}' if include_usage else b"}]}"
        self._after: Final = self._close + b',"logprobs":null,"finish_reason":null' + self._after_reason

    @abstractmethod
    def opening(self) -> list[bytes]:
        """Returns the chunks before the first text."""

    @abstractmethod
    def text(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> bytes:
        """Returns one chunk with the next part of the answer."""

    def part(self, item: Delta | Completion) -> bytes:
        """Returns one chunk with what the item has of the answer. The calls of a completion came in the parts
        before."""
        chunk = self.text(item.text, item.reasoning, item.tool_calls if isinstance(item, Delta) else ())
        if not item.logprobs:
            return chunk
        logprobs = self._close + b',"logprobs":' + to_json(self._logprobs(item)) + b',"finish_reason":null'
        return chunk.removesuffix(self._after) + logprobs + self._after_reason

    @abstractmethod
    def _logprobs(self, item: Delta | Completion) -> dict[str, Any]:
        """Returns the `logprobs` of a choice."""

    def ending(self, answer: Completion) -> list[bytes]:
        """Returns the chunks after the last text: the finish reason, then the token counts if they are wanted."""
        counts = usage(answer.prompt_tokens, answer.completion_tokens, answer.cached_tokens)
        return [self.finish(answer), *self.counts(counts)]

    def finish(self, answer: Completion) -> bytes:
        """Returns the chunk with the finish reason."""
        reason = b',"logprobs":null,"finish_reason":' + to_json(answer.finish_reason)
        return self._before + self._nothing + self._close + reason + self._after_reason

    def counts(self, counts: Mapping[str, Any]) -> list[bytes]:
        """Returns the chunk with the token counts of the whole answer, if it is wanted."""
        return [self._envelope + b',"choices":[],"usage":' + to_json(counts) + b"}"] if self._include_usage else []


class ChatChunks(ChunkEncoder):
    """Encodes a streamed chat answer as OpenAI's `chat.completion.chunk` objects."""

    _open = b'"delta":{'
    _close = b"}"
    _nothing = b""

    def __init__(
        self, request_id: RequestId, model: ModelName, created: int, *, include_usage: bool, index: int = 0
    ) -> None:
        kind = "chat.completion.chunk"
        super().__init__(CHAT_ID + request_id, kind, model, created, include_usage=include_usage, index=index)
        self._request_id: Final = request_id
        self._index: Final = index
        self._begun_calls: Final = set[int]()

    def opening(self) -> list[bytes]:
        """Returns one chunk, which names the role `assistant` and has an empty text."""
        return [self._before + b'"role":"assistant","content":""' + self._after]

    def text(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> bytes:
        """Returns one chunk with the next text, reasoning and parts of tool calls."""
        if not reasoning and not tool_calls:
            return self._before + b'"content":' + to_json(text) + self._after
        fields: dict[str, Any] = {"reasoning_content": reasoning} if reasoning else {}
        if text:
            fields["content"] = text
        if tool_calls:
            fields["tool_calls"] = [self._tool_call(part) for part in tool_calls]
        return self._before + to_json(fields)[1:-1] + self._after

    def _logprobs(self, item: Delta | Completion) -> dict[str, Any]:
        return chat_logprobs(item.logprobs)

    def _tool_call(self, part: ToolCallDelta) -> dict[str, Any]:
        """Returns a part of a tool call. The first part has the id and the name. Clients join the fields of all parts,
        so these come only once."""
        if part.index in self._begun_calls:
            return {"index": part.index, "function": {"arguments": part.arguments}}
        self._begun_calls.add(part.index)
        return {
            "index": part.index,
            "id": part.id or tool_call_id(self._request_id, part.index, self._index),
            "type": "function",
            "function": {"name": part.name, "arguments": part.arguments},
        }


class CompletionChunks(ChunkEncoder):
    """Encodes a streamed text completion. Reasoning has no field and stays part of the text, as in
    `encode.text_completion`. There are no tool calls."""

    _open = b'"text":'
    _close = b""
    _nothing = b'""'

    def __init__(
        self,
        request_id: RequestId,
        model: ModelName,
        created: int,
        *,
        include_usage: bool,
        index: int = 0,
        echo: str = "",
    ) -> None:
        answer_id, kind = COMPLETION_ID + request_id, "text_completion"
        super().__init__(answer_id, kind, model, created, include_usage=include_usage, index=index)
        self._echo: Final = echo
        self._offset = 0

    def opening(self) -> list[bytes]:
        """Returns the prompt if it is wanted. Otherwise the stream of a text completion begins with its text."""
        return [self.text(self._echo)] if self._echo else []

    def _logprobs(self, item: Delta | Completion) -> dict[str, Any]:
        logprobs = text_logprobs(item.logprobs, self._offset)
        self._offset += sum(len(entry.token) for entry in item.logprobs)
        return logprobs

    def text(self, text: str, reasoning: str = "", tool_calls: Sequence[ToolCallDelta] = ()) -> bytes:  # noqa: ARG002 - as the base has it
        """Returns one chunk, whose text is the reasoning followed by the text; tool calls are not used."""
        return self._before + to_json(reasoning + text) + self._after


class CountingChunks:
    """Encodes the chunks of another encoder with the token counts so far in each of them, as vLLM does with
    `continuous_usage_stats`. The other one has to be made with `include_usage`."""

    def __init__(self, encoder: ChunkEncoder) -> None:
        self._encoder: Final = encoder

    def opening(self) -> list[bytes]:
        """Returns the chunks before the first text, before which nothing is counted."""
        return self._encoder.opening()

    def part(self, item: Delta | Completion) -> bytes:
        """Returns one chunk with what the item has of the answer."""
        return _with_counts(self._encoder.part(item), item)

    def ending(self, answer: Completion) -> list[bytes]:
        """Returns the chunks after the last text."""
        reason, *counts = self._encoder.ending(answer)
        return [_with_counts(reason, answer), *counts]

    def finish(self, answer: Completion) -> bytes:
        """Returns the chunk with the finish reason."""
        return _with_counts(self._encoder.finish(answer), answer)


def _with_counts(chunk: bytes, item: Delta | Completion) -> bytes:
    return chunk.removesuffix(b"null}") + to_json(usage(item.prompt_tokens, item.completion_tokens)) + b"}"
