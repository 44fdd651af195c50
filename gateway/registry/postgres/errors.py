"""Translates the failures of a PostgreSQL server to `RegistryError`. A message names the server, its answer and the
remedy, and never a password."""

import re
import ssl
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from gateway.registry.protocol import RegistryError

HOST: Final = re.compile(r"(\[[^]]*\]|[^:]*)(:\d{1,5})?")
NO_URL: Final = (
    "{key} can't be understood: write postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters as %XX"
)
FAILURES: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""The errors of asyncpg: the server refused, a value or a connection cannot be used, or the network failed (errors of
TLS and timeouts are OSError)."""


class CommitUnknown(Exception):
    """The connection broke while a transaction was being committed. It has happened wholly or not at all."""


TRANSIENT: Final = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.TransactionRollbackError,  # These are serialization failures and deadlocks.
    asyncpg.QueryCanceledError,
    asyncpg.LockNotAvailableError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
)
REMEDIES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (asyncpg.InvalidPasswordError, "; check the user and the password of registry.url"),
    (asyncpg.InvalidAuthorizationSpecificationError, "; check the user of registry.url and the server's pg_hba.conf"),
    (asyncpg.InvalidCatalogNameError, "; create that database, or name another one in registry.url"),
    (asyncpg.UndefinedTableError, "; run `gateway migrate`"),
    (asyncpg.UndefinedColumnError, "; run `gateway migrate`"),
    (asyncpg.InsufficientPrivilegeError, "; grant the user of registry.url the right, or run `gateway migrate` as one"),
    (asyncpg.ReadOnlySQLTransactionError, "; it is read-only: let registry.url name the primary"),
    (asyncpg.TooManyConnectionsError, "; raise its max_connections, or let registry.url name a pooler"),
    (asyncpg.DiskFullError, "; free some of its disk space"),
    (ssl.SSLError, "; check sslmode and sslrootcert in registry.url"),
    (TimeoutError, "; is it overloaded, or does somebody hold a lock?"),
    (OSError, "; is it running, and does registry.url name the right host and port?"),
)


def is_transient(error: BaseException) -> bool:
    """Returns whether the same transaction may succeed a moment later. A refused password or certificate will not."""
    if isinstance(error, asyncpg.InterfaceError) and not isinstance(error, ValueError):
        return True  # The connection was closed between two statements.
    return isinstance(error, TRANSIENT) and not isinstance(error, ssl.SSLError)


def server_of(url: str) -> str:
    """Returns the name of a URL's server for messages: its hosts and its database, never the user or the password."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return "PostgreSQL"
    # With an unescaped / ? or # in the password, the parts are something else than they seem.
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        return "PostgreSQL"
    hosts = parts.netloc.rpartition("@")[2]
    return f"PostgreSQL at {hosts or 'its default address'}{parts.path}"


def check_url(url: str, key: str = "registry.url") -> None:
    """Raises `RegistryError` for a URL that asyncpg could not parse. The message quotes nothing of the URL."""
    try:
        hosts = urlsplit(url).netloc.rpartition("@")[2].split(",")
    except ValueError:
        hosts = [":"]
    if not all(HOST.fullmatch(host) for host in hosts):
        raise RegistryError(NO_URL.format(key=key))


def explained(server: str, error: BaseException) -> RegistryError:
    """Translates an error of asyncpg to a `RegistryError` that names the server and any remedy, never the password."""
    if isinstance(error, asyncpg.ClientConfigurationError):
        # Its message may quote the url.
        return RegistryError(NO_URL.format(key="registry.url"))
    if isinstance(error, CommitUnknown):
        return RegistryError(f"{server} was lost during a commit, which may or may not have happened")
    if isinstance(error, asyncpg.InterfaceError) and isinstance(error, ValueError):
        return RegistryError(f"{server} can't store a value: {error}")
    remedy = next((text for kind, text in REMEDIES if isinstance(error, kind)), "")
    reason = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    return RegistryError(f"{server} can't be used: {reason}{remedy}")
