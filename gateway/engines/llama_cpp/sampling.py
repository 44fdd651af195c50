"""Checks the sampling parameters of a request and translates them for llama.cpp. Pure.

They come from one of two places. Our gateway sends what the client set as a JSON object under `SAMPLING_KEY`. Other
callers fill the classic fields of PredictOptions. proto3 cannot say whether those are set, so a zero means "not set",
except for Temperature (greedy), as LocalAI's own backends read it. Both become one mapping with the same names, which
one table reads. A parameter that is not set keeps llama.cpp's own default.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from gateway.backends.metadata import SAMPLING_KEY
from gateway.backends.pb import backend_pb2 as pb
from gateway.engines.llama_cpp.errors import invalid
from gateway.engines.llama_cpp.forms.call_format import PLAIN, CallFormat
from gateway.engines.llama_cpp.infill import InfillTokens

SEED_RANDOM: Final = 2**32 - 1
"""The value by which llama.cpp takes a different seed each time. A caller who sets a seed never wants that."""
REPEAT_PENALTY_MIN: Final = 0.01
LOGIT_BIAS_MAX: Final = 100.0
STOPS_MAX: Final = 64
NUMBER_MAX: Final = 1e6
"""The largest number. It is beyond all sense, and well within the 32-bit floats of llama.cpp."""
TOKEN_DIGITS_MAX: Final = 9


@dataclass(frozen=True)
class SamplingLimits:
    """The abilities of the loaded model, and its defaults."""

    context_tokens: int
    vocabulary_size: int
    takes_tools: bool = True
    """Whether its chat template shows the model its tools."""
    call_format: CallFormat = PLAIN
    """The way in which a call that is forced begins."""
    template_names: frozenset[str] = frozenset()
    """The names that the chat template may read."""
    infill: InfillTokens | None = None
    """The tokens with which it fills in text. None if it can only continue one."""
    reproducible: bool = False
    """Whether a request that does not say is answered like any equal one before it."""
    parses_arguments: bool = False
    """Whether llama.cpp parses the arguments of earlier calls, because the template writes them out as an object."""
    takes_text_arguments: bool = True
    """Whether the template can also write arguments that are a text."""


Body = dict[str, Any]
Reader = Callable[[str, Any, SamplingLimits], Body]


def sampling_body(request: pb.PredictOptions, limits: SamplingLimits) -> Body:
    """Returns the sampling parameters for llama.cpp. Raises `CallError` (INVALID_ARGUMENT) that names the parameter."""
    given = _given(request)
    body: Body = {"cache_prompt": False} if limits.reproducible else {}
    for name, value in given.items():
        reader = READERS.get(name)
        if reader is None:
            raise invalid(f"unknown sampling parameter {name!r}", param=name)
        body |= reader(name, value, limits)
    return body


def _given(request: pb.PredictOptions) -> Mapping[str, Any]:
    text = request.Metadata.get(SAMPLING_KEY)
    return _classic(request) if text is None else _parse_object(text, SAMPLING_KEY)


def _classic(request: pb.PredictOptions) -> Mapping[str, Any]:
    set_when_positive = {
        "max_tokens": request.Tokens,
        "top_k": request.TopK,
        "top_p": request.TopP,
        "min_p": request.MinP,
        "repeat_penalty": request.Penalty,
        "seed": request.Seed,
    }
    set_when_not_zero = {
        "presence_penalty": request.PresencePenalty,
        "frequency_penalty": request.FrequencyPenalty,
        "stop": list(request.StopPrompts),
        "logit_bias": _parse_object(request.LogitBias, "logit_bias") if request.LogitBias else None,
        "ignore_eos": request.IgnoreEOS,
    }
    return {
        "temperature": request.Temperature,
        **{name: value for name, value in set_when_positive.items() if value > 0},
        **{name: value for name, value in set_when_not_zero.items() if value},
    }


def _parse_object(text: str, param: str) -> Mapping[str, Any]:
    value = parse_json(text, param)
    if not isinstance(value, dict):
        raise invalid(f"{param} must be a JSON object", param=param)
    return value


def parse_json(text: str, param: str) -> Any:  # noqa: ANN401 - any JSON
    """Parses strict JSON: no NaN, and no half of a surrogate pair, for which llama.cpp refuses the whole request."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise invalid(f"{param} is not JSON: {error}", param=param) from error
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _wrong(name: str, what: str, value: object) -> NoReturn:
    raise invalid(f"{name} must be {what}, not {str(value)[:100]!r}", param=name)


