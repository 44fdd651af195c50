"""Makes the rows of the fleet's tables from the status document. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from gateway.domain.resources import GIB

Row = Mapping[str, Any]

TABLES: Final[Mapping[str, Sequence[str]]] = {
    "gateways": ("id", "leader", "url"),
    "nodes": ("name", "status", "gpus", "vram_free/total", "ram_free/total", "replicas", "since"),
    "models": ("name", "status", "ready", "desired", "in_flight", "queued", "error"),
    "replicas": ("model", "node", "state", "age", "in_flight/slots", "address", "pid", "id", "error"),
}
UNITS: Final = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def tables(document: Row) -> Mapping[str, Sequence[Row]]:
    """Returns the rows of each of `TABLES`."""
    return {
        "gateways": [_gateway_row(gateway) for gateway in document["gateways"]],
        "nodes": node_rows(document),
        "models": document["models"],
        "replicas": [_replica_row(replica) for replica in document["replicas"]],
    }


def _gateway_row(gateway: Row) -> Row:
    return {**gateway, "leader": "yes" if gateway["leader"] else "no"}


def node_rows(document: Row) -> Sequence[Row]:
    """Returns the rows of the table of nodes from the status document, with each node's number of replicas."""
    replicas = Counter(replica["node"] for replica in document["replicas"])
    return [_node_row(node, replicas[node["name"]]) for node in document["nodes"]]


def _node_row(node: Row, replicas: int) -> Row:
    """Returns the row of a node. Free amounts are shown together with their totals."""
    capacity = node["capacity"]
    return {
        "id": node["id"],
        "name": node["name"],
        "status": node["status"],
        "gpus": _gpus(capacity["gpus"]),
        "vram_free/total": share(capacity["vram_free_bytes"], capacity["vram_bytes"]),
        "ram_free/total": share(capacity["ram_free_bytes"], capacity["ram_bytes"]),
        "replicas": replicas,
        "since": duration(node["age"]),
    }


def _gpus(gpus: Sequence[Row]) -> str | None:
    """Returns the names of the GPUs, equal ones together: "2 x NVIDIA L4"."""
    counts = Counter(gpu["name"] or gpu["vendor"] for gpu in gpus)
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items()) or None


def _replica_row(replica: Row) -> Row:
    in_flight = f"{replica['in_flight']}/{replica['slots']}"
    return {**replica, "age": duration(replica["age"]), "in_flight/slots": in_flight}


def share(free_bytes: int | None, total_bytes: int | None) -> str | None:
    """Returns an amount such as "10.5/24.0 GiB". An unknown part is "?"."""
    if free_bytes is None and total_bytes is None:
        return None
    amounts = ["?" if amount is None else f"{amount / GIB:.1f}" for amount in (free_bytes, total_bytes)]
    return "/".join(amounts) + " GiB"


def duration(seconds: float | None) -> str | None:
    """Returns a duration in its two largest units: "2d 3h", "5m 12s", "0s"."""
    if seconds is None:
        return None
    rest, parts = int(seconds), list[str]()
    for length, unit in UNITS:
        count, rest = divmod(rest, length)
        if count or parts:
            parts.append(f"{count}{unit}")
    return " ".join(parts[:2]) or "0s"
