"""Records as SQL rows and back.

A row written by a newer gateway may hold what this one does not know. It is then read as something no request is
routed to and nothing is thrown away for, and it is never an exception:

| unknown              | read as                                                                       |
|----------------------|-------------------------------------------------------------------------------|
| `Desired`            | `drain`: no new request, open ones finish                                     |
| `Observed`           | `draining`: it may still have a process, so it is neither final nor coming up |
| `NodeStatus`, labels | `unhealthy`, no labels: gets nothing new, keeps its session number            |
| a model's spec       | None: the row stays, the model is in no state (`Tables.unreadable`)           |
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from gateway.domain.cluster import Demand, LoadFailure, Node, NodeStatus, Replica
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import NOTHING, ModelSpec
from gateway.registry.tables import ModelRow, NodeRow

SqlValue = str | int | float | None
State = TypeVar("State", bound=StrEnum)

MODEL_COLUMNS: Final = ("name", "source", "revision", "spec", "failure_cause", "failure_attempts", "failure_retry_at")
NODE_COLUMNS: Final = (*(field.name for field in fields(Node)), "session", "gateway_id")
REPLICA_COLUMNS: Final = tuple(field.name for field in fields(Replica))
DEMAND_COLUMNS: Final = tuple(field.name for field in fields(Demand))

SPEC_KEYS: Final = frozenset(field.name for field in fields(ModelSpec)) - {"name", "source"}
_SPEC: Final = TypeAdapter(ModelSpec)


class SqlRow(Protocol):
    """What any driver returns: a value by the name of its column."""

    def __getitem__(self, column: str, /) -> Any: ...  # noqa: ANN401 - the schema knows the type, the driver does not


def model_to_row(row: ModelRow) -> dict[str, SqlValue]:
    spec, failure = row.spec, row.failure
    return {
        "name": spec.name,
        "source": spec.source,
        "revision": spec.revision,
        "spec": json.dumps({key: _plain(getattr(spec, key)) for key in sorted(SPEC_KEYS)}),
        "failure_cause": failure.cause if failure else None,
        "failure_attempts": failure.attempts if failure else None,
        "failure_retry_at": failure.retry_at if failure else None,
    }


def model_from_row(row: SqlRow) -> ModelRow | None:
    """None: this version can't read the spec. One key it does not know is enough: a process started without what the
    key asks for would be another model."""
    try:
        stored = json.loads(row["spec"])
        if not SPEC_KEYS.issuperset(stored):
            return None
        spec = _SPEC.validate_python({**stored, "name": row["name"], "source": row["source"]})
    except (ValidationError, TypeError, ValueError):
        return None
    frozen = replace(spec, options=MappingProxyType(spec.options), selector=MappingProxyType(spec.selector))
    return ModelRow(frozen, _failure_from_row(row))


def _failure_from_row(row: SqlRow) -> LoadFailure | None:
    if row["failure_cause"] is None:
        return None
    return LoadFailure(row["failure_cause"], row["failure_attempts"], row["failure_retry_at"])


def node_to_row(row: NodeRow) -> dict[str, SqlValue]:
    plain = {field.name: getattr(row.node, field.name) for field in fields(Node)}
    return {**plain, "labels": json.dumps(dict(row.node.labels)), "session": row.session, "gateway_id": row.gateway_id}


def node_from_row(row: SqlRow) -> NodeRow:
    plain = {field.name: row[field.name] for field in fields(Node)}
    labels = _labels(row["labels"])
    status = NodeStatus.UNHEALTHY if labels is None else _known(NodeStatus, row["status"], NodeStatus.UNHEALTHY)
    node = Node(**{**plain, "labels": labels or NOTHING, "status": status})
    return NodeRow(node, row["session"], row["gateway_id"])


def _labels(text: str) -> Mapping[str, str] | None:
    try:
        labels = json.loads(text)
    except ValueError:
        return None
    readable = isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values())
    return MappingProxyType(labels) if readable else None


def replica_to_row(replica: Replica) -> dict[str, SqlValue]:
    return {name: getattr(replica, name) for name in REPLICA_COLUMNS}


def replica_from_row(row: SqlRow) -> Replica:
    desired = _known(Desired, row["desired"], Desired.DRAIN)
    observed = _known(Observed, row["observed"], Observed.DRAINING)
    return Replica(**{**{name: row[name] for name in REPLICA_COLUMNS}, "desired": desired, "observed": observed})


def demand_to_row(demand: Demand) -> dict[str, SqlValue]:
    return {name: getattr(demand, name) for name in DEMAND_COLUMNS}


def demand_from_row(row: SqlRow) -> Demand:
    return Demand(**{name: row[name] for name in DEMAND_COLUMNS})


def _known(states: type[State], value: str, otherwise: State) -> State:
    try:
        return states(value)
    except ValueError:
        return otherwise


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else value
