"""Converts records to SQL rows and back.

A row written by a newer gateway may hold values that this one does not know. Such a value never raises. It is read as
something that gets no request and for which nothing is deleted:

| unknown                     | read as                                                                       |
|-----------------------------|-------------------------------------------------------------------------------|
| `Desired`                   | `drain`: no new request, open ones finish                                     |
| `Observed`                  | `draining`: it may still have a process, so it is neither final nor coming up |
| link, labels, `Declared`    | `unhealthy`, nothing said: gets nothing new, keeps its session number         |
| `NodeOverrides`             | none, and not approved: an admin has to say again what counts                 |
| `Capacity`                  | `UNKNOWN`; a part that only a newer version has is left out                   |
| a model's spec              | None: the row stays, the model is in no state (`Tables.unreadable`)           |
| `Requirement`, `Capabilities` | not known; a part that only a newer version has is left out                   |
"""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from gateway.domain.cluster import LoadFailure, Node, NodeStatus, Replica
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import NOTHING, Capabilities, ModelSpec
from gateway.domain.resources import UNKNOWN, Capacity, Requirement, VramBudget
from gateway.registry.protocol import NodeOverrides
from gateway.registry.tables import Declared, ModelRow, NodeRow

SqlValue = str | int | float | None
State = TypeVar("State", bound=StrEnum)
Knowledge = TypeVar("Knowledge", Requirement, Capabilities)
Declaration = TypeVar("Declaration", Declared, NodeOverrides)

MODEL_COLUMNS: Final = (
    "name",
    "source",
    "revision",
    "spec",
    "failure_cause",
    "failure_attempts",
    "failure_retry_at",
    "requirement",
    "capabilities",
    "unload_at",
)
NODE_COLUMNS: Final = (
    "id",
    "name",
    "boot_id",
    "link",
    "labels",
    "max_replicas_per_model",
    "free_vram_bytes",
    "approved",
    "draining",
    "capacity",
    "since",
    "session",
    "gateway_id",
    "joined_boot_id",
    "declared",
    "overrides",
)
REPLICA_COLUMNS: Final = (
    "id",
    "model",
    "node_id",
    "slot",
    "revision",
    "desired",
    "observed",
    "parallel",
    "address",
    "pid",
    "error",
    "exit_code",
    "since",
    "desired_version",
    "broken",
    "lost",
)

SPEC_KEYS: Final = frozenset(field.name for field in fields(ModelSpec)) - {"name", "source"}
DECLARATION_KEYS: Final = frozenset(field.name for field in (*fields(Declared), *fields(NodeOverrides)))
BUDGET_KEYS: Final = frozenset(field.name for field in fields(VramBudget))
_SPEC: Final = TypeAdapter(ModelSpec)
_REQUIREMENT: Final = TypeAdapter(Requirement)
_CAPABILITIES: Final = TypeAdapter(Capabilities)
_CAPACITY: Final = TypeAdapter(Capacity)
_DECLARED: Final = TypeAdapter(Declared)
_OVERRIDES: Final = TypeAdapter(NodeOverrides)


class SqlRow(Protocol):
    """A row as any driver returns it: a value by the name of its column."""

    def __getitem__(self, column: str, /) -> Any: ...  # noqa: ANN401 - the schema knows the type, the driver does not


def model_to_row(row: ModelRow) -> dict[str, SqlValue]:
    """Converts a model to the values of its SQL row, one for each of `MODEL_COLUMNS`; structured values are JSON."""
    spec, failure = row.spec, row.failure
    return {
        "name": spec.name,
        "source": spec.source,
        "revision": spec.revision,
        "spec": _json({key: getattr(spec, key) for key in sorted(SPEC_KEYS)}),
        "failure_cause": failure.cause if failure else None,
        "failure_attempts": failure.attempts if failure else None,
        "failure_retry_at": failure.retry_at if failure else None,
        "requirement": _json(row.requirement) if row.requirement else None,
        "capabilities": _json(row.capabilities) if row.capabilities else None,
        "unload_at": row.unload_at,
    }


def model_from_row(row: SqlRow) -> ModelRow | None:
    """Reads a model from its row, or returns None if this version cannot read the spec. One unknown key is enough: a
    process that was started without it would serve another model. A key that an earlier version did not have has its
    default."""
    try:
        stored = json.loads(row["spec"])
        if not SPEC_KEYS.issuperset(stored):
            return None
        spec = _SPEC.validate_python({**stored, "name": row["name"], "source": row["source"]})
    except (ValidationError, TypeError, ValueError):
        return None
    frozen = replace(spec, options=MappingProxyType(spec.options), selector=MappingProxyType(spec.selector))
    return ModelRow(
        frozen,
        failure=_failure_from_row(row),
        requirement=_knowledge(_REQUIREMENT, row["requirement"]),
        capabilities=_knowledge(_CAPABILITIES, row["capabilities"]),
        unload_at=row["unload_at"],
    )


def _knowledge(kind: TypeAdapter[Knowledge], text: str | None) -> Knowledge | None:
    """Reads what is known of a model, or returns None if this version cannot read it."""
    if text is None:
        return None
    try:
        return kind.validate_python(json.loads(text))
    except (ValidationError, TypeError, ValueError):
        return None


