"""`gateway status`: the fleet as three tables."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.cli import FAILED, OK, complain
from gateway.cli.client import ApiClient, ApiError

TABLES: Final[Mapping[str, Sequence[str]]] = {
    "nodes": ("name", "status", "id"),
    "models": ("name", "status", "ready", "desired", "in_flight", "queued", "error"),
    "replicas": ("model", "node", "state", "in_flight", "slots", "address", "pid", "id"),
}
CELL_CHARS_MAX: Final = 60


def status(arguments: argparse.Namespace) -> int:
    try:
        document = ApiClient(arguments).get("/api/status")
    except ApiError as error:
        complain(str(error))
        return FAILED
    print(json.dumps(document, indent=2) if arguments.json else "\n".join(render(document)))
    return OK


def render(document: Mapping[str, Any]) -> Iterator[str]:
    """The tables, line by line; pure."""
    for index, (name, columns) in enumerate(TABLES.items()):
        if index:
            yield ""
        rows = [[_cell(row.get(column)) for column in columns] for row in document[name]]
        yield from _table([column.upper().replace("_", " ") for column in columns], rows, name)


def _table(header: list[str], rows: list[list[str]], name: str) -> Iterator[str]:
    if not rows:
        yield f"no {name}"
        return
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    for row in [header, *rows]:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _cell(value: object) -> str:
    text = "-" if value is None else str(value).partition("\n")[0]
    return text if len(text) <= CELL_CHARS_MAX else text[: CELL_CHARS_MAX - 3] + "..."
