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

from gateway.domain.errors import BackendFailed
from gateway.domain.ids import ModelName, RequestId
from gateway.domain.inference import Completion, Embedding, ToolCall

EncodingFormat = Literal["float", "base64"]
OWNER: Final = "gateway"


def chat_completion(request_id: RequestId, model: ModelName, created: int, answer: Completion) -> bytes:
    """Encodes a chat answer that is not streamed as a `chat.completion` object."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    if answer.tool_calls:
        message["content"] = answer.text or None
        message["tool_calls"] = [_tool_call(request_id, index, call) for index, call in enumerate(answer.tool_calls)]
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": answer.finish_reason}
    return _answer(
        answer_id=chat_id(request_id),
        kind="chat.completion",
        model=model,
        created=created,
        choice=choice,
        answer=answer,
    )


def _tool_call(request_id: RequestId, index: int, call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id or tool_call_id(request_id, index), "type": "function", "function": function}


def tool_call_id(request_id: RequestId, index: int) -> str:
    """Returns an id for a call that the backend gave none: the client needs one to tell its result from others."""
    return f"call_{request_id}_{index}"


def text_completion(request_id: RequestId, model: ModelName, created: int, answer: Completion) -> bytes:
    """Encodes a text completion. The object has no field for reasoning, so that stays part of the text, as the model
    wrote it."""
    text = answer.reasoning + answer.text
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": answer.finish_reason}
    return _answer(
        answer_id=completion_id(request_id),
        kind="text_completion",
        model=model,
        created=created,
        choice=choice,
        answer=answer,
    )


def chat_id(request_id: RequestId) -> str:
    """Returns the `id` of a chat answer, which is made from the request id."""
    return f"chatcmpl-{request_id}"


def completion_id(request_id: RequestId) -> str:
    """Returns the `id` of a text completion, which is made from the request id."""
    return f"cmpl-{request_id}"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Returns the `usage` object, which counts the tokens of the prompt and of the answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _answer(
    answer_id: str, kind: str, model: ModelName, created: int, choice: dict[str, Any], answer: Completion
) -> bytes:
    return to_json(
        {
            "id": answer_id,
            "object": kind,
            "created": created,
            "model": model,
            "choices": [choice],
            "usage": usage(answer.prompt_tokens, answer.completion_tokens),
        }
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


def model_object(name: ModelName, created: int) -> bytes:
    """Encodes one model as a `model` object."""
    return to_json(_model(name, created))


def model_list(names: Iterable[ModelName], created: int) -> bytes:
    """Encodes models as a list of `model` objects, in the order of `names` and all with the same `created`."""
    return to_json({"object": "list", "data": [_model(name, created) for name in names]})


def _model(name: ModelName, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": OWNER}
