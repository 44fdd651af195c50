"""Translates between domain records and protobuf messages. Pure.

The file is longer than others because both directions of the protocol, a request and its answer, are read in one place.
"""

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any, Final, cast

from gateway.backends.metadata import (
    EFFORT_KEY,
    GRAMMAR_PARAM_KEY,
    SAMPLING_KEY,
    SUFFIX_KEY,
    TEMPLATE_KEY,
    THINKING_KEY,
    TOKENS_KEY,
)
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.token_logprobs import token_logprobs
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import RequestId
from gateway.domain.inference import (
    Completion,
    Delta,
    Embedding,
    EmbeddingInput,
    FinishReason,
    Generation,
    Sampling,
    Text,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

_Utf8Decoder: Final = codecs.getincrementaldecoder("utf-8")
TOKENS_SLACK: Final = 64
"""The number of tokens that an answer may have beyond its limit, because some backends count the last ones
differently."""
DELTAS_PER_TOKEN: Final = 4
"""The number of parts that one token may come in, from a backend that counts its tokens."""
TOKENS_MAX: Final = 1_000_000
"""The limit of tokens if the request sets none and the context size of the model is not known. No model has a larger
context."""
COUNT_DIGITS_MAX: Final = 9
ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
"""The limit of one answer's text, whatever the request says."""
NOTHING_EXPLICIT: Final = json.dumps({})
"""The sampling parameters of a request that sets none."""
CLASSIC_NUMBERS: Final = {
    "max_tokens": "Tokens",
    "temperature": "Temperature",
    "top_p": "TopP",
    "top_k": "TopK",
    "min_p": "MinP",
    "repeat_penalty": "Penalty",
    "presence_penalty": "PresencePenalty",
    "frequency_penalty": "FrequencyPenalty",
}
"""The field of `PredictOptions` that repeats each number of `SAMPLING_KEY`. The seed is not here, because it is
wrapped."""
FINISH_REASONS: Final[Mapping[str | None, FinishReason]] = {each.value: each for each in FinishReason}
"""The finish reasons by their words. Looking one up here costs much less than going through the enumeration."""


def predict_options(
    generation: Generation, request_id: RequestId, context_size: int | None = None
) -> pb.PredictOptions:
    """Returns a generation as a backend understands it. Only what the client set is set (see `SAMPLING_KEY`). The limit
    of tokens is an upper bound, so it is at most the context size of the model, if that is known.

    String fields accept UTF-8 bytes, too, and check them. The generated types do not say so, hence the casts.
    """
    options = pb.PredictOptions(CorrelationId=request_id, ModelIdentity=generation.model)
    if isinstance(generation.prompt, Text):
        _set_raw_prompt(options, generation)
    else:
        options.UseTokenizerTemplate = True
        for message in generation.prompt:
            options.Messages.add(
                role=message.role,
                content=cast("str", message.content),
                name=message.name or "",
                tool_call_id=message.tool_call_id or "",
                tool_calls=_tool_calls_text(message.tool_calls) if message.tool_calls else "",
                reasoning_content=cast("str", message.reasoning),
            )
        options.Tools = generation.tools or ""
        options.ToolChoice = generation.tool_choice or ""
        if generation.thinking is not None:
            options.Metadata[THINKING_KEY] = json.dumps(generation.thinking)
        if generation.template is not None:
            options.Metadata[TEMPLATE_KEY] = generation.template
        if generation.effort is not None:
            options.Metadata[EFFORT_KEY] = generation.effort
    if generation.logprobs is not None:
        options.Logprobs, options.TopLogprobs = 1, generation.logprobs
    if generation.grammar is not None:
        options.Grammar = generation.grammar
        options.Metadata[GRAMMAR_PARAM_KEY] = generation.grammar_param
    sampling = generation.sampling
    if context_size is not None and sampling.max_tokens is not None and sampling.max_tokens > context_size:
        sampling = replace(sampling, max_tokens=context_size)
    _set_sampling(options, sampling)
    return options


def _set_raw_prompt(options: pb.PredictOptions, generation: Generation) -> None:
    options.Prompt = cast("str", generation.prompt)
    if generation.tokens:
        options.Metadata[TOKENS_KEY] = json.dumps(generation.tokens)
    if generation.suffix is not None:
        options.Metadata[SUFFIX_KEY] = generation.suffix


def prompt_characters(generation: Generation) -> int:
    """Returns the approximate size of the request, without names and calls in messages."""
    if isinstance(generation.prompt, Text):
        return len(generation.prompt)
    return sum(len(message.content) + len(message.reasoning) for message in generation.prompt)


def _tool_calls_text(calls: Sequence[ToolCall]) -> str:
    """Returns the calls of one message as OpenAI writes them, in one JSON text (backend-protocol.md B3)."""
    return json.dumps(
        [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ],
        ensure_ascii=False,
    )


def _set_sampling(options: pb.PredictOptions, sampling: Sampling) -> None:
    """Sets what the client set, and no more: most requests set little, and each assignment to a message costs."""
    explicit = _explicit(sampling)
    if not explicit:
        options.Metadata[SAMPLING_KEY] = NOTHING_EXPLICIT
        return
    options.Metadata[SAMPLING_KEY] = json.dumps(explicit)
    for name, value in explicit.items():
        field = CLASSIC_NUMBERS.get(name)
        if field is not None and value:  # Zero is what an unset field says.
            setattr(options, field, value)
    if sampling.seed:
        options.Seed = (sampling.seed + 2**31) % 2**32 - 2**31  # wrapped into the range of an int32
    if sampling.stop:
        options.StopPrompts.extend(sampling.stop)
    if sampling.ignore_end:
        options.IgnoreEOS = True
    if sampling.logit_bias:
        options.LogitBias = json.dumps(explicit["logit_bias"])


def _explicit(sampling: Sampling) -> dict[str, Any]:
    values: dict[str, Any] = {
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop) or None,
        "logit_bias": {str(token): bias for token, bias in sampling.logit_bias.items()} or None,
        "ignore_eos": sampling.ignore_end or None,
        "reproducible": sampling.reproducible,
    }
    return {name: value for name, value in values.items() if value is not None}


