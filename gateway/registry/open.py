"""Opens the registry of a URL."""

from contextlib import AbstractAsyncContextManager

from gateway.bridge import Bridge
from gateway.config.model import RegistrySection
from gateway.registry.embedded.memory import open_memory_registry
from gateway.registry.embedded.sqlite import open_sqlite_registry
from gateway.registry.protocol import Registry, RegistryError


def open_registry(section: RegistrySection, bridge: Bridge) -> AbstractAsyncContextManager[Registry]:
    """Opens a `Registry`: `memory:` forgets everything at its end, `sqlite:///FILE` serves one gateway, and
    `postgresql://...` serves any number of gateways.

    Raises `RegistryError` for any other URL, and does not show the whole URL, because it may hold a password.
    """
    url = section.url
    scheme, _, _ = url.partition(":")
    match scheme:
        case "memory":
            return open_memory_registry()
        case "sqlite":
            return open_sqlite_registry(url)
        case "postgresql" | "postgres":
            # This is imported here because asyncpg takes 3 MB, and most gateways have no PostgreSQL.
            from gateway.registry.postgres.registry import open_postgres_registry

            return open_postgres_registry(
                bridge,
                url,
                listen_url=section.listen_url,
                pool_size=section.pool_size,
                apply_migrations=section.migrate,
            )
        case _:
            raise RegistryError(
                f"registry.url has the unknown scheme {scheme!r}; use sqlite:///FILE, "
                "postgresql://USER:PASSWORD@HOST/DATABASE or memory:"
            )
