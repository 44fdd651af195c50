"""Identifiers, each a type of its own so that one cannot stand where another is meant."""

import uuid
from typing import NewType

ModelName = NewType("ModelName", str)
NodeId = NewType("NodeId", str)
BootId = NewType("BootId", str)
"""Changes at every start of a worker agent: a node with a new boot id has none of its old processes (H10)."""
ReplicaId = NewType("ReplicaId", str)
"""Made when a replica is placed and never used again: routes, leases, reports and stops name it (R9, H5)."""
GatewayId = NewType("GatewayId", str)
RequestId = NewType("RequestId", str)
Revision = NewType("Revision", str)
"""SHA-256 (hex) of what a backend process sees of a model's spec; see `ModelSpec.revision`."""
Address = NewType("Address", str)
"""`host:port` of a backend process. Says where, never who (H5)."""


def new_id() -> str:
    """Returns a new random UUID (version 4) as text."""
    return str(uuid.uuid4())
