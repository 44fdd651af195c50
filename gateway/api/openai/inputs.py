"""Reads what a request is about in its four forms: a text, texts, the token ids of one text, or those of several."""

from typing import Annotated, Any, Final

from pydantic import BeforeValidator

from gateway.api.http.json_body import wrong_type, wrong_value
from gateway.api.openai.parameters import CHOICES_MAX
from gateway.domain.inference import INT32_MAX

EMBEDDING_INPUTS_MAX: Final = 2048

Entry = str | tuple[int, ...]


def as_entries(value: object) -> list[Entry]:
    """Returns the entries of `input`, which has four forms: a text, texts, the token ids of one text, or those of
    several."""
    if isinstance(value, str):
        return [_entry(value)]
    if not isinstance(value, list):
        raise wrong_type("a string, an array of strings or an array of token ids", value)
    if value and type(value[0]) is int:
        return [_tokens(value)]
    if not 1 <= len(value) <= EMBEDDING_INPUTS_MAX:
        raise wrong_value(f"have 1 to {EMBEDDING_INPUTS_MAX} entries")
    return [_entry(entry, index) for index, entry in enumerate(value)]


def _entry(value: object, *at: int) -> Entry:
    if not isinstance(value, str | list):
        raise wrong_type("a string or an array of token ids", value, *at)
    if not value:
        raise wrong_value("not be empty", *at)
    return value if isinstance(value, str) else _tokens(value, *at)


def _tokens(values: list[Any], *at: int) -> tuple[int, ...]:
    """Returns token ids. The whole array is checked first, because millions of ids fit into one body."""
    if set(map(type, values)) != {int}:
        index, wrong = next((i, value) for i, value in enumerate(values) if type(value) is not int)
        raise wrong_type("a token id (an integer)", wrong, *at, index)
    if min(values) < 0 or max(values) > INT32_MAX:
        index = next(i for i, value in enumerate(values) if not 0 <= value <= INT32_MAX)
        raise wrong_value(f"be a token id from 0 to {INT32_MAX}", *at, index)
    return tuple(values)


def _as_prompts(value: object) -> list[Entry]:
    """Returns the prompts. A text may be empty, unlike an input, because a model can begin with nothing."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and len(value) > CHOICES_MAX and type(value[0]) is not int:
        raise wrong_value(f"have 1 to {CHOICES_MAX} entries")
    if isinstance(value, list) and any(each == "" for each in value if isinstance(each, str)):
        return [each if each == "" else _entry(each, index) for index, each in enumerate(value)]
    return as_entries(value)


Inputs = Annotated[list[Any], BeforeValidator(as_entries)]
Prompts = Annotated[list[Any], BeforeValidator(_as_prompts)]