def embedding_options(item: EmbeddingInput, request_id: RequestId) -> pb.PredictOptions:
    """Returns the message for one input (backend-protocol.md B3). The text is in `Embeddings` and not in `Prompt`."""
    options = pb.PredictOptions(CorrelationId=request_id, ModelIdentity=item.model)
    if isinstance(item.text, Text):
        options.Embeddings = cast("str", item.text)
    else:
        options.EmbeddingTokens.extend(item.text)
    return options


def embedding(result: pb.EmbeddingResult) -> Embedding:
    """Returns the vector. Raises `BackendFailed` if it has values that JSON cannot express."""
    vector = tuple(result.embeddings)
    if not all(map(isfinite, vector)):
        raise BackendFailed("The backend answered with a vector that holds values that are no numbers (NaN, infinity).")
    return Embedding(vector, max(0, result.prompt_tokens))


class ReplyReader:
    """Turns the replies to one generation into parts, then into its completion.

    Backends may split a UTF-8 sequence between two replies, so the text is decoded incrementally. `chat_deltas` is
    preferred if a backend fills it, because it separates reasoning and tool calls from the answer.

    `context_size` is that of the model, if it is known. No answer has more tokens, whatever the request asks for. If
    the request wants a single call, everything after the first tool call is dropped.
    """

    def __init__(self, generation: Generation, context_size: int | None = None) -> None:
        max_tokens = generation.sampling.max_tokens
        self._decoder = _Utf8Decoder("replace")
        self._max_tokens = max_tokens
        self._context_size = context_size
        known = [most for most in (max_tokens, context_size, TOKENS_MAX) if most is not None]
        self._tokens_most = min(known) + TOKENS_SLACK
        self._deltas = 0
        self._answer_bytes = 0
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._tool_calls: list[ToolCallDelta] = []
        self._single_call = generation.single_call
        self.is_after_call = False
        """Whether the first tool call is over, and it is the only one that is wanted."""

    def delta(self, reply: pb.Reply) -> Delta:
        """Turns the next reply into a part of the answer. Its token counts are totals so far."""
        self._prompt_tokens = max(self._prompt_tokens, reply.prompt_tokens)
        self._completion_tokens = max(self._completion_tokens, reply.tokens)
        if reply.chat_deltas:
            text = "".join(delta.content for delta in reply.chat_deltas)
            reasoning = "".join(delta.reasoning_content for delta in reply.chat_deltas)
            tool_calls = _tool_call_deltas(reply)
        else:
            text, reasoning, tool_calls = self._decoder.decode(reply.message), "", ()
        if self._single_call:
            text, tool_calls = self._within_first_call(text, tool_calls)
        self._tool_calls += tool_calls
        self._deltas += bool(text or reasoning or tool_calls)
        self._answer_bytes += reply.ByteSize()
        delta = Delta(text, reasoning, self._prompt_tokens, self._completion_tokens, tool_calls)
        return replace(delta, logprobs=token_logprobs(reply.logprobs)) if reply.logprobs else delta

    def _within_first_call(self, text: str, calls: tuple[ToolCallDelta, ...]) -> tuple[str, tuple[ToolCallDelta, ...]]:
        """Returns the text before the first call, and the parts of that call; what comes after it ends it."""
        known = self._tool_calls or calls
        if not known:
            return text, calls
        kept = tuple(part for part in calls if part.index == known[0].index)
        self.is_after_call |= len(kept) < len(calls) or bool(self._tool_calls and text.strip())
        return "" if self._tool_calls else text, kept

    @property
    def is_endless(self) -> bool:
        """Whether the backend has sent more than the request asked for, and so may never end. A backend that
        does not count its tokens is assumed to send each in a part of its own."""
        counted = self._completion_tokens > 0
        deltas_max = self._tokens_most * (DELTAS_PER_TOKEN if counted else 1)
        return (
            self._completion_tokens > self._tokens_most
            or self._deltas > deltas_max
            or self._answer_bytes > ANSWER_BYTES_MAX
        )

    def completion(
        self,
        finish_reason: str | None,
        *,
        text: str = "",
        reasoning: str = "",
        logprobs: tuple[TokenLogprob, ...] = (),
        cached: str = "",
    ) -> Completion:
        """Returns the completion. `text`, `reasoning` and `logprobs` are those of a unary answer, and empty after a
        stream. The rest of a split character is added to the text. `cached` is the trailer `CACHED_TOKENS`."""
        return Completion(
            finish_reason=FINISH_REASONS.get(finish_reason) or self._likely_finish_reason(),
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            text=text + self._decoder.decode(b"", final=True),
            reasoning=reasoning,
            tool_calls=_whole_tool_calls(self._tool_calls) if self._tool_calls else (),
            logprobs=logprobs,
            cached_tokens=int(cached) if cached.isdecimal() and len(cached) <= COUNT_DIGITS_MAX else None,
        )

    def _likely_finish_reason(self) -> FinishReason:
        """Returns the finish reason for a backend that gives none. It has reached the limit if it made that many
        tokens, or filled the context."""
        if self._max_tokens is not None and self._completion_tokens >= self._max_tokens:
            return FinishReason.LENGTH
        if self._context_size is not None and self._prompt_tokens + self._completion_tokens >= self._context_size:
            return FinishReason.LENGTH
        return FinishReason.TOOL_CALLS if self._tool_calls else FinishReason.STOP


def _tool_call_deltas(reply: pb.Reply) -> tuple[ToolCallDelta, ...]:
    return tuple(
        ToolCallDelta(call.index, call.id, call.name, call.arguments)
        for delta in reply.chat_deltas
        for call in delta.tool_calls
    )


def _whole_tool_calls(deltas: Sequence[ToolCallDelta]) -> tuple[ToolCall, ...]:
    """Returns the calls that came in parts, in the order in which they began."""
    parts: dict[int, list[ToolCallDelta]] = {}
    for delta in deltas:
        parts.setdefault(delta.index, []).append(delta)
    return tuple(
        ToolCall(
            # Some backends repeat id and name with every part.
            id=next((part.id for part in call if part.id), ""),
            name=next((part.name for part in call if part.name), ""),
            arguments="".join(part.arguments for part in call),
        )
        for call in parts.values()
    )
