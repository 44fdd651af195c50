"""Identifiers, each a type of its own so that one cannot stand where another is meant."""

import secrets
from typing import Final, NewType

ModelName = NewType("ModelName", str)
NodeId = NewType("NodeId", str)
BootId = NewType("BootId", str)
"""The id of one start of a worker agent. A node with a new boot id has none of its old processes (H10)."""
ReplicaId = NewType("ReplicaId", str)
"""The id of a replica. It is made when the replica is placed and never used again; leases, reports and stops name it
(R9, H5)."""
GatewayId = NewType("GatewayId", str)
RequestId = NewType("RequestId", str)
Revision = NewType("Revision", str)
"""The SHA-256 (hex) of the part of a model's spec that a backend process sees; see `ModelSpec.revision`."""
Address = NewType("Address", str)
"""The `host:port` of a backend process. It says where the process is, and never which one it is (H5)."""


_VARIANTS: Final = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))
"""The digit that marks the variant of RFC 9562, by a random digit."""


def new_id() -> str:
    """Returns a new random UUID (version 4) as text. It is put together here, because `uuid` takes five times as long,
    and each request needs one."""
    digits = secrets.token_hex(16)
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANTS[digits[16]]}{digits[17:20]}-{digits[20:]}"
