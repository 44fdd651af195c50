"""Rows as aligned text, for people."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

CELL_CHARS_MAX: Final = 60


def table(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A header from the columns' names, then one line per row; what a row does not have is "-"."""
    header = [column.upper().replace("_", " ") for column in columns]
    cells = [header, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(row[index]) for row in cells) for index in range(len(columns))]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: object) -> str:
    """The first line of a value, shortened."""
    text = "-" if value is None else str(value).partition("\n")[0]
    return text if len(text) <= CELL_CHARS_MAX else text[: CELL_CHARS_MAX - 3] + "..."
