"""Reads bodies that the schema refuses as they are: other names, other values, and what says nothing to the model.

The common request is read by the schema alone and never gets here. A body that the schema refuses is *rewritten* by the
table of parameters, and then read again. If it is still wrong, the error uses the names that the client has used.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import quote

from gateway.api.http.json_body import (
    INVALID_TYPE,
    INVALID_VALUE,
    SHOWN_CHARACTERS_MAX,
    UNKNOWN,
    UNSUPPORTED,
    equal_json,
    json_kind,
    type_message,
    unknown_message,
    unsupported_message,
)
from gateway.api.openai.history import plain_messages, plain_tools
from gateway.api.openai.parameter_rows import STREAM_OPTIONS
from gateway.api.openai.parameter_table import Effect, Parameter, ParameterTable
from gateway.api.openai.parameter_values import READ
from gateway.domain.errors import BadRequest

T = TypeVar("T")

IGNORED_PARAMETERS: Final = b"x-gateway-ignored-parameters"
"""The response header that names the parameters of the request that were dropped."""
NAMES_SHOWN_MAX: Final = 32
_NAME_CHARACTERS: Final = "[]!$*+;:@/"
"""The characters, besides letters, digits and `_.-~`, that are not escaped in the header."""
TEMPLATE_SETTINGS: Final = "chat_template_kwargs"


def read_rewritten(
    read: Callable[[Mapping[str, Any]], T],
    given: Mapping[str, Any],
    table: ParameterTable,
    refusal: BadRequest,
    *,
    ignore_unknown: bool,
) -> tuple[T, tuple[str, ...]]:
    """Rewrites a body that `read` has refused, and returns what it reads then, with the names of the parameters that
    were dropped.

    With `ignore_unknown`, parameters are dropped that nobody knows, or that only other servers have. Raises
    `BadRequest`: the refusal itself if there is nothing to rewrite.
    """
    rewriter = _Rewriter(table, ignore_unknown=ignore_unknown)
    rewriter.read(given)
    if rewriter.body == given:
        raise refusal
    try:
        return read(rewriter.body), tuple(rewriter.ignored)
    except BadRequest as error:
        raise rewriter.in_words_of_client(error) from None


class _Rewriter:
    """Rewrites one body, field by field."""

    def __init__(self, table: ParameterTable, *, ignore_unknown: bool) -> None:
        self.body: dict[str, Any] = {}
        """The body as the schema takes it."""
        self.ignored: list[str] = []
        self._table = table
        self._ignore_unknown = ignore_unknown
        self._sources: dict[str, str] = {}
        """The path by which the client has set each parameter."""

    def read(self, given: Mapping[str, Any]) -> None:
        """Reads all fields of the body. Raises `BadRequest` for two names of one parameter that differ."""
        for name, value in given.items():
            row = self._table.rows.get(name)
            if row is None or row.effect is Effect.REFUSED:
                if not self._may_drop(row, name, value):
                    self.body[name] = value
            elif row.effect is not Effect.NO_EFFECT:
                self._read_known(row, name, value)

    def _may_drop(self, row: Parameter | None, path: str, value: object) -> bool:
        """Returns whether an unknown or refused parameter is dropped, and keeps its name if it would have changed
        anything."""
        if value is None or (row is not None and any(equal_json(value, each) for each in row.neutral)):
            return True
        is_dropped = self._ignore_unknown and (row is None or row.is_foreign)
        if is_dropped:
            self.ignored.append(path)
        return is_dropped

    def _read_known(self, row: Parameter, path: str, value: object) -> None:
        if row.fields is not None:
            self._read_fields(row.fields, path, value)
        elif row.effect is Effect.SYNONYM:
            self._set(row.of, path, row.convert(value))
            if row.inside:
                self._sources.setdefault(f"{row.of}.{row.inside}", path)
        else:
            self._set(row.name, path, self._plain(row.name, value))

    def _read_fields(self, fields: ParameterTable, path: str, given: object) -> None:
        """Reads an object whose fields count as the body's. Raises `BadRequest` for a field that is not known, or not
        supported."""
        if not isinstance(given, dict | None):
            raise BadRequest(type_message("an object", json_kind(given), path), param=path, code=INVALID_TYPE)
        for name, value in (given or {}).items():
            row, at = fields.rows.get(name), f"{path}.{name}"
            if row is None or row.effect is Effect.REFUSED:
                if not self._may_drop(row, at, value):
                    raise _refusal(row, at)
            elif row.effect is not Effect.NO_EFFECT:
                self._read_known(row, at, value)

    def _plain(self, name: str, value: object) -> object:
        if name == "messages":
            return plain_messages(value)
        if name == "tools":
            return plain_tools(value)
        if name == "stream_options" and isinstance(value, dict):
            return {
                key: each
                for key, each in value.items()
                if key in STREAM_OPTIONS.rows or not self._may_drop(None, f"{name}.{key}", each)
            }
        return value

    def _set(self, name: str, path: str, value: object) -> None:
        """Sets a parameter. An object that synonyms lead into is set field by field."""
        if name == TEMPLATE_SETTINGS and isinstance(value, dict):
            self.body.setdefault(name, {})
            for key, each in value.items():
                self._set_one(f"{name}.{key}", f"{path}.{key}", each)
        else:
            self._set_one(name, path, value)

    def _set_one(self, name: str, path: str, value: object) -> None:
        if (read := READ.get(name)) is not None:
            value = read(value)
        if value is None:
            self._leave_unset(name, path)
        else:
            place, key = self._place(name)
            known = place.get(key)
            if known is not None and not equal_json(known, value):
                raise _conflict(self._sources.get(name, name), path)
            place[key] = value
            self._sources.setdefault(name, path)

    def _leave_unset(self, name: str, path: str) -> None:
        """Leaves null where the client has written it: the schema says whether a parameter may be null."""
        if name == path and "." not in name:
            self.body.setdefault(name, None)

    def _place(self, name: str) -> tuple[dict[str, Any], str]:
        """Returns the object that has the parameter, and its key there."""
        outer, dot, key = name.partition(".")
        if not dot:
            return self.body, name
        if not isinstance(self.body.get(outer), dict):
            self.body[outer] = {}
        return self.body[outer], key

    def in_words_of_client(self, error: BadRequest) -> BadRequest:
        """Returns the error with the name by which the client has set the wrong parameter."""
        param = error.param or ""
        names = (name for name in self._sources if param == name or param.startswith((f"{name}.", f"{name}[")))
        name = max(names, key=len, default="")
        path = self._sources.get(name, name)
        if path == name:
            return error
        shown = path + param[len(name) :]
        return BadRequest(error.message.replace(f"'{param}'", f"'{shown}'"), param=shown, code=error.code)


def _refusal(row: Parameter | None, path: str) -> BadRequest:
    if row is None:
        return BadRequest(unknown_message(path), param=path, code=UNKNOWN)
    return BadRequest(unsupported_message(path, row.note), param=path, code=UNSUPPORTED)


def _conflict(first: str, second: str) -> BadRequest:
    message = f"'{first}' and '{second}' are two names of one parameter and differ; set one."
    return BadRequest(message, param=second, code=INVALID_VALUE)


def names_header(names: Sequence[str]) -> bytes:
    """Returns the value of the header `IGNORED_PARAMETERS`: names that are separated by commas, and of bounded length.
    Whatever a header can't hold, or could be mistaken for a separator, is percent-encoded."""
    shown = [quote(name[:SHOWN_CHARACTERS_MAX], safe=_NAME_CHARACTERS) for name in names[:NAMES_SHOWN_MAX]]
    return ", ".join([*shown, "..."] if len(names) > NAMES_SHOWN_MAX else shown).encode()