def _failure_from_row(row: SqlRow) -> LoadFailure | None:
    if row["failure_cause"] is None:
        return None
    return LoadFailure(row["failure_cause"], row["failure_attempts"], row["failure_retry_at"])


def node_to_row(row: NodeRow) -> dict[str, SqlValue]:
    """Converts a node to the values of its SQL row, one for each of `NODE_COLUMNS`; structured values are JSON."""
    node = row.node
    return {
        "id": node.id,
        "name": node.name,
        "boot_id": node.boot_id,
        "link": node.condition,
        "labels": _json(node.labels),
        "max_replicas_per_model": node.max_replicas_per_model,
        "free_vram_bytes": node.free_vram_bytes,
        "approved": node.approved,
        "draining": node.draining,
        "capacity": _json(node.capacity),
        "since": node.since,
        "session": node.session,
        "gateway_id": node.gateway_id,
        "joined_boot_id": node.joined_boot_id,
        "declared": _json(row.declared),
        "overrides": _json(row.overrides),
    }


def node_from_row(row: SqlRow) -> NodeRow:
    """Reads a node from its SQL row; the module's docstring says what replaces values that can't be read."""
    labels = _labels(row["labels"])
    declared, overrides = _declaration(_DECLARED, row["declared"]), _declaration(_OVERRIDES, row["overrides"])
    is_readable = labels is not None and declared is not None
    node = Node(
        id=row["id"],
        name=row["name"],
        boot_id=row["boot_id"],
        condition=_known(NodeStatus, row["link"], NodeStatus.UNHEALTHY) if is_readable else NodeStatus.UNHEALTHY,
        labels=labels or NOTHING,
        max_replicas_per_model=row["max_replicas_per_model"],
        free_vram_bytes=row["free_vram_bytes"],
        approved=bool(row["approved"]) and overrides is not None,
        draining=bool(row["draining"]),
        capacity=_capacity(row["capacity"]),
        since=row["since"],
        session=row["session"],
        gateway_id=row["gateway_id"],
        joined_boot_id=row["joined_boot_id"],
    )
    return NodeRow(node, declared or Declared(), overrides or NodeOverrides())


def _capacity(text: str) -> Capacity:
    try:
        return _CAPACITY.validate_python(json.loads(text))
    except (ValidationError, TypeError, ValueError):
        return UNKNOWN


def _declaration(kind: TypeAdapter[Declaration], text: str) -> Declaration | None:
    """Reads a part of a row, or returns None if this version cannot read it. One unknown key is enough, because its
    author wanted it to count."""
    try:
        stored = json.loads(text)
        stored_value = kind.validate_python(stored)
    except (ValidationError, TypeError, ValueError):
        return None
    if not DECLARATION_KEYS.issuperset(stored) or not BUDGET_KEYS.issuperset(stored.get("vram_budget") or ()):
        return None
    return replace(stored_value, labels=MappingProxyType(stored_value.labels))


def _labels(text: str) -> Mapping[str, str] | None:
    try:
        labels = json.loads(text)
    except ValueError:
        return None
    readable = isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values())
    return MappingProxyType(labels) if readable else None


def replica_to_row(replica: Replica) -> dict[str, SqlValue]:
    """Converts a replica to the values of its SQL row, one for each of `REPLICA_COLUMNS`."""
    return {
        "id": replica.id,
        "model": replica.model,
        "node_id": replica.node_id,
        "slot": replica.slot,
        "revision": replica.revision,
        "desired": replica.desired,
        "observed": replica.observed,
        "parallel": replica.parallel,
        "address": replica.address,
        "pid": replica.pid,
        "error": replica.error,
        "exit_code": replica.exit_code,
        "since": replica.since,
        "desired_version": replica.desired_version,
        "broken": replica.broken,
        "lost": replica.lost,
    }


def replica_from_row(row: SqlRow) -> Replica:
    """Reads a replica from its SQL row; an unknown desired or observed state is read as draining."""
    return Replica(
        id=row["id"],
        model=row["model"],
        node_id=row["node_id"],
        slot=row["slot"],
        revision=row["revision"],
        desired=_known(Desired, row["desired"], Desired.DRAIN),
        observed=_known(Observed, row["observed"], Observed.DRAINING),
        parallel=row["parallel"],
        address=row["address"],
        pid=row["pid"],
        error=row["error"],
        exit_code=row["exit_code"],
        since=row["since"],
        desired_version=row["desired_version"],
        broken=row["broken"],
        lost=bool(row["lost"]),
    )


def _known(states: type[State], value: str, otherwise: State) -> State:
    try:
        return states(value)
    except ValueError:
        return otherwise


def _json(value: object) -> str:
    return json.dumps(value, default=_plain)


def _plain(value: Any) -> object:  # noqa: ANN401 - a mapping or a record
    return dict(value) if isinstance(value, Mapping) else vars(value)


def storable(text: str) -> str:
    """Returns the text without what a store refuses. The output of a dying process may hold bytes that are no text
    (lone surrogates), and NUL, which ends a text in SQLite's JSON functions and is no text for PostgreSQL."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")
