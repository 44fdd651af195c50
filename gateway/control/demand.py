"""Tells the registry which models this gateway's requests wait for, and wakes the planner."""

from collections.abc import Callable
from dataclasses import dataclass, field

import structlog
import trio

from gateway.domain.cluster import Demand
from gateway.domain.ids import GatewayId, ModelName
from gateway.registry.protocol import Registry, RegistryError
from gateway.wake import Wake

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Waiting:
    """Requests that wait for one model here."""

    waiting: int
    oldest_seconds: float


@dataclass
class DemandPublisher:
    """Publishes when a model's queue begins or ends (`changed`), at most once every `interval_seconds`."""

    registry: Registry
    gateway_id: GatewayId
    waiting: Callable[[], dict[ModelName, Waiting]]
    published: Callable[[], None]
    """Called after each publication: the planner should look."""
    interval_seconds: float
    changed: Wake = field(default_factory=Wake)

    async def run(self) -> None:
        while True:
            await self.changed.wait()
            try:
                await self._publish()
            except RegistryError as error:
                log.warning("control.demand_not_published", error=str(error))
                self.changed.set()
            await trio.sleep(self.interval_seconds)

    async def _publish(self) -> None:
        now = await self.registry.now()
        rows = [
            Demand(self.gateway_id, model, each.waiting, now - each.oldest_seconds)
            for model, each in self.waiting().items()
        ]
        await self.registry.publish_demand(self.gateway_id, rows)
        self.published()
