"""Strict mode's way to the registry: a claim, and what its failure means to routing."""

from gateway.domain.claim import Claim, ClaimFailed
from gateway.domain.ids import ReplicaId
from gateway.registry.protocol import ClaimsSlots, RegistryError
from gateway.routing.reservation import ClaimSlot


def claims_at(registry: ClaimsSlots) -> ClaimSlot:
    async def claim_slot(claim: Claim) -> ReplicaId | None:
        try:
            return await registry.claim_slot(claim)
        except RegistryError as error:
            raise ClaimFailed(str(error)) from error

    return claim_slot
