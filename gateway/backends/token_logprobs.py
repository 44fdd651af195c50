"""Reads the probabilities of tokens, which a reply carries as OpenAI's JSON object for chats. Pure."""

import json
from typing import Any, Final

from gateway.domain.errors import BackendFailed
from gateway.domain.inference import TokenLogprob

LOGPROB_MIN: Final = -9999.0
"""OpenAI's number for a token that is as good as impossible. JSON has no infinity."""


def token_logprobs(text: bytes) -> tuple[TokenLogprob, ...]:
    """Returns the probabilities of a reply: OpenAI's object as JSON. Raises `BackendFailed` for anything else."""
    try:
        return tuple(_token_logprob(entry) for entry in json.loads(text)["content"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BackendFailed("The backend answered with probabilities that can't be read.") from error


def _token_logprob(entry: dict[str, Any]) -> TokenLogprob:
    top = tuple(_token_logprob(each) for each in entry.get("top_logprobs") or ())
    utf8 = tuple(int(byte) for byte in entry.get("bytes") or ())
    logprob = max(float(entry["logprob"]), LOGPROB_MIN)
    return TokenLogprob(str(entry["token"]), logprob, utf8, top)
