"""The credential that proves a worker's identity: one per node and start. Pure.

The gateways of one fleet share a secret, so each can check the credentials of the others, and nothing is stored (A11).
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from gateway.domain.ids import BootId, NodeId

IsCredential = Callable[[NodeId, BootId, str], bool]
"""Returns whether the string is the credential of that node's agent, for that boot of it."""

AUTHORIZATION: Final = "authorization"
"""The metadata of a session's call: `Bearer CREDENTIAL`."""
NODE: Final = "x-gateway-node"
BOOT: Final = "x-gateway-boot"

_DOMAIN: Final = b"gateway node credential, version 1\0"
"""The prefix that separates credentials from everything else that is derived from the same secret, above all replica
tokens."""

_FINGERPRINT_DOMAIN: Final = b"gateway cluster secret fingerprint, version 1\0"


def fingerprint(cluster_secret: bytes) -> str:
    """Returns a value by which two gateways compare their secrets. It reveals nothing else about the secret."""
    return hmac.new(cluster_secret, _FINGERPRINT_DOMAIN, hashlib.sha256).hexdigest()[:16]


def node_credential(cluster_secret: bytes, node_id: NodeId, boot_id: BootId) -> str:
    """Returns the bearer token of one start of one node's agent."""
    named = json.dumps((node_id, boot_id)).encode()  # In this form no two pairs look alike.
    return hmac.new(cluster_secret, _DOMAIN + named, hashlib.sha256).hexdigest()


def is_credential(cluster_secret: bytes, node_id: NodeId, boot_id: BootId, given: str) -> bool:
    """Returns whether `given` is the credential of that start of that node. The time that it takes does not depend on
    `given`."""
    expected = node_credential(cluster_secret, node_id, boot_id)
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))


def session_metadata(credential: str, node_id: NodeId, boot_id: BootId) -> Mapping[str, str]:
    """Returns the metadata that a worker sends with its `Attach`."""
    return MappingProxyType({AUTHORIZATION: f"Bearer {credential}", NODE: node_id, BOOT: boot_id})


def bearer_token(authorization: str) -> str:
    """Returns the token of a bearer header, or an empty text for any other header."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
