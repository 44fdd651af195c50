"""Turns the rows that the statements of `sql` read into records, and remembers the last ones."""

from collections.abc import Iterable, Sequence
from typing import Final

import asyncpg

from gateway.domain.cluster import Demand, Replica
from gateway.registry import rows
from gateway.registry.peer_rows import demand_from_text
from gateway.registry.postgres.sql import DEMAND_COLUMNS
from gateway.registry.row_cache import RowCache, Values
from gateway.registry.rows import MODEL_COLUMNS, NODE_COLUMNS, REPLICA_COLUMNS
from gateway.registry.tables import LeaderTerm, ModelRow, NodeRow, Tables

NAME: Final = MODEL_COLUMNS.index("name")
SOURCE: Final = MODEL_COLUMNS.index("source")


class RowReader:
    """Turns rows of PostgreSQL into `Tables`, and parses only what has changed since it last read the whole state."""

    def __init__(self) -> None:
        self._models = RowCache[ModelRow | None](MODEL_COLUMNS, rows.model_from_row)
        self._nodes = RowCache[NodeRow](NODE_COLUMNS, rows.node_from_row)
        self._replicas = RowCache[Replica](REPLICA_COLUMNS, rows.replica_from_row)

    def tables(self, row: asyncpg.Record, *, is_whole: bool) -> Tables:
        """Returns the tables from a row of READ_STATE or READ_PART; `is_whole` says that it has the whole state."""
        models = self._models.records(_table(row, "models", MODEL_COLUMNS), is_whole=is_whole)
        nodes = self._nodes.records(_table(row, "nodes", NODE_COLUMNS), is_whole=is_whole)
        replicas = self._replicas.records(_table(row, "replicas", REPLICA_COLUMNS), is_whole=is_whole)
        return Tables(
            models={model.spec.name: model for model in models.values() if model},
            nodes={each.node.id: each for each in nodes.values()},
            replicas={replica.id: replica for replica in replicas.values()},
            leader_term=LeaderTerm(row["leader"], row["epoch"], row["expires_at"]),
            version=row["version"],
            unreadable={values[NAME]: values[SOURCE] for values, model in models.items() if model is None},
        )


def demand_of(row: asyncpg.Record) -> list[Demand]:
    """Returns the demand of all gateways from the row that READ_STATE has returned."""
    rows = _table(row, "gateways", DEMAND_COLUMNS)
    return [waiting for gateway_id, text in rows for waiting in demand_from_text(gateway_id, text)]


def _table(row: asyncpg.Record, table: str, columns: Sequence[str]) -> Iterable[Values]:
    return zip(*(row[f"{table}_{column}"] or () for column in columns), strict=True)
