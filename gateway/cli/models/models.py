"""`gateway models`: lists, loads and changes the models of a fleet."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from gateway.cli.client import ApiClient, ApiError
from gateway.cli.models.load_progress import follow_load, status_line
from gateway.cli.models.spec_arguments import BadValue, read_spec, with_values
from gateway.cli.outcome import FAILED, OK, USAGE, print_error
from gateway.cli.table import print_table, printable

COLUMNS: Final[Sequence[str]] = (
    "name",
    "status",
    "ready",
    "desired",
    "min/max",
    "in_flight",
    "queued",
    "kind",
    "context",
    "source",
    "error",
)
ABILITIES: Final = ("generates", "embeds", "reranks")


def models(arguments: argparse.Namespace) -> int:
    """Runs one action of `gateway models`, such as list or load. Returns the exit code, 2 for bad values."""
    client = ApiClient(arguments)
    try:
        return _act(client, arguments)
    except ApiError as error:
        print_error(str(error))
        return FAILED
    except BadValue as error:
        print_error(str(error))
        return USAGE


def _act(client: ApiClient, arguments: argparse.Namespace) -> int:
    """Runs the action and returns the exit code. Raises `ApiError`, `BadValue`."""
    if arguments.action == "list":
        found = client.get("/api/models")["models"]
        print_table("models", COLUMNS, [_row(model) for model in found])
        for model in found:
            for warning in model.get("warnings", ()):
                print(printable(f"warning: {model['name']}: {warning}"))
        return OK
    name = arguments.model
    path = f"/api/models/{quote(name, safe='/')}"
    match arguments.action:
        case "status":
            print(status_line(client.get(f"{path}/load-status")))
        case "load":
            return _load(client, path, wait=arguments.wait)
        case "unload":
            client.post(f"{path}/unload")
            print(f"{name}: unloads once its requests have ended")
        case "set":
            changed = client.put(path, _body(client, arguments))
            print(f"{name}: {changed['status']}, revision {changed['revision'][:12]}")
        case "remove":
            client.delete(path)
            print(f"{name}: removed")
    return OK


def _row(model: Mapping[str, Any]) -> dict[str, Any]:
    most = model["max_replicas"] or "any"
    counts = "every node" if model["spec"].get("replicas") == "all" else f"{model['min_replicas']}/{most}"
    if model["spec"].get("pinned"):
        counts += " pinned"
    # A gateway of an earlier version says nothing of either.
    abilities = [name for name in ABILITIES if model.get("capabilities", {}).get(name)]
    return {
        **model,
        "min/max": counts,
        "kind": " ".join(abilities) or None,
        "context": model.get("context_tokens"),
    }


def _load(client: ApiClient, path: str, *, wait: bool) -> int:
    status = client.post(f"{path}/load")
    if not wait:
        print(status_line(status))
        return OK
    end = follow_load(status, lambda: client.get(f"{path}/load-status"))
    if end["state"] == "ready":
        return OK
    print_error(status_line(end))
    return FAILED


def _body(client: ApiClient, arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the new spec. A file is a whole spec; values change the spec that the model has."""
    if bool(arguments.file) == bool(arguments.values):
        raise BadValue("give either --file FILE or KEY=VALUE pairs")
    if arguments.file:
        return read_spec(arguments.file, arguments.model, sys.stdin.buffer)
    known = {model["name"]: model["spec"] for model in client.get("/api/models")["models"]}
    return with_values(known.get(arguments.model, {}), arguments.values)
