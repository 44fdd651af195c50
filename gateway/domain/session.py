"""What a gateway and a worker tell each other: the desired set one way, reports the other.

Level-triggered: each `DesiredSet` is complete, so losing one costs time and not correctness. The embedded worker
receives these records over a memory channel; a worker on another machine will receive them over its session.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.domain.ids import Address, BootId, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import NOTHING, ModelSpec


@dataclass(frozen=True)
class Hello:
    """The first thing a worker says: who it is and what it has."""

    node_id: NodeId
    name: str
    boot_id: BootId
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    max_replicas_per_model: int = 1
    free_vram_bytes: int | None = None


@dataclass(frozen=True)
class DesiredReplica:
    replica_id: ReplicaId
    spec: ModelSpec
    desired: Desired
    token: str = field(repr=False)
    """Bearer token that the backend process must ask of its callers: HMAC(cluster secret, replica id)."""


@dataclass(frozen=True)
class DesiredSet:
    """All that a node should run. A replica that is missing here is to be stopped."""

    epoch: int
    """Of the leader that planned it; a worker refuses a lower one than it has seen (L13)."""
    replicas: tuple[DesiredReplica, ...]


@dataclass(frozen=True)
class Report:
    """One replica's state changed."""

    replica_id: ReplicaId
    observed: Observed
    address: Address | None = None
    pid: int | None = None
    parallel: int | None = None
    """As the backend says, when it does."""
    exit_code: int | None = None
    error: str | None = None
    """For `failed` and unexpected `gone`: one sentence with the cause, then the last lines of the process's stderr."""
