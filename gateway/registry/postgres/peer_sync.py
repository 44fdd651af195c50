"""Exchanges peer states through the table `gateways`. Each text crosses the network once, when it is new.

A gateway remembers the hashes of its own row, and the texts of its peers with their hashes. It sends and receives only
the differences. Each answer is checked against the stored hashes. So a row that was removed, or a commit of unknown
outcome, is repaired by sending everything again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Final, TypeAlias, TypeVar

import asyncpg

from gateway.domain.ids import GatewayId
from gateway.domain.peers import PeerState, PeerStates
from gateway.registry.peer_rows import PLAIN_COLUMNS, TEXT_COLUMNS, peer_state_from_row, peer_state_texts, plain_values
from gateway.registry.postgres.pool import PostgresTransaction
from gateway.registry.postgres.sql import EXCHANGE, HASH_COLUMNS

Value = TypeVar("Value")
Hashes: TypeAlias = tuple[int, ...]
"""One hash for each of `TEXT_COLUMNS`, in their order."""
NOTHING_SENT: Final[Hashes] = (0,) * len(TEXT_COLUMNS)


@dataclass(frozen=True)
class Known:
    """The last texts of a peer."""

    row: Mapping[str, object]
    hashes: Hashes
    peer_state: PeerState


class PeerStateCache:
    """Remembers what one gateway has published and read."""

    def __init__(self, gateway_id: GatewayId) -> None:
        self._gateway_id = gateway_id
        self._sent_hashes = NOTHING_SENT
        self._others: Mapping[GatewayId, Known] = {}

    @property
    def has_peers(self) -> bool:
        """Whether other gateways had published something at the last exchange."""
        return bool(self._others)

    async def exchange_aio(
        self, transaction: PostgresTransaction, peer_state: PeerState, ttl_seconds: float, test_time: float | None
    ) -> PeerStates:
        """Publishes this gateway's peer state for `ttl_seconds` and returns those of the others, in one statement.

        All texts are sent again if the row does not hold what was sent before. `test_time` replaces the server's
        clock in tests.
        """
        texts = peer_state_texts(peer_state)
        hashes = tuple(hash_of(texts[column]) for column in TEXT_COLUMNS)
        known = self._others
        rows = await transaction.rows_aio(
            EXCHANGE,
            test_time,
            self._gateway_id,
            ttl_seconds,
            *plain_values(peer_state),
            *self._changed_only([texts[column] for column in TEXT_COLUMNS], hashes),
            *self._changed_only(hashes, hashes),
            list(known),
            *([each.hashes[index] for each in known.values()] for index in range(len(TEXT_COLUMNS))),
        )
        if _stored_hashes(rows[0]) != hashes:
            self._sent_hashes = NOTHING_SENT
            return await self.exchange_aio(transaction, peer_state, ttl_seconds, test_time)
        self._sent_hashes = hashes
        received = [row for row in rows if row["id"] is not None]
        self._others = {row["id"]: _received(row, known.get(row["id"])) for row in received}
        others, silent = (
            MappingProxyType(
                {row["id"]: self._others[row["id"]].peer_state for row in received if row["lives"] is lives}
            )
            for lives in (True, False)
        )
        return PeerStates(rows[0]["now"], rows[0]["version"], others, silent)

    def _changed_only(self, values: Sequence[Value], hashes: Hashes) -> list[Value | None]:
        """Returns the values that differ from those published before, and None for the others."""
        return [
            None if sent == new else value for value, sent, new in zip(values, self._sent_hashes, hashes, strict=True)
        ]


def hash_of(text: str) -> int:
    """Returns a signed 64-bit BLAKE2b hash of a text, which fits a bigint column."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big", signed=True)


def _stored_hashes(row: asyncpg.Record) -> Hashes:
    return tuple(row[f"said_{column}"] for column in HASH_COLUMNS)


def _received(row: asyncpg.Record, known: Known | None) -> Known:
    texts = {column: known.row[column] if known and row[column] is None else row[column] for column in TEXT_COLUMNS}
    complete = {**{column: row[column] for column in PLAIN_COLUMNS}, **texts}
    if known and known.row == complete:
        return known
    hashes = tuple(row[column] for column in HASH_COLUMNS)
    return Known(complete, hashes, peer_state_from_row(row["id"], complete))
