"""Estimates how much memory a parsed request takes while it waits and is answered. Pure, and an upper estimate."""

from collections.abc import Iterable
from sys import getsizeof
from typing import Final

from gateway.api.openai.schema import EmbeddingsCall, GenerationCall
from gateway.domain.inference import ChatMessage, EmbeddingInput, Generation, Text

OBJECT_BYTES: Final = 400
"""The size of one message, tool call or input, without its texts."""
BIAS_BYTES: Final = 130
"""The size of one entry of `logit_bias`: a place in a dictionary, an integer and a float."""
TOKEN_BYTES: Final = 40
"""The size of one token id: an integer and the reference to it."""


def kept_bytes(call: GenerationCall | EmbeddingsCall) -> int:
    """Return about how many bytes of memory a parsed request takes, rather too many than too few."""
    if isinstance(call, EmbeddingsCall):
        return sum(map(_input_bytes, call.inputs))
    return _generation_bytes(call.generation)


def _generation_bytes(generation: Generation) -> int:
    prompt = generation.prompt
    texts = _texts_bytes((prompt,)) if isinstance(prompt, Text) else sum(map(_message_bytes, prompt))
    sampling = generation.sampling
    return (
        texts
        + _texts_bytes((generation.tools or "", *sampling.stop))
        + BIAS_BYTES * len(sampling.logit_bias)
        + OBJECT_BYTES
    )


def _message_bytes(message: ChatMessage) -> int:
    calls = sum(OBJECT_BYTES + _texts_bytes((call.id, call.arguments)) for call in message.tool_calls)
    return OBJECT_BYTES + calls + _texts_bytes((message.content, message.name or "", message.tool_call_id or ""))


def _input_bytes(item: EmbeddingInput) -> int:
    if isinstance(item.text, Text):
        return OBJECT_BYTES + getsizeof(item.text)
    return OBJECT_BYTES + TOKEN_BYTES * len(item.text)


def _texts_bytes(texts: Iterable[Text]) -> int:
    return sum(map(getsizeof, texts))
