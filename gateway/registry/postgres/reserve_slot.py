"""Picks a replica and counts its lease in one transaction, for gateways that must not differ for a moment (strict
mode).

Theory of operation. Under READ COMMITTED every statement sees what was committed before it began. So the first
statement waits for the model's row, which makes the picks of one model one at a time in the whole fleet, and the second
one, with a new snapshot, sees every pick before it. (ORDER BY with FOR UPDATE in one statement would lock what was the
best before the wait: R3.) Then the choice is written into the asking gateway's peer state, which is complete, so that
nothing counts up and down. Rows of nodes and of replicas, and the counter, are never locked: heartbeats and control
writes go on.

A gateway's reservations and its exchanges of peer states have to come one after the other: each writes all its leases.
"""

from typing import Final, NamedTuple

from gateway.domain.ids import ReplicaId
from gateway.domain.peers import PeerState, SlotRequest
from gateway.registry.peer_rows import peer_state_texts
from gateway.registry.postgres.peer_sync import hash_of
from gateway.registry.postgres.pick_sql import PICK
from gateway.registry.postgres.pool import Bounds, PostgresTransaction
from gateway.registry.protocol import RegistryError

RESERVE_BOUNDS: Final = Bounds(
    lock_seconds=0.5, statement_seconds=0.5, idle_seconds=1.0, attempt_seconds=0.8, call_seconds=1.5, attempts=3
)
"""The time limits. They are shorter than those of any other call, because a request waits for the pick, and others wait
for that request."""

LOCK_MODEL: Final = "SELECT 1 FROM models WHERE name = $1 FOR NO KEY UPDATE"
PUBLISH: Final = "UPDATE gateways SET leases = $2, leases_hash = $3 WHERE id = $1 RETURNING id"


class Picked(NamedTuple):
    """The replica that the query `PICK` has chosen, and whether it has a free slot."""

    replica_id: ReplicaId
    has_free_slot: bool


async def reserve_slot_aio(
    request: SlotRequest, test_time: float | None, transaction: PostgresTransaction
) -> ReplicaId | None:
    """Returns the replica for the request, which counts as this gateway's lease from now on. Returns None if no slot is
    free.

    Raises `RegistryError` when the gateway has published no peer state yet, so that nobody would count its lease.
    """
    await transaction.rows_aio(LOCK_MODEL, request.model)
    picked = await pick_aio(request, test_time, transaction)
    if picked is None or not picked.has_free_slot:
        return None
    leases = {**request.leases, picked.replica_id: request.leases.get(picked.replica_id, 0) + 1}
    text = peer_state_texts(PeerState(request.gateway_id, leases=leases))["leases"]
    if not await transaction.rows_aio(PUBLISH, request.gateway_id, text, hash_of(text)):
        raise RegistryError("the registry does not know this gateway (yet)")
    return picked.replica_id


async def pick_aio(request: SlotRequest, test_time: float | None, transaction: PostgresTransaction) -> Picked | None:
    """Returns the best replica by the rows as they are now, or None if none is routable."""
    found = await transaction.rows_aio(
        PICK,
        test_time,
        request.model,
        request.gateway_id,
        list(request.leases.keys()),
        list(request.leases.values()),
        list(request.unused_seconds.keys()),
        list(request.unused_seconds.values()),
        *map(list, (request.excluded, request.suspect, request.full, request.busy)),
    )
    return Picked(*found[0]) if found else None
