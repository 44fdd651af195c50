"""What `postgres_sql` reads, as records. A row that is as it was at the last reading is the record that it was then.

All of the state is read whenever any of it has changed, and by whoever plans while he holds the lock that all writers
want: to parse it anew would take several times as long as to read it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Generic, TypeAlias, TypeVar

import asyncpg

from gateway.domain.cluster import Demand, Replica
from gateway.registry import rows
from gateway.registry.bulletin_rows import demand_from_text
from gateway.registry.postgres_sql import DEMAND_COLUMNS
from gateway.registry.rows import MODEL_COLUMNS, NODE_COLUMNS, REPLICA_COLUMNS
from gateway.registry.tables import Leadership, ModelRow, NodeRow, Tables

Record = TypeVar("Record")
Values: TypeAlias = tuple[Any, ...]

NAME: Final = MODEL_COLUMNS.index("name")
SOURCE: Final = MODEL_COLUMNS.index("source")


class Remembered(Generic[Record]):
    """Records of one table by the values of their rows."""

    def __init__(self, columns: Sequence[str], read: Callable[[dict[str, Any]], Record]) -> None:
        self._columns = columns
        self._read = read
        self._records: dict[Values, Record] = {}

    def records(self, table: Iterable[Values], *, is_whole: bool) -> dict[Values, Record]:
        """Of all rows of the table, or of some of them."""
        found = {values: self._record(values) for values in table}
        if is_whole:
            self._records = found
        return found

    def _record(self, values: Values) -> Record:
        known = self._records.get(values)
        return self._read(dict(zip(self._columns, values, strict=True))) if known is None else known


class RowReader:
    def __init__(self) -> None:
        self._models = Remembered[ModelRow | None](MODEL_COLUMNS, rows.model_from_row)
        self._nodes = Remembered[NodeRow](NODE_COLUMNS, rows.node_from_row)
        self._replicas = Remembered[Replica](REPLICA_COLUMNS, rows.replica_from_row)

    def tables(self, row: asyncpg.Record, *, is_whole: bool) -> Tables:
        """Of what READ_STATE, or READ_PART, has returned."""
        models = self._models.records(_table(row, "models", MODEL_COLUMNS), is_whole=is_whole)
        nodes = self._nodes.records(_table(row, "nodes", NODE_COLUMNS), is_whole=is_whole)
        replicas = self._replicas.records(_table(row, "replicas", REPLICA_COLUMNS), is_whole=is_whole)
        return Tables(
            models={model.spec.name: model for model in models.values() if model},
            nodes={each.node.id: each for each in nodes.values()},
            replicas={replica.id: replica for replica in replicas.values()},
            leadership=Leadership(row["leader"], row["epoch"], row["expires_at"]),
            version=row["version"],
            unreadable={values[NAME]: values[SOURCE] for values, model in models.items() if model is None},
        )


def demand_of(row: asyncpg.Record) -> list[Demand]:
    """Of what READ_STATE has returned."""
    said = _table(row, "gateways", DEMAND_COLUMNS)
    return [waiting for gateway_id, text in said for waiting in demand_from_text(gateway_id, text)]


def _table(row: asyncpg.Record, table: str, columns: Sequence[str]) -> Iterable[Values]:
    return zip(*(row[f"{table}_{column}"] or () for column in columns), strict=True)
