"""The words that our own backends and the gateway exchange besides the fields of the messages: the names of the gRPC
metadata, and fixed texts.

Foreign backends send none of the trailers. Each is an addition and never required.
"""

import hashlib
import hmac
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Final

from gateway.domain.ids import ReplicaId

AUTHORIZATION: Final = "authorization"
"""`Bearer <replica token>` on every call, Health included (backend-protocol.md B3)."""
TOKEN_VARIABLE: Final = "LOCALAI_GRPC_AUTH_TOKEN"  # noqa: S105 - the name of a variable
"""Environment variable in which a backend process finds its token."""

REFUSED: Final = "x-gateway-refused"
"""The trailer of a call that was refused before any work: `full` or `draining`. It is no failure of the replica. The
same status without this trailer is an ordinary error (pitfall 32)."""
REFUSED_FULL: Final = "full"
REFUSED_DRAINING: Final = "draining"

FINISH_REASON: Final = "x-gateway-finish-reason"
"""Trailer of a finished generation: `stop`, `length` or `tool_calls`."""

ERROR_CODE: Final = "x-gateway-error-code"
"""Trailer of an INVALID_ARGUMENT: the `code` of OpenAI's error object, `context_length_exceeded` for one."""
ERROR_PARAM: Final = "x-gateway-error-param"
"""Trailer of an INVALID_ARGUMENT: the request field that is wrong, in OpenAI's words."""

SAMPLING_KEY: Final = "gateway.sampling"
"""The key of `PredictOptions.Metadata` under which the gateway sends the sampling parameters that the client set, as a
JSON object with llama.cpp's names. proto3 scalars cannot say "unset": a Temperature of 0 may mean greedy or nothing at
all. The classic fields are filled, too, for backends that read only those."""

THINKING_KEY: Final = "enable_thinking"
"""The key of `PredictOptions.Metadata` that says whether the model should reason, `true` or `false`. LocalAI and
templates use the same name."""

CACHED_TOKENS: Final = "x-gateway-cached-tokens"
"""Trailer of a finished generation: the number of tokens of its prompt that were read from a cache."""

TEMPLATE_KEY: Final = "gateway.chat_template_kwargs"
"""The key of `PredictOptions.Metadata` with further settings of the chat template, as a JSON object."""
EFFORT_KEY: Final = "reasoning_effort"
"""The key of `PredictOptions.Metadata` that says how much the model should reason. LocalAI and templates use the same
name."""
TOKENS_KEY: Final = "gateway.prompt_tokens"
"""The key of `PredictOptions.Metadata` with the token ids of a raw prompt, as a JSON array, instead of `Prompt`."""

GRAMMAR_PARAM_KEY: Final = "gateway.grammar_param"
"""The key of `PredictOptions.Metadata` that says which parameter of the request the `Grammar` was made from."""
SUFFIX_KEY: Final = "gateway.suffix"
"""The key of `PredictOptions.Metadata` for the text that follows what a raw completion is to write between `Prompt` and
it."""
ADD_SPECIAL_KEY: Final = "gateway.add_special"
"""The key of `PredictOptions.Metadata` that says whether TokenizeString adds the tokens that begin or end a prompt,
`true` (also if it is absent) or `false`."""

MESSAGE_BYTES_MAX: Final = 50 * 1024 * 1024
"""Largest gRPC message either side sends or takes (backend-protocol.md B3)."""

HEALTHY: Final = b"OK"
"""The message of a healthy backend's answer to Health, and nothing else (backend-protocol.md B3)."""
IDENTITY_MISMATCH: Final = "model identity mismatch"
"""Text of a NOT_FOUND that says "another model is loaded here" (H5)."""
NOT_LOADED: Final = "model not loaded"
"""Text of a FAILED_PRECONDITION that says "nothing is loaded here" (R14)."""


TOKENS_CACHED: Final = 1024
"""The number of replicas whose tokens are not computed anew for each call."""


@lru_cache(TOKENS_CACHED)
def replica_token(cluster_secret: bytes, replica_id: ReplicaId) -> str:
    """Returns the bearer token of one replica. Every gateway can compute it, and no other process can guess it (H5)."""
    return hmac.new(cluster_secret, replica_id.encode(), hashlib.sha256).hexdigest()


def bearer(token: str) -> Mapping[str, str]:
    """Returns the gRPC metadata that presents a replica's token."""
    return MappingProxyType({AUTHORIZATION: f"Bearer {token}"})
