"""`gateway status`: the fleet as three tables."""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from gateway.cli import FAILED, OK, complain
from gateway.cli.client import ApiClient, ApiError
from gateway.cli.table import table

TABLES: Final[Mapping[str, Sequence[str]]] = {
    "nodes": ("name", "status", "id"),
    "models": ("name", "status", "ready", "desired", "in_flight", "queued", "error"),
    "replicas": ("model", "node", "state", "in_flight", "slots", "address", "pid", "id"),
}


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
        rows = document[name]
        yield from table(columns, rows) if rows else (f"no {name}",)
