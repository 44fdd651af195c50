"""The parameters that chat and completions share: their bounds, and those that are not supported.

Each bound is OpenAI's unless its comment says otherwise. `top_k`, `min_p`, `repeat_penalty` and `ignore_eos` are
extensions with llama.cpp's names, and `reproducible` is one of ours. `ignore_eos` is meant for tests and measurements.
"""

import re
from typing import Annotated, Final

from pydantic import BeforeValidator, Field

from gateway.api.http.json_body import (
    ARRAY,
    INVALID_VALUE,
    TEXT,
    JsonBody,
    text_or_array,
    validation_error,
    wrong_type,
    wrong_value,
)
from gateway.api.openai.parameter_rows import STREAM_OPTIONS
from gateway.api.openai.response_format import GrammarText
from gateway.domain.inference import INT32_MAX

INT64_MIN: Final = -(2**63)
INT64_MAX: Final = 2**63 - 1
NAME_CHARACTERS_MAX: Final = 512
"""The largest length of a model's name and of a user, which both end up in errors and logs."""
STOP_SEQUENCES_MAX: Final = 16
"""The largest number of stop sequences. OpenAI accepts 4. More cost nothing, and clients of other servers send more."""
CHOICES_MAX: Final = 128
"""The largest number of answers to one request: OpenAI's for `n`, which here bounds `n` times the prompts, too."""
TOP_LOGPROBS_MAX: Final = 20
BIAS_MAX: Final = 100
BIASED_TOKENS_MAX: Final = 65_536
"""The largest number of biased tokens. Checking one costs a microsecond, and a body has room for a million."""
REPEAT_PENALTY_MAX: Final = 10
"""The largest repeat penalty. llama.cpp divides logits by it and has no bound; larger values produce only noise."""

_TOKEN_ID: Final = re.compile(r"[0-9]{1,10}")

Name = Annotated[str, Field(min_length=1, max_length=NAME_CHARACTERS_MAX)]
User = Annotated[str, Field(max_length=NAME_CHARACTERS_MAX)]
TokenLimit = Annotated[int, Field(ge=1, le=INT32_MAX)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


def _as_bias(value: object) -> object:
    """Turns the keys of a JSON object, which are strings, into token ids."""
    if not isinstance(value, dict):
        return value
    if len(value) > BIASED_TOKENS_MAX:
        raise wrong_value(f"have at most {BIASED_TOKENS_MAX} entries")
    return {_token_id(key): _bias(key, bias) for key, bias in value.items()}


def _token_id(key: str) -> int:
    if _TOKEN_ID.fullmatch(key) and (token := int(key)) <= INT32_MAX:
        return token
    raise validation_error(INVALID_VALUE, "Invalid key in 'logit_bias': '{param}' does not name a token id.", key)


def _bias(key: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type("a number", value, key)
    if not -BIAS_MAX <= value <= BIAS_MAX:
        raise wrong_value(f"be from -{BIAS_MAX} to {BIAS_MAX}", key)
    return float(value)


StopSequence = Annotated[str, Field(min_length=1)]
StopSequences = Annotated[list[StopSequence], Field(max_length=STOP_SEQUENCES_MAX, fail_fast=True)]
Stop = Annotated[
    Annotated[StopSequence, TEXT] | Annotated[StopSequences, ARRAY], text_or_array("a string or an array of strings")
]
LogitBias = Annotated[dict[int, float], BeforeValidator(_as_bias)]


class StreamOptions(JsonBody):
    """The object `stream_options`: whether a last chunk of the stream carries the token counts."""

    without_effect = STREAM_OPTIONS.without_effect

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None

    @property
    def counts_in_each_chunk(self) -> bool:
        """Whether each chunk carries the token counts so far, which vLLM does only if the last one does."""
        return bool(self.include_usage and self.continuous_usage_stats)


class GenerationBody(JsonBody):
    """The common part of a chat and a completion request."""

    model: Name
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: User | None = None
    max_tokens: TokenLimit | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Field(ge=0, le=INT32_MAX)] | None = None
    """The number of candidates for each token. 0 means no limit."""
    min_p: Fraction | None = None
    repeat_penalty: Annotated[float, Field(gt=0, le=REPEAT_PENALTY_MAX)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=INT64_MIN, le=INT64_MAX)] | None = None
    stop: Stop | None = None
    logit_bias: LogitBias | None = None
    ignore_eos: bool | None = None
    grammar: GrammarText | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_MAX)] | None = None
    reproducible: bool | None = None
    """Whether an equal request gets an equal answer. Then the whole prompt is computed anew."""


def wire_seed(seed: int) -> int:
    """Maps any 64-bit seed to 1 to 2**31-1, and leaves seeds in that range unchanged.

    On the wire a seed has 31 useful bits: 0 is "not set", and backends take a negative one as "random", which would
    break the promise of a seed.
    """
    return (seed - 1) % INT32_MAX + 1
