"""Keeps what a process knows while its registry file refuses writes, for example because the disk is full.

The reports of workers are true whether they can be stored or not. Reads show them meanwhile, so that routing leaves a
replica that has ended. Who could not write a report tries again, so nothing is written from here.
"""

from dataclasses import dataclass, field, replace
from typing import NamedTuple

import structlog

from gateway.domain.ids import NodeId
from gateway.domain.session import Report
from gateway.registry.protocol import WritesRefused
from gateway.registry.tables import Tables
from gateway.registry.writes.replicas import reports_recorded

log = structlog.get_logger()


class _Kept(NamedTuple):
    session: int
    reports: tuple[Report, ...]
    now: float


@dataclass
class RefusedWrites:
    """The reason why writes are refused, and the reports that could not be stored."""

    cause: str | None = None
    changes: int = 0
    """The number of changes so far that reads show. It is part of the state's version."""
    _kept: dict[NodeId, _Kept] = field(default_factory=dict)

    def __contains__(self, node_id: NodeId) -> bool:
        """Returns whether reports of the node are kept here."""
        return node_id in self._kept

    def refuse(self, error: WritesRefused) -> None:
        """Records that a write was refused. The first cause stays until writes are accepted."""
        if self.cause is None:
            self.cause = error.cause
            self.changes += 1
            log.error("registry.writes_refused", error=str(error))

    def accept(self) -> None:
        """Records that a write was accepted."""
        if self.cause is not None:
            self.cause = None
            self.changes += 1
            log.info("registry.writes_accepted")

    def keep(self, node_id: NodeId, session: int, reports: tuple[Report, ...], now: float) -> None:
        """Keeps the reports of a session that could not be stored. They include its earlier ones."""
        kept = self._kept.get(node_id)
        if kept is None or (kept.session, kept.reports) != (session, reports):
            self._kept[node_id] = _Kept(session, reports, now)
            self.changes += 1

    def forget(self, node_id: NodeId) -> None:
        """Forgets the reports of a node, because they are stored."""
        if self._kept.pop(node_id, None) is not None:
            self.changes += 1

    def applied(self, tables: Tables) -> Tables:
        """Returns the stored rows with the kept reports written over them."""
        for node_id, kept in self._kept.items():
            tables = reports_recorded(tables, node_id, kept.session, kept.reports, kept.now) or tables
        return replace(tables, version=tables.version + self.changes)
