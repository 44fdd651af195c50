"""`gateway nodes`: lists and administers the machines of a fleet."""

import argparse
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import quote

from gateway.cli.client import ApiClient, ApiError
from gateway.cli.fleet.status_tables import node_rows
from gateway.cli.outcome import FAILED, OK, print_error
from gateway.cli.table import print_table

COLUMNS: Final[Sequence[str]] = (
    "name",
    "status",
    "gpus",
    "vram_free/total",
    "ram_free/total",
    "replicas",
    "since",
    "labels",
    "id",
)


def nodes(arguments: argparse.Namespace) -> int:
    """Runs one action of `gateway nodes`, such as list or drain. Returns the exit code."""
    client = ApiClient(arguments)
    try:
        if arguments.action == "list":
            _list(client)
        else:
            print(_act(client, arguments))
    except ApiError as error:
        print_error(str(error))
        return FAILED
    return OK


def _list(client: ApiClient) -> None:
    document: dict[str, Any] = client.get("/api/status")
    labels = {node["id"]: _labels_text(node["labels"]) for node in document["nodes"]}
    rows = [{**row, "labels": labels[row["id"]]} for row in node_rows(document)]
    print_table("nodes", COLUMNS, rows)


def _labels_text(labels: dict[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in labels.items())


def _act(client: ApiClient, arguments: argparse.Namespace) -> str:
    """Runs the action and returns the line to print. Raises `ApiError`."""
    path = f"/api/nodes/{quote(arguments.node, safe='')}"
    if arguments.action == "remove":
        client.delete(path + ("?force=true" if arguments.force else ""))
        return f"{arguments.node}: removed"
    node = client.post(f"{path}/{arguments.action}")
    return f"{node['name']}: {node['status']}"
