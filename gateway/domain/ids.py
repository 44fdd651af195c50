"""Identifiers, each a type of its own so that one cannot stand where another is meant."""

import uuid
from typing import NewType

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


def new_id() -> str:
    """Returns a new random UUID (version 4) as text."""
    return str(uuid.uuid4())
