"""The composition root of `gateway migrate`: a connection to a PostgreSQL registry, and nothing else of a gateway."""

from collections.abc import Sequence
from dataclasses import dataclass

from gateway.bridge import open_bridge
from gateway.registry.postgres.pool import open_postgres_pool
from gateway.registry.postgres.schema import migrate


@dataclass(frozen=True)
class Migrated:
    """The result of `migrate_postgres`."""

    server: str
    """The server, without a password."""
    applied: Sequence[int]
    """The numbers of the migrations that were missing."""


async def migrate_postgres(url: str) -> Migrated:
    """Brings the tables up to date, while gateways work with them. Raises `RegistryError`."""
    async with open_bridge() as bridge, open_postgres_pool(bridge, url) as pool:
        return Migrated(pool.server, await migrate(pool))
