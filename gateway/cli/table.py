"""Prints rows as aligned text for people: plain in a pipe, with colours on a terminal."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from rich.table import Table

CELL_CHARS_MAX: Final = 60
PLAIN_WIDTH: Final = 10_000
"""The width, in characters, of output that is not a terminal. It is so large that no line is ever folded."""
COLOURS: Final[Mapping[str, str]] = {
    "healthy": "green",
    "ready": "green",
    "pending": "yellow",
    "loading": "yellow",
    "draining": "yellow",
    "unhealthy": "red",
    "offline": "red",
    "failed": "red",
    "load_failed": "red",
}
"""The colours of cells that show a state."""


def print_table(name: str, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table. `name` says what the rows are, in case there are none."""
    if not rows:
        print(f"no {name}")
    elif sys.stdout.isatty():
        from rich.console import Console

        Console(file=sys.stdout).print(_laid_out(columns, rows))
    else:
        print("\n".join(table(columns, rows)))


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yields a header with the columns' names, then one line per row, however long. A missing value is "-"."""
    from rich.console import Console

    written = StringIO()
    Console(file=written, width=PLAIN_WIDTH, color_system=None).print(_laid_out(columns, rows))
    yield from (line.rstrip() for line in written.getvalue().splitlines())


def _laid_out(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> "Table":
    """Imports rich here, since most commands of this program print no table."""
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for column in _header(columns):
        shown.add_column(column, overflow="fold")
    for row in rows:
        cells = (_cell(row.get(column)) for column in columns)
        shown.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in cells))
    return shown


def _header(columns: Sequence[str]) -> list[str]:
    return [column.upper().replace("_", " ") for column in columns]


def _cell(value: object) -> str:
    """Returns the first line of a value, shortened and without characters that control a terminal."""
    line = "-" if value is None else str(value).partition("\n")[0]
    text = printable(line)
    return text if len(text) <= CELL_CHARS_MAX else text[: CELL_CHARS_MAX - 3] + "..."


def printable(text: str) -> str:
    """Returns the text with a space in place of each unprintable character, so that it can't control a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
