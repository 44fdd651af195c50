"""Encodes the probabilities of tokens: OpenAI has one form for chats, and an older one for completions."""

from collections.abc import Sequence
from typing import Any

from gateway.domain.inference import TokenLogprob


def chat_logprobs(entries: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Returns the `logprobs` of a choice of a chat."""
    return {
        "content": [{**_token(entry), "top_logprobs": list(map(_token, entry.top))} for entry in entries],
        "refusal": None,
    }


def _token(entry: TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": entry.utf8}


def text_logprobs(entries: Sequence[TokenLogprob], offset: int = 0) -> dict[str, Any]:
    """Returns the `logprobs` of a choice of a completion. `offset` is where the text of the first token begins."""
    offsets = [offset]
    for entry in entries:
        offsets.append(offsets[-1] + len(entry.token))
    return {
        "tokens": [entry.token for entry in entries],
        "token_logprobs": [entry.logprob for entry in entries],
        "top_logprobs": [{each.token: each.logprob for each in entry.top} for entry in entries],
        "text_offset": offsets[:-1],
    }
