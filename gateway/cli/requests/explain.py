"""`gateway explain`: shows why a request went where it went, or where one would go now, candidate by candidate."""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from gateway.cli.client import ApiClient, ApiError
from gateway.cli.outcome import FAILED, OK, USAGE, print_error
from gateway.cli.table import table

COLUMNS: Final[Sequence[str]] = (
    "replica", "node", "verdict", "load", "slots", "answers", "unused_seconds", "free_vram_bytes",
)  # fmt: skip


def explain(arguments: argparse.Namespace) -> int:
    """Prints why a request went where it went, or where one for a model would go now. Returns the exit code."""
    if (arguments.model is None) == (arguments.request is None):
        print_error("name a MODEL or a request (--request ID)")
        return USAGE
    client = ApiClient(arguments)
    try:
        if arguments.request is not None:
            lines = decision_lines(client.get(f"/api/decisions/{quote(arguments.request, safe='')}"))
        else:
            lines = explanation_lines(client.post("/api/explain", {"model": arguments.model}))
    except ApiError as error:
        print_error(str(error))
        return FAILED
    print("\n".join(lines))
    return OK


def explanation_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines about a request that would be made now. Pure."""
    chosen = document["chosen"]
    yield f"a request for {document['model']} would " + (f"go to {chosen}" if chosen else "wait")
    if document["queued"]:
        yield f"{document['queued']} requests wait already"
    if document["candidates"]:
        yield from table(COLUMNS, document["candidates"])
    for replica, reason in document["not_routable"].items():
        yield f"{replica} may take no request: {reason}"


def decision_lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines about a request that was made, attempt by attempt. Pure."""
    yield f"request {document['request_id']} of {document['caller']} for {document['model']}"
    if not document["attempts"]:
        yield "no replica was picked (yet)"
    for number, attempt in enumerate(document["attempts"], 1):
        probe = f", probe: {attempt['probe']}" if attempt["probe"] else ""
        ended = f" after {attempt['ended_after']} s" if attempt["ended_after"] is not None else ""
        yield f"{number}. {attempt['replica']} at {attempt['picked_after']} s{probe}: {attempt['outcome']}{ended}"
        yield from ("   " + line for line in table(COLUMNS, attempt["candidates"]))
