"""What llama.cpp says while it generates, read into one small record per chunk."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from grpclib.const import Status

from gateway.engines.llama_cpp.errors import CONTEXT_LENGTH_EXCEEDED, CallError, invalid

Param = Literal["messages", "prompt", "input"]
"""Where the text of a request came from, in OpenAI's words: what an error about its length names."""

CONTEXT_EXCEEDED_TYPE: Final = "exceed_context_size_error"
INTERNAL_ERROR: Final = 500


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of an answer. Counts are totals so far; a chunk may hold several tokens, or none."""

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_ms: float = 0.0
    generation_ms: float = 0.0
    finish: str | None = None
    """`stop` or `length` in the chunk that says why the generation ended."""


def read_chunk(raw: Mapping[str, Any], param: Param) -> Chunk:
    """One chunk of a chat or a raw completion. Raises `CallError` for a chunk that is an error."""
    raise_error(raw, param)
    text, finish = _read_choice(raw)
    timings = raw.get("timings") or {}
    usage = raw.get("usage") or {}
    return Chunk(
        text=text,
        finish=finish,
        # Only the last chunk has the usage; until then the timings count what was read from the cache separately.
        prompt_tokens=usage.get("prompt_tokens", timings.get("cache_n", 0) + timings.get("prompt_n", 0)),
        completion_tokens=usage.get("completion_tokens", timings.get("predicted_n", 0)),
        prompt_ms=timings.get("prompt_ms", 0.0),
        generation_ms=timings.get("predicted_ms", 0.0),
    )


def _read_choice(raw: Mapping[str, Any]) -> tuple[str, str | None]:
    """The text and the finish reason; the chunk that ends a chat has no choice, only totals."""
    for choice in raw.get("choices") or ():
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else delta.get("content")
        return text or "", choice.get("finish_reason")
    return "", None


def raise_error(raw: Mapping[str, Any], param: Param) -> None:
    """Raise what llama.cpp answered as `CallError`, if it is an error; do nothing otherwise."""
    error = raw.get("error")
    if error is None:
        return
    message = str(error.get("message", "llama.cpp failed without a message"))
    if error.get("type") == CONTEXT_EXCEEDED_TYPE:
        tokens, context = error["n_prompt_tokens"], error["n_ctx"]
        raise too_long(f"{param} has {tokens} tokens, too many for this model's context of {context} tokens", param)
    if error.get("code", INTERNAL_ERROR) >= INTERNAL_ERROR:
        raise CallError(Status.INTERNAL, message)
    raise invalid(message, param=param)


def too_long(message: str, param: Param) -> CallError:
    return invalid(message, param=param, code=CONTEXT_LENGTH_EXCEEDED)
