"""The problems of a configuration: the place, the fault, and the words in which the user reads them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from gateway.config.units import quote

Loc = tuple[str | int, ...]
"""A place in the document: keys and array indexes, outermost first."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Problem:
    """One thing to mend. `str()` is one line: `config.toml:12: models[0].artifact: message`."""

    path: str
    """The TOML path, such as `models[1].artifact`. It is the variable's name for an environment variable that names
    no key, and empty for the file as a whole."""
    message: str
    line: int | None = None
    """The line of the file, counted from 1. None means that it is not in the file, or not known for certain."""
    source: str = ""
    """The origin of the value: the file, an environment variable or the command line. It is empty for a default."""

    def __str__(self) -> str:
        where = self.source if self.line is None else f"{self.source or 'text'}:{self.line}"
        return ": ".join(part for part in (where, self.path, self.message) if part)


class ConfigError(Exception):
    """The configuration can't be used. Carries every problem found; no secret is in any of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__(format_problems(self.problems))


def format_problems(problems: Iterable[Problem]) -> str:
    """Returns one line per problem, without a final newline."""
    return "\n".join(map(str, problems))


def format_path(loc: Loc) -> str:
    """Returns a place as TOML users write it, such as `models[1].selector."gpu.vendor"`."""
    text = ""
    for step in loc:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            text += ("." if text else "") + (step if _BARE_KEY.fullmatch(step) else quote(step))
    return text
