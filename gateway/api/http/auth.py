"""Decides who calls and what the caller may do. It denies by default and compares keys in constant time."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Final

from gateway.domain.errors import Forbidden, Unauthenticated
from gateway.domain.ids import BootId, NodeId
from gateway.transport.node_credentials import IsCredential


class Role(Enum):
    """The role of a caller, and the role that a route requires."""

    PUBLIC = "public"
    INFERENCE = "inference"
    ADMIN = "admin"
    JOIN = "join"
    """A worker of another machine that wants to join, with the join token. No API key has this role."""
    WORKER = "worker"
    """A worker that has joined, with its node's own credential. Neither a key nor the join token has this role."""


OPENS: Final[Mapping[Role, frozenset[Role]]] = MappingProxyType(
    {
        Role.PUBLIC: frozenset({Role.PUBLIC}),
        Role.INFERENCE: frozenset({Role.PUBLIC, Role.INFERENCE}),
        Role.ADMIN: frozenset({Role.PUBLIC, Role.INFERENCE, Role.ADMIN}),
        Role.JOIN: frozenset({Role.JOIN}),
        Role.WORKER: frozenset({Role.WORKER}),
    }
)
"""The routes that a caller's role opens. All others are closed (A11)."""


@dataclass(frozen=True)
class Caller:
    """The sender of a request. `name` is that of the API key, a worker's node id, or a fixed word if there is
    neither."""

    name: str
    role: Role


@dataclass(frozen=True)
class Key:
    """One configured API key, by its hash."""

    name: str
    sha256: bytes = field(repr=False)
    role: Role


def _no_credential(_node_id: NodeId, _boot_id: BootId, _given: str) -> bool:
    return False


NOBODY: Final = Caller("anonymous", Role.PUBLIC)
WORKER: Final = Caller("worker", Role.JOIN)


class Authenticator:
    """Decides by the request's credentials alone.

    Without any key the gateway listens on the loopback only, and every caller there may do everything but join. With
    `allow_anonymous`, callers without a key may use the models and never administer. `join_token_sha256` is None if no
    worker of another machine can join.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        *,
        allow_anonymous: bool,
        join_token_sha256: bytes | None = None,
        is_credential: IsCredential = _no_credential,
    ) -> None:
        self._keys = tuple(keys)
        self._is_credential = is_credential
        self._join_token_sha256 = join_token_sha256
        self.trusts_this_machine = not keys and not allow_anonymous
        """Whether everyone who can connect may do everything, so that browsers have to be kept out by other means
        (`browser_guard`)."""
        if allow_anonymous:
            self.anonymous = Caller("anonymous", Role.INFERENCE)
        else:
            self.anonymous = Caller("local", Role.ADMIN) if self.trusts_this_machine else NOBODY

    def replace_keys(self, keys: Sequence[Key]) -> None:
        """Has other API keys open the gateway from the next request on. Raises `ValueError` if there are none now or
        before: whom a gateway without keys trusts is decided when it starts."""
        if not keys or not self._keys:
            raise ValueError("a gateway with keys keeps some, and one without gets none")
        self._keys = tuple(keys)

    def authorize(self, authorization: str | None, needed: Role) -> Caller:
        """Returns the caller. Raises `Unauthenticated` for no or a wrong key, `Forbidden` for one whose role is too
        low."""
        if needed is Role.JOIN:
            return self._authorize_joining(authorization)
        caller = self.anonymous if authorization is None or not self._keys else self._identify(authorization)
        if needed in OPENS[caller.role]:
            return caller
        if caller is NOBODY:
            raise Unauthenticated("No API key was given. Send it as 'Authorization: Bearer KEY'.")
        raise Forbidden(f"The role of '{caller.name}' does not allow this; it needs the role '{needed.value}'.")

    def authorize_worker(self, authorization: str | None, node_id: str | None, boot_id: str | None) -> Caller:
        """Returns the caller, whose name is its node's id. Raises `Unauthenticated`."""
        token = _bearer(authorization or "")
        if token is None or not self._is_credential(NodeId(node_id or ""), BootId(boot_id or ""), token):
            raise Unauthenticated(
                "This endpoint needs the worker's current node credential.", code="invalid_node_credential"
            )
        return Caller(node_id or "", Role.WORKER)

    def _authorize_joining(self, authorization: str | None) -> Caller:
        """Returns the caller if it has the join token. An API key of any role is a wrong token."""
        if self._join_token_sha256 is None:
            raise Forbidden(
                "No worker can join this gateway: its configuration sets no auth.join_token.", code="join_disabled"
            )
        if authorization is None:
            raise Unauthenticated(
                "No join token was given. Send it as 'Authorization: Bearer TOKEN'.", code="invalid_join_token"
            )
        token = _bearer(authorization)
        if token is None or not hmac.compare_digest(self._join_token_sha256, sha256(token)):
            raise Unauthenticated("The join token is not valid.", code="invalid_join_token")
        return WORKER

    def _identify(self, authorization: str) -> Caller:
        token = _bearer(authorization)
        if token is None or (caller := self._find(token)) is None:
            raise Unauthenticated("The API key is not valid.")
        return caller

    def _find(self, token: str) -> Caller | None:
        """Returns the caller of a key, or None. It compares with every key, so that the time reveals nothing."""
        digest = sha256(token)
        matching = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return Caller(matching[0].name, matching[0].role) if matching else None


def sha256(secret: str) -> bytes:
    """Returns the hash by which secrets are kept and compared, so that their length is not revealed either."""
    return hashlib.sha256(secret.encode()).digest()


def _bearer(authorization: str) -> str | None:
    """Returns the token of a bearer header, or None for any other header."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None
