"""Line numbers of the keys of a TOML document, which the reader of the standard library doesn't tell.

A valid document is cut into its statements: lines are added to a piece until it is valid TOML by itself, so the
standard reader decides what belongs together, and multi-line strings and arrays can't deceive us. Each statement then
says which keys it sets. What is inside a multi-line array counts as being on the statement's first line.
"""

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from gateway.config.problems import Loc

STATEMENT_LINES_MAX: Final = 200
"""The largest number of lines of one statement. A longer one ends the search, because each of its lines is parsed
together with all before it."""
DEPTH_MAX: Final = 6
"""The depth below which no key of the configuration lies."""


def locate_keys(text: str) -> dict[Loc, int]:
    """Returns the line, counted from 1, at which each table and key of the valid document `text` begins. The result may
    be incomplete, but it is never wrong."""
    lines: dict[Loc, int] = {}
    table: Loc = ()
    arrays: dict[Loc, int] = {}
    for line, source, statement in _split_statements(text):
        if source.lstrip().startswith("["):
            table = _enter_table(statement, arrays)
            lines.setdefault(table, line)
        else:
            for loc in _keys_of(statement):
                lines.setdefault(table + loc, line)
    return lines


def find_line(lines: Mapping[Loc, int], loc: Loc) -> int | None:
    """Returns the line of the key, or else of the innermost table around it that is written down. Returns None if there
    is neither."""
    while loc and loc not in lines:
        loc = loc[:-1]
    return lines.get(loc)


def _split_statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Yields the first line, the source and the parsed document of each statement. Blank lines have no statement."""
    start, statement_text = 1, ""
    for number, line in enumerate(text.split("\n"), start=1):
        statement_text += line + "\n"
        statement = _parse(statement_text)
        if statement is not None:
            yield start, statement_text, statement
            start, statement_text = number + 1, ""
        elif number - start >= STATEMENT_LINES_MAX:
            return


def _parse(statement_text: str) -> dict[str, Any] | None:
    try:
        return tomllib.loads(statement_text)
    except (ValueError, RecursionError):
        return None


def _enter_table(header: dict[str, Any], arrays: dict[Loc, int]) -> Loc:
    """Returns the place that `[a.b]` or `[[a.b]]` opens. `arrays` counts the elements of each array of tables."""
    loc: Loc = ()
    value: Any = header
    while value:
        if isinstance(value, list):
            arrays[loc] = arrays.get(loc, 0) + 1
            value = value[0]
        else:
            key, value = next(iter(value.items()))
            loc += (key,)
        if loc in arrays and not isinstance(value, list):
            loc += (arrays[loc] - 1,)
    return loc


def _keys_of(statement: dict[str, Any]) -> Iterator[Loc]:
    """Yields every place that a `key = value` sets: `a.b = [{c = 1}]` sets a, a.b, a.b[0] and a.b[0].c."""
    waiting: list[tuple[Loc, Any]] = [((), statement)]
    while waiting:
        loc, value = waiting.pop()
        if loc:
            yield loc
        if len(loc) < DEPTH_MAX and isinstance(value, dict):
            waiting += [((*loc, key), inner) for key, inner in value.items()]
        elif len(loc) < DEPTH_MAX and isinstance(value, list):
            waiting += [((*loc, index), inner) for index, inner in enumerate(value)]
