"""Reads a model's spec from the arguments of a command: a TOML file, or `KEY=VALUE` pairs that change a spec."""

import datetime
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO


class BadValue(Exception):
    """The given value cannot be used. The message is for the user."""


def read_spec(file: str, model: str, stdin: BinaryIO) -> dict[str, Any]:
    """Returns the spec in `file`. The file may contain the model's name if that is `model`. Raises `BadValue`."""
    try:
        text = (stdin.read() if file == "-" else Path(file).read_bytes()).decode("utf-8-sig")
        spec = tomllib.loads(text)
    except OSError as error:
        raise BadValue(f"{file}: {error.strerror}") from error
    except ValueError as error:
        raise BadValue(f"{file}: is not valid TOML: {error}") from error
    if spec.pop("name", model) != model:
        raise BadValue(f"{file}: is of another model than {model}")
    _refuse_times(spec)
    return spec


def with_values(spec: Mapping[str, Any], pairs: Iterable[str]) -> dict[str, Any]:
    """Returns the changed spec. `a=1` sets a key, `options.b=x` sets a key of a table, and `a=` removes a key. A value
    that is no TOML value is a string.

    Pure. Raises `BadValue`.
    """
    changed = {key: dict(value) if isinstance(value, Mapping) else value for key, value in spec.items()}
    for pair in pairs:
        path, sign, text = pair.partition("=")
        if not sign or not path:
            raise BadValue(f"expected KEY=VALUE, got {pair!r}")
        _put(changed, path, text)
    return changed


def _put(spec: dict[str, Any], path: str, text: str) -> None:
    key, dot, inner = path.partition(".")
    table = spec.setdefault(key, {}) if dot else spec
    if not isinstance(table, dict):
        raise BadValue(f"{key} is no table")
    last = inner if dot else key
    if text:
        table[last] = _value(text)
    else:
        table.pop(last, None)
    _refuse_times(spec)


def _value(text: str) -> object:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return text


def _refuse_times(spec: Mapping[str, Any]) -> None:
    """Refuses TOML's dates and times, which JSON does not have."""
    for key, value in spec.items():
        if isinstance(value, Mapping):
            _refuse_times(value)
        elif isinstance(value, datetime.date | datetime.time):
            raise BadValue(f"{key}: is a date or time; put it into quotes")
