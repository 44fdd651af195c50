"""What is wrong with a configuration: where, what, and in which words the user reads it."""

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
    """TOML path such as `models[1].artifact`; for an environment variable that names no key, the variable. Empty: the
    file as a whole."""
    message: str
    line: int | None = None
    """Line of the file, from 1. None: not in the file, or not known for certain."""
    source: str = ""
    """Where the value was set: the file, an environment variable, the command line. Empty: nowhere (a default)."""

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
