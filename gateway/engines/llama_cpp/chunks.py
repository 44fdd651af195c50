"""Reads the output of llama.cpp into one small record per chunk."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from grpclib.const import Status

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import CONTEXT_LENGTH_EXCEEDED, CallError, invalid

Param = Literal["messages", "prompt", "input", "documents"]
"""The parameter that a request's text came from, in OpenAI's words. An error about its length names it."""

CONTEXT_EXCEEDED_TYPE: Final = "exceed_context_size_error"
INTERNAL_ERROR: Final = 500
SCHEMA_ERROR: Final = "JSON schema error at"
GRAMMAR_ERROR: Final = "failed to parse grammar"
"""The end of llama.cpp's error about a grammar, which it has been given or has made of the tools."""
TOOLS_PARAM: Final = "tools"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an answer. Counts are totals so far. A chunk may hold several tokens, or none."""

    text: str = ""
    reasoning: str = ""
    tool_calls: tuple[pb.ToolCallDelta, ...] = ()
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_ms: float = 0.0
    generation_ms: float = 0.0
    cached_tokens: int = 0
    logprobs: tuple[Mapping[str, Any], ...] = ()
    """The probabilities of the tokens, in OpenAI's form."""
    finish_reason: str | None = None
    """`stop`, `length` or `tool_calls` in the chunk that says why the generation ended, otherwise None."""

    @property
    def has_content(self) -> bool:
        """Whether the chunk has any part of an answer. A chunk without it has only counts."""
        return bool(self.text or self.reasoning or self.tool_calls or self.logprobs)


def read_chunk(
    raw: Mapping[str, Any], param: Param, grammar_param: str = TOOLS_PARAM, alternatives: int | None = None
) -> Chunk:
    """Reads one chunk of a chat or a raw completion. `alternatives` is the number of alternatives to each
    token, None for no probabilities. Raises `CallError` for a chunk that is an error."""
    raise_error(raw, param, grammar_param)
    choice = _choice(raw)
    delta = choice.get("delta", choice)
    timings = raw.get("timings") or {}
    usage = raw.get("usage") or {}
    return Chunk(
        # A chat has its text in the `content` of a delta, a raw completion in the `text` of the choice itself.
        text=delta.get("content") or delta.get("text") or "",
        reasoning=delta.get("reasoning_content") or "",
        tool_calls=tuple(_tool_call(call) for call in delta.get("tool_calls") or ()),
        finish_reason=choice.get("finish_reason"),
        # Only the last chunk has the usage; until then the timings count what was read from the cache separately.
        prompt_tokens=usage.get("prompt_tokens", timings.get("cache_n", 0) + timings.get("prompt_n", 0)),
        completion_tokens=usage.get("completion_tokens", timings.get("predicted_n", 0)),
        prompt_ms=timings.get("prompt_ms", 0.0),
        generation_ms=timings.get("predicted_ms", 0.0),
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", timings.get("cache_n", 0)),
        logprobs=() if alternatives is None else tuple(_logprobs(choice.get("logprobs") or {}, alternatives)),
    )


def _logprobs(found: Mapping[str, Any], alternatives: int) -> Iterator[Mapping[str, Any]]:
    """Yields the probabilities of the tokens that are part of the text. The end token, for one, is not."""
    for entry in found.get("content") or ():
        if entry.get("bytes"):
            yield {
                **_token(entry),
                "top_logprobs": [_token(each) for each in (entry.get("top_logprobs") or ())[:alternatives]],
            }


def _token(entry: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"token": entry["token"], "logprob": entry["logprob"], "bytes": entry["bytes"]}


def _choice(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the choice of a chunk. It is empty for the chunk that ends a chat, which has only totals."""
    return next(iter(raw.get("choices") or ()), {})


def _tool_call(call: Mapping[str, Any]) -> pb.ToolCallDelta:
    """Reads a part of a tool call. The first part has the call's id and name, and every part has a part of its
    arguments."""
    function = call.get("function") or {}
    return pb.ToolCallDelta(
        index=call.get("index", 0),
        id=call.get("id") or "",
        name=function.get("name") or "",
        arguments=function.get("arguments") or "",
    )


def raise_error(raw: Mapping[str, Any], param: Param, grammar_param: str = TOOLS_PARAM) -> None:
    """Raises llama.cpp's answer as `CallError` if it is an error, and does nothing otherwise."""
    error = raw.get("error")
    if error is None:
        return
    message = str(error.get("message", "llama.cpp failed without a message"))
    if error.get("type") == CONTEXT_EXCEEDED_TYPE:
        tokens, context = error["n_prompt_tokens"], error["n_ctx"]
        raise too_long(f"{param} has {tokens} tokens, too many for this model's context of {context} tokens", param)
    if error.get("code", INTERNAL_ERROR) >= INTERNAL_ERROR:
        raise CallError(Status.INTERNAL, message)
    raise unreadable(message, param, grammar_param)


def unreadable(message: str, param: Param, grammar_param: str = TOOLS_PARAM) -> CallError:
    """Returns the error for a request that llama.cpp refuses. It names `param`, or the parameter that a grammar comes
    from, whichever is to blame."""
    if SCHEMA_ERROR in message:
        what = message[message.index(SCHEMA_ERROR) :]
        return invalid(f"the parameters of a tool can't be used: {what}", param="tools")
    if message.endswith(GRAMMAR_ERROR) and grammar_param != TOOLS_PARAM:
        return invalid(f"{grammar_param} can't be used: llama.cpp can't read it as a grammar", param=grammar_param)
    if message.endswith(GRAMMAR_ERROR):
        return invalid("the parameters of a tool can't be used: they are too large or nested too deeply", param="tools")
    return invalid(message, param=param)


def too_long(message: str, param: Param) -> CallError:
    """Returns the INVALID_ARGUMENT error for an input that exceeds the model's context, with OpenAI's error code."""
    return invalid(message, param=param, code=CONTEXT_LENGTH_EXCEEDED)
