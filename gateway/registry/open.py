"""Opens the registry that a url names."""

from contextlib import AbstractAsyncContextManager

from gateway.registry.memory import open_memory_registry
from gateway.registry.protocol import Registry, RegistryError
from gateway.registry.sqlite import open_sqlite_registry


def open_registry(url: str) -> AbstractAsyncContextManager[Registry]:
    """`memory:` forgets everything at the end, `sqlite:///FILE` serves one gateway; a `Registry` either way.

    Raises `RegistryError` for any other url, without showing it whole: it may hold a password.
    """
    scheme, _, _ = url.partition(":")
    match scheme:
        case "memory":
            return open_memory_registry()
        case "sqlite":
            return open_sqlite_registry(url)
        case "postgresql" | "postgres":
            raise RegistryError("a PostgreSQL registry is not available yet; use registry.url = sqlite:///FILE")
        case _:
            raise RegistryError(f"registry.url has the unknown scheme {scheme!r}; use sqlite:///FILE or memory:")
