"""A PredictOptions, read into what llama.cpp is asked; pure."""

from dataclasses import dataclass
from typing import Any, Final

from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.chunks import Param
from gateway.engines.llama_cpp.errors import invalid
from gateway.engines.llama_cpp.sampling import Body, Limits, parse_json, sampling_body

REFUSED_FIELDS: Final = {
    "Tools": "tools",
    "ToolChoice": "tool_choice",
    "Grammar": "grammar",
    "Images": "messages",
    "Videos": "messages",
    "Audios": "messages",
    "Logprobs": "logprobs",
    "TopLogprobs": "top_logprobs",
    "NegativePrompt": "negative_prompt",
}
"""Fields that would change the answer and that we don't honour, with OpenAI's name for each: refused, never ignored."""

STREAMED: Final[Body] = {
    "stream": True,
    "stream_options": {"include_usage": True},
    # Chunks are not tokens: the counts ride on each chunk.
    "timings_per_token": True,
    # A chunk per prompt batch, so that a call can be cancelled before its first token.
    "return_progress": True,
}


@dataclass(frozen=True)
class GenerationRequest:
    body: Body
    param: Param
    """`messages`: a chat, through the model's template; `prompt`: raw text."""


def generation_request(options: pb.PredictOptions, limits: Limits) -> GenerationRequest:
    """Raises `CallError` (INVALID_ARGUMENT) that names the parameter."""
    for field, param in REFUSED_FIELDS.items():
        if getattr(options, field):
            raise invalid(f"{field} is not supported by the llama-cpp engine", param=param)
    body = STREAMED | sampling_body(options, limits)
    if options.UseTokenizerTemplate:
        return GenerationRequest({**body, "messages": _messages(options), "reasoning_format": "none"}, "messages")
    return GenerationRequest({**body, "prompt": options.Prompt}, "prompt")


def embedding_input(options: pb.PredictOptions, limits: Limits) -> str | list[int]:
    """One text or the ids of its tokens. Raises `CallError` (INVALID_ARGUMENT)."""
    tokens = list(options.EmbeddingTokens)
    if not (options.Embeddings or tokens):
        raise invalid("input must not be empty", param="input")
    if any(not 0 <= token < limits.vocabulary_size for token in tokens):
        raise invalid(f"input must be token ids below {limits.vocabulary_size}", param="input")
    return options.Embeddings or tokens


def _messages(options: pb.PredictOptions) -> list[dict[str, Any]]:
    if not options.Messages:
        raise invalid("messages must not be empty", param="messages")
    return [_message(message) for message in options.Messages]


def _message(message: pb.Message) -> dict[str, Any]:
    optional = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
        "tool_calls": _tool_calls(message.tool_calls),
    }
    return {
        "role": message.role,
        "content": message.content,
        **{name: value for name, value in optional.items() if value},
    }


def _tool_calls(text: str) -> Any:  # noqa: ANN401 - a template's business
    return parse_json(text, "messages") if text else None
