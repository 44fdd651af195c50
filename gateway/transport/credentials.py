"""What proves that a worker is the node that it says it is: a credential per node and start. Pure.

The gateways of one fleet share a secret, so any of them can check what another gave out, and nothing is kept (A11).
"""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from gateway.domain.ids import BootId, NodeId

IsCredential = Callable[[NodeId, BootId, str], bool]
"""Whether the string is the credential of that node's agent, for that start of it."""

AUTHORIZATION: Final = "authorization"
"""Metadata of a session's call: `Bearer CREDENTIAL`."""
NODE: Final = "x-gateway-node"
BOOT: Final = "x-gateway-boot"

_DOMAIN: Final = b"gateway node credential, version 1\0"
"""Keeps a credential from being anything else that is derived from the same secret, a replica's token above all."""

_FINGERPRINT_DOMAIN: Final = b"gateway cluster secret fingerprint, version 1\0"


def fingerprint(cluster_secret: bytes) -> str:
    """Tells whether two gateways have the same secret, and nothing else of it."""
    return hmac.new(cluster_secret, _FINGERPRINT_DOMAIN, hashlib.sha256).hexdigest()[:16]


def node_credential(cluster_secret: bytes, node_id: NodeId, boot_id: BootId) -> str:
    """The bearer token of one start of one node's agent."""
    named = json.dumps((node_id, boot_id)).encode()  # a form in which no two pairs look alike
    return hmac.new(cluster_secret, _DOMAIN + named, hashlib.sha256).hexdigest()


def is_credential(cluster_secret: bytes, node_id: NodeId, boot_id: BootId, given: str) -> bool:
    """Whether `given` is that node's, for that start. Takes as long whatever it is."""
    expected = node_credential(cluster_secret, node_id, boot_id)
    return hmac.compare_digest(expected.encode(), given.encode("utf-8", "replace"))


def session_metadata(credential: str, node_id: NodeId, boot_id: BootId) -> Mapping[str, str]:
    """What a worker sends with its `Attach`."""
    return MappingProxyType({AUTHORIZATION: f"Bearer {credential}", NODE: node_id, BOOT: boot_id})


def bearer_token(authorization: str) -> str:
    """The token of a bearer header; empty when it is something else."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
