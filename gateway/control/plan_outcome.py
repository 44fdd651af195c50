"""What the last plan could not bring about, and why, for whoever has to tell clients and admins."""

from collections.abc import Mapping
from types import MappingProxyType

import structlog

from gateway.domain.ids import ModelName
from gateway.domain.model_spec import NOTHING
from gateway.domain.peers import PendingReason
from gateway.planner.plan import Plan

log = structlog.get_logger(__name__)


class PlanOutcome:
    """Written by the `Reconciler` with each plan. Empty while this gateway does not lead."""

    def __init__(self) -> None:
        self.pending: Mapping[ModelName, PendingReason] = NOTHING
        """Models of which a replica is wanted that can't be started yet, and why."""
        self.unsatisfiable: Mapping[ModelName, str] = NOTHING
        """Models that lack replicas that they have to have, and the numbers (P5)."""

    def record(self, plan: Plan) -> None:
        """Replaces what the plan before this one came to; a model that becomes unsatisfiable is logged."""
        for model, because in plan.unsatisfiable.items():
            if model not in self.unsatisfiable:
                log.warning("control.unsatisfiable", model=model, because=because)
        pending = {entry.model: PendingReason(entry.because, entry.is_shortage) for entry in plan.pending}
        self.pending = MappingProxyType(pending)
        self.unsatisfiable = plan.unsatisfiable
