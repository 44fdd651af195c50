"""Reads the values that other servers have for the parameters that the gateway honours. Pure.

A function here takes any JSON value. It returns the value as the schema takes it, or unchanged, so that the schema
refuses it by name.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from pydantic_core import from_json

from gateway.domain.inference import INT32_MAX
from gateway.json_grammar.text import literal, one_of

NO_LIMITS: Final = (-1, -2)
"""The limits of llama.cpp and Ollama that mean none: until the end, and until the context is full."""
_THINKING_TYPES: Final[Mapping[object, bool]] = MappingProxyType({"enabled": True, "disabled": False})


def token_limit(value: object) -> object:
    """Returns None for -1, which means no limit, and at most `INT32_MAX`: a limit is an upper bound."""
    if type(value) is not int:
        return value
    return None if value == NO_LIMITS[0] else min(value, INT32_MAX)


def open_token_limit(value: object) -> object:
    """Returns None for each of `NO_LIMITS`."""
    return None if type(value) is int and value in NO_LIMITS else value


def candidates(value: object) -> object:
    """Returns 0 for a `top_k` of -1. Both mean that all tokens are candidates."""
    return 0 if type(value) is int and value == -1 else value


def stop_sequences(value: object) -> object:
    """Returns the stop sequences without those that are empty, which stop nothing."""
    if isinstance(value, list):
        return [each for each in value if each != ""]
    return None if value == "" else value


def biases(value: object) -> object:
    """Returns llama.cpp's array of `[token id, bias]` as an object. A bias of false forbids the token."""
    if not isinstance(value, list) or not value or not all(_is_bias(each) for each in value):
        return value
    return {str(token): -100 if bias is False else bias for token, bias in value}


def _is_bias(pair: object) -> bool:
    return isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int


def thinking_of_object(value: object) -> object:
    """Returns whether `thinking` is enabled, which is an object with a `type`."""
    kind = value.get("type") if isinstance(value, dict) else None
    return _THINKING_TYPES.get(kind, value) if isinstance(kind, str) else value


def format_of_schema(value: object) -> object:
    """Returns the `response_format` of a schema, which may be written as JSON. `"json"` means any object."""
    if isinstance(value, str):
        try:
            schema = from_json(value, allow_inf_nan=False) if value not in ("", "json") else value
        except ValueError:
            return value
        return {"": None, "json": {"type": "json_object"}}[value] if schema is value else format_of_schema(schema)
    return {"type": "json_schema", "json_schema": {"schema": value}} if isinstance(value, dict) else value


def format_of_flag(value: object) -> object:
    """Returns the `response_format` of any object for true, and None for false."""
    return {"type": "json_object"} if value is True else None if value is False else value


def response_format(value: object) -> object:
    """Returns a `json_object` that has a schema, as llama.cpp writes it, as OpenAI writes it."""
    if isinstance(value, dict) and value.get("type") == "json_object" and isinstance(value.get("schema"), dict):
        return format_of_schema(value["schema"])
    return value


def grammar_of_choices(value: object) -> object:
    """Returns the grammar that admits one of the texts."""
    if not isinstance(value, list) or not value or not all(isinstance(each, str) and each for each in value):
        return value
    return f"root ::= {one_of(map(literal, value))}"


READ: Final[Mapping[str, Callable[[object], object]]] = MappingProxyType(
    {
        "max_tokens": token_limit,
        "max_completion_tokens": token_limit,
        "top_k": candidates,
        "stop": stop_sequences,
        "logit_bias": biases,
        "response_format": response_format,
    }
)
"""How the value of a parameter is read if the schema refuses it as it is."""
