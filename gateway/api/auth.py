"""Who is calling and what they may do: deny by default, keys compared in constant time."""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from gateway.domain.errors import Forbidden, Unauthenticated


class Role(IntEnum):
    """What a caller may do; a higher role may do all that a lower one may."""

    PUBLIC = 0
    INFERENCE = 1
    ADMIN = 2


@dataclass(frozen=True)
class Caller:
    name: str
    role: Role


@dataclass(frozen=True)
class Key:
    """One configured API key, by its hash."""

    name: str
    sha256: bytes = field(repr=False)
    role: Role


NOBODY: Final = Caller("anonymous", Role.PUBLIC)


class Authenticator:
    """Decides from the request's credentials alone.

    Without any key the gateway listens on loopback only and trusts who can reach it with everything; `allow_anonymous`
    lets strangers infer and never administer (architecture, Trust).
    """

    def __init__(self, keys: Sequence[Key], *, allow_anonymous: bool) -> None:
        self._keys = tuple(keys)
        self.trusts_this_machine = not keys and not allow_anonymous
        """Everyone who can connect may do everything, so browsers have to be kept out by other means (`guard`)."""
        if allow_anonymous:
            self.anonymous = Caller("anonymous", Role.INFERENCE)
        else:
            self.anonymous = Caller("local", Role.ADMIN) if self.trusts_this_machine else NOBODY

    def authorize(self, authorization: str | None, needed: Role) -> Caller:
        """The caller. Raises `Unauthenticated` for no or a wrong key, `Forbidden` for one whose role is too low."""
        caller = self._identify(authorization)
        if caller.role >= needed:
            return caller
        if caller is NOBODY:
            raise Unauthenticated("No API key was given. Send it as 'Authorization: Bearer KEY'.")
        raise Forbidden(f"The role of '{caller.name}' does not allow this; it needs the role '{needed.name.lower()}'.")

    def _identify(self, authorization: str | None) -> Caller:
        if authorization is None or not self._keys:
            return self.anonymous
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or (caller := self._find(token.strip())) is None:
            raise Unauthenticated("The API key is not valid.")
        return caller

    def _find(self, token: str) -> Caller | None:
        """Compares with every key, whatever matched before, so that time tells nothing."""
        digest = hashlib.sha256(token.encode()).digest()
        matching = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return Caller(matching[0].name, matching[0].role) if matching else None
