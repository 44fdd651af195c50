"""Peer states as SQL rows and back: four JSON texts, so that a gateway sends only what has changed since its last one.

Unknown fields from newer gateways are ignored, and a part that cannot be read counts as missing.
"""

import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final, TypeVar

from gateway.domain.cluster import Demand, Progress
from gateway.domain.ids import GatewayId, ModelName
from gateway.domain.model_spec import NOTHING
from gateway.domain.peers import PeerState, PendingReason, Use
from gateway.registry.rows import SqlValue, storable

Value = TypeVar("Value")

TEXT_COLUMNS: Final = ("leases", "uses", "demand", "notes")
"""The columns with JSON objects. `demand` is {model: [waiting, since]}."""
PLAIN_COLUMNS: Final = ("url", "secret_fingerprint", "seen_version")


def plain_values(peer_state: PeerState) -> tuple[SqlValue, ...]:
    """Returns the value of each of `PLAIN_COLUMNS`, in their order."""
    return peer_state.url, peer_state.secret_fingerprint, peer_state.seen_version


def peer_state_texts(peer_state: PeerState) -> dict[str, str]:
    """Returns the text of each of `TEXT_COLUMNS`. Equal parts of two peer states have equal texts."""
    notes = {
        "progress": {
            each: [value.done_bytes, value.total_bytes, value.bytes_per_second]
            for each, value in peer_state.progress.items()
        },
        "waits": {model: [storable(hold.because), hold.is_shortage] for model, hold in peer_state.pending.items()},
        "unsatisfiable": {model: storable(because) for model, because in peer_state.unsatisfiable.items()},
    }
    return {
        "leases": _text(dict(peer_state.leases)),
        "uses": _text({replica_id: use.since for replica_id, use in peer_state.uses.items()}),
        "demand": _text({row.model: [row.waiting, row.since] for row in peer_state.demand}),
        "notes": _text({name: part for name, part in notes.items() if part}),
    }


def peer_state_from_row(gateway_id: GatewayId, row: Mapping[str, Any]) -> PeerState:
    """Reads a peer state from its row, which has a value for each of `PLAIN_COLUMNS` and `TEXT_COLUMNS`."""
    notes = _object(row["notes"])
    return PeerState(
        gateway_id,
        row["url"],
        row["secret_fingerprint"],
        row["seen_version"],
        leases=_each(_object(row["leases"]), lambda _, count: _number(count, int)),
        uses=_each(_object(row["uses"]), lambda _, since: Use(_number(since, int, float))),
        demand=demand_from_text(gateway_id, row["demand"]),
        progress=_each(notes.get("progress"), lambda _, value: Progress(*value)),
        pending=_each(notes.get("waits"), lambda _, value: PendingReason(str(value[0]), bool(value[1]))),
        unsatisfiable=_each(notes.get("unsatisfiable"), lambda _, because: str(because)),
    )


def demand_from_text(gateway_id: GatewayId, text: str) -> tuple[Demand, ...]:
    """Parses a gateway's `demand` column, {model: [waiting, since]}, and leaves out entries that can't be read."""
    rows = _each(
        _object(text), lambda model, value: Demand(gateway_id, ModelName(model), int(value[0]), float(value[1]))
    )
    return tuple(rows.values())


def _number(value: object, *kinds: type[int] | type[float]) -> Any:  # noqa: ANN401 - of one of the kinds
    """Returns the number if it is of one of the kinds, and not a boolean. Raises `TypeError` otherwise."""
    if type(value) not in kinds:
        raise TypeError(f"{value!r} is no number")
    return value


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _object(text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (TypeError, ValueError):
        return NOTHING
    return found if isinstance(found, dict) else NOTHING


def _each(document: object, read: Callable[[str, Any], Value]) -> Mapping[Any, Value]:
    """Reads the entries of a JSON object, without those that can't be read."""
    if not isinstance(document, Mapping):
        return NOTHING
    readable: dict[Any, Value] = {}
    for key, value in document.items():
        try:
            readable[key] = read(key, value)
        except (TypeError, ValueError, IndexError, KeyError, OverflowError):
            continue
    return MappingProxyType(readable)