def _is_number(value: object) -> bool:
    """Returns whether the value is a number and not a boolean, which is an int in Python."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(minimum: float, maximum: float = NUMBER_MAX) -> Reader:
    def read(name: str, value: Any, _: SamplingLimits) -> Body:  # noqa: ANN401 - straight from JSON
        """Returns the field for llama.cpp's request. Raises `CallError`."""
        if not (_is_number(value) and minimum <= value <= maximum):
            _wrong(name, f"a number from {minimum:g} to {maximum:g}", value)
        return {name: float(value)}

    return read


def _top_k(name: str, value: Any, limits: SamplingLimits) -> Body:  # noqa: ANN401 - straight from JSON
    if not (_is_integer(value) and value >= 0):
        _wrong(name, "a whole number, 0 for the whole vocabulary", value)
    return {name: min(value, limits.vocabulary_size)}


def _seed(name: str, value: Any, _: SamplingLimits) -> Body:  # noqa: ANN401 - straight from JSON
    if not _is_integer(value):
        _wrong(name, "a whole number", value)
    return {name: value % SEED_RANDOM}


def _max_tokens(name: str, value: Any, limits: SamplingLimits) -> Body:  # noqa: ANN401 - straight from JSON
    if not (_is_integer(value) and value >= 1):
        _wrong(name, "a whole number from 1", value)
    return {name: min(value, limits.context_tokens)}


def _stop(name: str, value: Any, _: SamplingLimits) -> Body:  # noqa: ANN401 - straight from JSON
    words = [value] if isinstance(value, str) else value
    if not (
        isinstance(words, list) and len(words) <= STOPS_MAX and all(isinstance(word, str) and word for word in words)
    ):
        _wrong(name, f"a text or a list of at most {STOPS_MAX} texts, none of them empty", value)
    return {name: words}


def _logit_bias(name: str, value: Any, limits: SamplingLimits) -> Body:  # noqa: ANN401 - straight from JSON
    if not isinstance(value, dict):
        _wrong(name, "an object of token ids and biases", value)
    return {name: [_bias(name, token, bias, limits) for token, bias in value.items()]}


def _bias(name: str, token: str, bias: Any, limits: SamplingLimits) -> tuple[int, float]:  # noqa: ANN401 - straight from JSON
    digits = token.isascii() and token.isdecimal() and len(token) <= TOKEN_DIGITS_MAX
    if not (digits and int(token) < limits.vocabulary_size):
        _wrong(name, f"keyed by token ids below {limits.vocabulary_size}", token)
    if not (_is_number(bias) and abs(bias) <= LOGIT_BIAS_MAX):
        _wrong(name, f"made of biases from -{LOGIT_BIAS_MAX:g} to {LOGIT_BIAS_MAX:g}", bias)
    return int(token), float(bias)


def _ignore_eos(name: str, value: Any, _: SamplingLimits) -> Body:  # noqa: ANN401 - straight from JSON
    if not isinstance(value, bool):
        _wrong(name, "true or false", value)
    return {name: value}


def _reproducible(name: str, value: Any, _: SamplingLimits) -> Body:  # noqa: ANN401 - straight from JSON
    """Reads whether equal requests have to get equal answers. A prefix from the cache was computed in other batches, so
    its last digits differ, and the answer may differ, too."""
    if not isinstance(value, bool):
        _wrong(name, "true or false", value)
    return {"cache_prompt": not value}


READERS: Final[Mapping[str, Reader]] = {
    "temperature": _number(0),
    "top_p": _number(0, 1),
    "top_k": _top_k,
    "min_p": _number(0, 1),
    "repeat_penalty": _number(REPEAT_PENALTY_MIN),
    "presence_penalty": _number(-NUMBER_MAX),
    "frequency_penalty": _number(-NUMBER_MAX),
    "seed": _seed,
    "max_tokens": _max_tokens,
    "stop": _stop,
    "logit_bias": _logit_bias,
    "ignore_eos": _ignore_eos,
    "reproducible": _reproducible,
}
"""The parameters that may be set, by the names of llama.cpp and OpenAI."""
