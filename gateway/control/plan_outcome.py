"""Keeps what the last plan could not do, with the reasons that clients and admins see."""

from collections.abc import Mapping
from types import MappingProxyType

import structlog

from gateway.domain.ids import ModelName
from gateway.domain.model_spec import NOTHING
from gateway.domain.peers import PendingReason
from gateway.planner.plan import Plan

log = structlog.get_logger(__name__)


class PlanOutcome:
    """The unmet wants of the last plan. The `Reconciler` records each plan here. It is empty while this gateway does
    not lead."""

    def __init__(self) -> None:
        self.pending: Mapping[ModelName, PendingReason] = NOTHING
        """The models that need a replica which cannot be started yet, each with the reason."""
        self.unsatisfiable: Mapping[ModelName, str] = NOTHING
        """The models that lack replicas of their minimum, each with the numbers (P5)."""

    def record(self, plan: Plan) -> None:
        """Records a plan in place of the one before. A model that becomes unsatisfiable is logged."""
        for model, because in plan.unsatisfiable.items():
            if model not in self.unsatisfiable:
                log.warning("control.unsatisfiable", model=model, because=because)
        pending = {entry.model: PendingReason(entry.because, entry.is_shortage) for entry in plan.pending}
        self.pending = MappingProxyType(pending)
        self.unsatisfiable = plan.unsatisfiable
