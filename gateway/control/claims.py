"""Connects strict mode to the registry, and translates the registry's errors for routing."""

from gateway.domain.claim import ReservationFailed, SlotRequest
from gateway.domain.ids import ReplicaId
from gateway.registry.protocol import RegistryError, SlotReserver
from gateway.routing.reservation import ReserveSlot


def claims_at(registry: SlotReserver) -> ReserveSlot:
    """Returns a `ReserveSlot` that asks the registry. A `RegistryError` becomes `ReservationFailed`."""

    async def claim_slot(claim: SlotRequest) -> ReplicaId | None:
        try:
            return await registry.claim_slot(claim)
        except RegistryError as error:
            raise ReservationFailed(str(error)) from error

    return claim_slot
