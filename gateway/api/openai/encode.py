"""Encodes answers as OpenAI's JSON objects: pure functions from domain values to UTF-8 bytes.

Source: the OpenAI API reference (the chat completion, completion, embeddings, model and error objects). `created` is in
seconds since the epoch. `reasoning_content` is an extension that other servers share. Chunks are in `chunks.py`.
"""

import math
import struct
from base64 import b64encode
from collections.abc import Iterable, Sequence
from typing import Any, Final, Literal

from pydantic_core import to_json

from gateway.api.openai.logprobs import chat_logprobs, text_logprobs
from gateway.domain.errors import BackendFailed
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Embedding, ToolCall
from gateway.domain.model_spec import Capabilities, ModelSpec

EncodingFormat = Literal["float", "base64"]
OWNER: Final = "gateway"
CHAT_ID: Final = "chatcmpl-"
"""The beginning of the `id` of a chat answer. The request id follows."""
COMPLETION_ID: Final = "cmpl-"
"""The beginning of the `id` of a text completion. The request id follows."""


def chat_completion(
    request_id: RequestId, model: ModelName, created: int, *answers: Completion, copies: int = 1
) -> bytes:
    """Encodes a chat answer that is not streamed as a `chat.completion` object, with one choice for each of
    `answers`."""
    choices = [_chat_choice(request_id, index, answer) for index, answer in enumerate(answers)]
    return _answer(
        answer_id=CHAT_ID + request_id,
        kind="chat.completion",
        model=model,
        created=created,
        choices=choices,
        counts=total_usage(answers, copies),
    )


def _chat_choice(request_id: RequestId, choice: int, answer: Completion) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["content"] = answer.text or None
        calls = enumerate(answer.tool_calls)
        message["tool_calls"] = [_tool_call(tool_call_id(request_id, index, choice), call) for index, call in calls]
    logprobs = chat_logprobs(answer.logprobs) if answer.logprobs else None
    return {"index": choice, "message": message, "logprobs": logprobs, "finish_reason": answer.finish_reason}


def _tool_call(own_id: str, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id or own_id, "type": "function", "function": function}


def tool_call_id(request_id: RequestId, index: int, choice: int = 0) -> str:
    """Returns an id for a call that the backend gave none: the client needs one to tell its result from others."""
    return f"call_{request_id}_{index}" if choice == 0 else f"call_{request_id}_{choice}_{index}"


def text_completion(
    request_id: RequestId,
    model: ModelName,
    created: int,
    *answers: Completion,
    copies: int = 1,
    echoes: Sequence[str] = (),
) -> bytes:
    """Encodes a text completion, with one choice for each of `answers`; `echoes` are the prompts before them, if they
    are wanted. The object has no field for reasoning, so that stays part of the text, as the model wrote it."""
    choices = [_text_choice(index, answer, echoes[index] if echoes else "") for index, answer in enumerate(answers)]
    return _answer(
        answer_id=COMPLETION_ID + request_id,
        kind="text_completion",
        model=model,
        created=created,
        choices=choices,
        counts=total_usage(answers, copies),
    )


def _text_choice(index: int, answer: Completion, echo: str) -> dict[str, Any]:
    logprobs = text_logprobs(answer.logprobs) if answer.logprobs else None
    text = echo + answer.reasoning + answer.text
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": answer.finish_reason}


def usage(prompt_tokens: int, completion_tokens: int, cached_tokens: int | None = None) -> dict[str, Any]:
    """Returns the `usage` object, which counts the tokens of the prompt and of the answer, and those of the prompt that
    were read from a cache, if that is known."""
    counts: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }
    if cached_tokens is not None:
        counts["prompt_tokens_details"] = {"cached_tokens": cached_tokens}
    return counts


def total_usage(answers: Sequence[Completion], copies: int) -> dict[str, Any]:
    """Returns the usage of all choices. A prompt counts once, however many answers to it there are."""
    first = answers[::copies]
    cached = [answer.cached_tokens for answer in first if answer.cached_tokens is not None]
    return usage(
        sum(answer.prompt_tokens for answer in first),
        sum(answer.completion_tokens for answer in answers),
        sum(cached) if cached else None,
    )


def _answer(
    answer_id: str, kind: str, model: ModelName, created: int, choices: list[dict[str, Any]], counts: dict[str, Any]
) -> bytes:
    return to_json(
        {"id": answer_id, "object": kind, "created": created, "model": model, "choices": choices, "usage": counts}
    )


def embeddings(model: ModelName, vectors: Sequence[Embedding], encoding_format: EncodingFormat) -> bytes:
    """Encodes the list of `vectors` in their order. base64 is that of little-endian float32.

    Raises `BackendFailed` for a vector with a NaN or an infinity, which JSON cannot express and nobody can use.
    """
    encode = _base64 if encoding_format == "base64" else _floats
    data = [
        {"object": "embedding", "index": index, "embedding": encode(_finite(embedding.vector))}
        for index, embedding in enumerate(vectors)
    ]
    tokens = sum(embedding.prompt_tokens for embedding in vectors)
    counts = {"prompt_tokens": tokens, "total_tokens": tokens}
    return to_json({"object": "list", "data": data, "model": model, "usage": counts})


def _finite(vector: tuple[float, ...]) -> tuple[float, ...]:
    """Returns the vector if it is finite. A sum is finite only if each term is: float32 values are too small to
    overflow it."""
    if not math.isfinite(sum(vector)):
        raise BackendFailed("The backend returned an embedding with a number that is not finite.")
    return vector


def _floats(vector: tuple[float, ...]) -> tuple[float, ...]:
    return vector


def _base64(vector: tuple[float, ...]) -> str:
    return b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()


def model_object(spec: ModelSpec, capabilities: Capabilities, created: int) -> bytes:
    """Encodes one model as a `model` object."""
    return to_json(_model(spec, capabilities, created))


def model_list(models: Iterable[tuple[ModelSpec, Capabilities]], created: int) -> bytes:
    """Encodes models as a list of `model` objects, in the given order and all with the same `created`."""
    return to_json({"object": "list", "data": [_model(spec, can, created) for spec, can in models]})


def _model(spec: ModelSpec, capabilities: Capabilities, created: int) -> dict[str, Any]:
    """Returns OpenAI's object, and what is known of the model's context and abilities under the names of other
    servers."""
    model: dict[str, Any] = {"id": spec.name, "object": "model", "created": created, "owned_by": OWNER}
    context_tokens = capabilities.context_tokens or spec.context_tokens
    if context_tokens is not None:
        model["max_model_len"] = context_tokens
    if known := capabilities.known():
        model["capabilities"] = known
    return model
