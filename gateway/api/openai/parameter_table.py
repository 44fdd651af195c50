"""The kinds of request parameters: what the gateway does with each, as records that the schema and a page are made of.

The rows are in `parameter_rows.py`. A body whose fields all are `HONOURED` is read as it is. A row of any other kind
says how a body with that field is read (see `tolerance.py`).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from gateway.api.http.json_body import ANY_VALUE


class Effect(StrEnum):
    """The ways in which a parameter is treated, in the words of the documentation."""

    HONOURED = "honoured"
    SYNONYM = "synonym"
    NO_EFFECT = "no effect"
    REFUSED = "refused"


Convert = Callable[[object], object]
"""Turns the value of a synonym into that of the parameter with the same meaning."""


def as_it_is(value: object) -> object:
    """Returns the value, for a synonym that differs by its name only."""
    return value


@dataclass(frozen=True)
class Parameter:
    """One row of the table."""

    name: str
    effect: Effect
    note: str
    """For users: the bounds of what is honoured, why there is no effect, or why it is refused (after "because")."""
    of: str = ""
    """The parameter that a synonym stands for. A dot leads into an object, as in `chat_template_kwargs.x`."""
    convert: Convert = field(default=as_it_is, compare=False, repr=False)
    inside: str = ""
    """The place of the synonym's value within the other one, so that errors have the client's path."""
    fields: "ParameterTable | None" = None
    """The fields of an object that is a synonym for parts of the body."""
    neutral: tuple[object, ...] = ()
    """The values of a refused parameter, besides null, at which it changes nothing, so that they are accepted."""
    is_foreign: bool = False
    """Whether a refused parameter is one of other servers. Those are dropped if unknown parameters are ignored."""


def honoured(name: str, note: str = "") -> Parameter:
    """Returns the row of a parameter that has its effect."""
    return Parameter(name, Effect.HONOURED, note)


def synonym(name: str, of: str, note: str = "", *, convert: Convert = as_it_is, inside: str = "") -> Parameter:
    """Returns the row of a parameter that other servers have for `of`."""
    return Parameter(name, Effect.SYNONYM, note, of=of, convert=convert, inside=inside)


def part_of_body(name: str, fields: "ParameterTable", note: str) -> Parameter:
    """Returns the row of an object whose fields are read as if they stood in the body itself."""
    return Parameter(name, Effect.SYNONYM, note, fields=fields)


def no_effect(name: str, note: str) -> Parameter:
    """Returns the row of a parameter that says nothing to the model: every value of it is accepted."""
    return Parameter(name, Effect.NO_EFFECT, note)


def refused(name: str, because: str, *neutral: object) -> Parameter:
    """Returns the row of one of OpenAI's parameters whose effect the gateway lacks."""
    return Parameter(name, Effect.REFUSED, because, neutral=neutral)


def foreign(name: str, because: str, *neutral: object) -> Parameter:
    """Returns the row of a parameter of other servers that has no equal here."""
    return Parameter(name, Effect.REFUSED, because, neutral=neutral, is_foreign=True)


class ParameterTable:
    """The parameters of one endpoint, or of one object within its body, by their names."""

    def __init__(self, title: str, rows: Iterable[Parameter]) -> None:
        self.title: Final = title
        self.rows: Final[Mapping[str, Parameter]] = MappingProxyType({row.name: row for row in rows})

    @property
    def without_effect(self) -> Mapping[str, tuple[object, ...]]:
        """The parameters that the schema has no field for, with the values at which each changes nothing."""
        return MappingProxyType(
            {row.name: ANY_VALUE if row.effect is Effect.NO_EFFECT else row.neutral for row in self._unread()}
        )

    @property
    def reasons(self) -> Mapping[str, str]:
        """The reason for each refusal, by the parameter's name."""
        return MappingProxyType({row.name: row.note for row in self._unread() if row.effect is Effect.REFUSED})

    def _unread(self) -> Iterable[Parameter]:
        return (row for row in self.rows.values() if row.effect in (Effect.NO_EFFECT, Effect.REFUSED))
