"""The fleet as data: nodes, replicas, demand and the state the planner and the router decide from."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Final

from gateway.domain.ids import Address, BootId, GatewayId, ModelName, NodeId, ReplicaId, Revision
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import NOTHING, Capabilities, ModelSpec
from gateway.domain.resources import UNKNOWN, Capacity, Requirement


class NodeStatus(StrEnum):
    """Whether a node may serve, and if not, why."""

    PENDING = "pending"
    """The node waits for an admin's approval."""
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    """No message has come from the node for `stale_after`."""
    DRAINING = "draining"
    """The node finishes its requests and takes no new ones."""
    OFFLINE = "offline"
    """The node has left, or has been silent for long."""


@dataclass(frozen=True)
class Node:
    """A machine with a worker agent.

    It has two writers. `condition` is what the gateway with its session observes. `approved` and `draining` are an
    admin's settings, which outlive sessions. `status` follows from them.
    """

    id: NodeId
    name: str
    boot_id: BootId
    condition: NodeStatus
    """The state of the connection: any status but `pending`. It is `draining` if the worker itself says that it
    leaves."""
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    max_replicas_per_model: int = 1
    free_vram_bytes: int | None = None
    """The free GPU memory within the node's budget (`capacity.free_vram_bytes`). None means unknown, which is no
    constraint."""
    approved: bool = True
    draining: bool = False
    capacity: Capacity = UNKNOWN
    since: float = 0.0
    """The time at which `condition` last changed, in seconds of the registry's clock."""
    session: int = 0
    """The newest session's number: a write that names another one is void (H9). It grows, and need not start at 1."""
    gateway_id: GatewayId | None = None
    """The gateway that holds the session. None means that there is no session."""
    joined_boot_id: BootId | None = None
    """The boot id of the agent whose session began last. Credentials of earlier boots are void. None means that no
    session has ever begun."""

    @property
    def status(self) -> NodeStatus:
        """The status: `pending` until approved, `draining` while an admin drains a healthy node, else `condition`."""
        if not self.approved:
            return NodeStatus.PENDING
        if self.draining and self.condition is NodeStatus.HEALTHY:
            return NodeStatus.DRAINING
        return self.condition


@dataclass(frozen=True)
class Replica:
    """One model loaded (or being loaded) in one backend process on one node."""

    id: ReplicaId
    model: ModelName
    node_id: NodeId
    slot: int
    """The index among the node's replicas of this model. The triple of node, model and slot is unique (R10)."""
    revision: Revision
    desired: Desired
    observed: Observed
    parallel: int
    """The number of requests that it serves at a time."""
    address: Address | None = None
    pid: int | None = None
    error: str | None = None
    exit_code: int | None = None
    """The exit code of an ended process. A negative one is the signal that ended it."""
    since: float = 0.0
    """The time at which `observed` last changed, in seconds of the registry's clock."""
    desired_version: int = 0
    """The version of the state in which `desired` got its value. A gateway that has seen that version knows the
    value."""
    broken: str | None = None
    """The reason why the replica is useless although its worker has not reported its end. A gateway found it out on
    the request path."""
    lost: bool = False
    """Whether the replica is broken because its worker ended, which says nothing about its model."""


@dataclass(frozen=True)
class LoadFailure:
    """The reason why a model cannot be loaded, and the time of the next try. It is a state of the model, which every
    gateway sees (L9, L10)."""

    cause: str
    attempts: int
    """The number of failed loads in a row. It is not positive if replicas broke after they were ready and no load has
    failed: 0 for the first time, -1 for the second, and so on."""
    retry_at: float
    """The time of the next attempt, in seconds of the registry's clock."""

    @property
    def times_broken(self) -> int:
        """How often in a row replicas broke after they were ready, or 0 if a load has failed."""
        return max(0, 1 - self.attempts)


@dataclass(frozen=True)
class Demand:
    """The requests that wait for `model` at `gateway_id`, the oldest since `since` (registry clock, seconds)."""

    gateway_id: GatewayId
    model: ModelName
    waiting: int
    since: float


@dataclass(frozen=True)
class ClusterState:
    """One consistent read of the registry's control tables."""

    version: int
    """The number that grows with every control write. Two reads with one version are equal (demand excepted)."""
    models: Mapping[ModelName, ModelSpec] = field(default_factory=dict)
    failures: Mapping[ModelName, LoadFailure] = field(default_factory=dict)
    nodes: Mapping[NodeId, Node] = field(default_factory=dict)
    replicas: Mapping[ReplicaId, Replica] = field(default_factory=dict)
    demand: tuple[Demand, ...] = ()
    """The demand of the gateways that live. It is never part of the version."""
    requirements: Mapping[ModelName, Requirement] = field(default_factory=dict)
    """The known needs of the models' current revisions."""
    unloads: Mapping[ModelName, float] = field(default_factory=dict)
    """The time at which an unload was last requested: the model's replicas whose `since` is not later have to drain.
    Seconds of the registry's clock."""
    leader: GatewayId | None = None
    epoch: int = 0
    """The epoch of the leader's term, or 0 if no gateway has led yet."""
    capabilities: Mapping[ModelName, Capabilities] = field(default_factory=dict)
    """The abilities of the models' current revisions, as far as a backend has said them."""
    writes_refused: str | None = None
    """The reason why the registry takes no writes now, so that nothing can be loaded. None if it takes them."""


EMPTY_STATE: Final = ClusterState(
    0, MappingProxyType({}), MappingProxyType({}), MappingProxyType({}), MappingProxyType({})
)


class ProbeOutcome(StrEnum):
    """The result of a probe of a replica."""

    ALIVE = "alive"
    """The replica answered."""
    BUSY = "busy"
    """The replica does not answer, but its machine takes connections for it, or it says that it has no time. This
    proves that it lives. Another replica is preferred, nothing is removed (H1, H2)."""
    GONE = "gone"
    """No program listens at the replica's address, or another one does, or the one that answers does not work."""
    UNREACHABLE = "unreachable"
    """There is no answer of any kind: the network or the machine fails. It is not routable from this gateway."""


@dataclass(frozen=True)
class Progress:
    """The progress of fetching a replica's artifact. None means unknown."""

    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_second: float | None = None
    """The rate that was observed so far."""

    @property
    def fraction(self) -> float | None:
        """The share that has been fetched, 0 to 1, or None if it is unknown."""
        if self.done_bytes is None or not self.total_bytes:
            return None
        return min(1.0, self.done_bytes / self.total_bytes)

    @property
    def eta_seconds(self) -> float | None:
        """The seconds until everything is here at the observed rate, or None if that is unknown."""
        if self.done_bytes is None or self.total_bytes is None or not self.bytes_per_second:
            return None
        return max(0, self.total_bytes - self.done_bytes) / self.bytes_per_second
