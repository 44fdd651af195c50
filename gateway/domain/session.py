"""The messages between a gateway and a worker in a session, as records.

| from the worker | when                                                                         |
|-----------------|------------------------------------------------------------------------------|
| `Hello`         | first, once: who it is, what it has, every replica that it knows of          |
| `Report`        | one replica's state has changed                                              |
| `Heartbeat`     | every `heartbeat` seconds, so that silence means something (H8)              |
| `Capacity`      | what is free has changed noticeably                                          |
| `Leaving`       | the worker was told to stop: it drains its replicas and takes no new one     |
| `LogChunk`      | lines of a backend's output that a `TailLogs` asked for                      |

| from the gateway | when                                                                        |
|------------------|-----------------------------------------------------------------------------|
| `DesiredSet`     | first, and whenever it has changed                                          |
| `Heartbeat`      | every `heartbeat` seconds                                                   |
| `TailLogs`       | somebody wants to see the output of a replica's backend                     |
| `EndTail`        | nobody does any more                                                        |

Level-triggered: each `DesiredSet` is complete, so losing one costs time and not correctness. The embedded worker
exchanges these records over memory channels, a worker on another machine over its session's gRPC stream (transport/).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from gateway.domain.ids import Address, BootId, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import NOTHING, Capabilities, ModelSpec
from gateway.domain.resources import ALL_VRAM, UNKNOWN, Capacity, VramBudget

LOG_LINES_MAX: Final = 1000
"""The largest number of lines of a replica's output that its worker keeps."""


@dataclass(frozen=True)
class Report:
    """A change of one replica's state. It is complete, so a report that was replaced by a later one is not missed."""

    replica_id: ReplicaId
    observed: Observed
    address: Address | None = None
    pid: int | None = None
    parallel: int | None = None
    """The number of parallel requests, as the backend says it, or None."""
    exit_code: int | None = None
    error: str | None = None
    """The error of a `failed` or unexpectedly `gone` replica: one sentence with the cause, then the last lines of
    the process's stderr."""
    done_bytes: int | None = None
    """The number of fetched bytes, of `total_bytes`, while the artifact is being fetched."""
    total_bytes: int | None = None
    ram_bytes: int | None = None
    """The main memory that its processes hold, once it is ready."""
    vram_bytes: int | None = None
    """The GPU memory that its processes hold, once it is ready."""
    capabilities: Capabilities | None = None
    """The abilities of its model, as its backend says them, once it is ready."""


@dataclass(frozen=True)
class Hello:
    """The first message of a worker: its identity and its resources."""

    node_id: NodeId
    name: str
    boot_id: BootId
    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    max_replicas_per_model: int = 1
    capacity: Capacity = UNKNOWN
    vram_budget: VramBudget = ALL_VRAM
    replicas: tuple[Report, ...] = ()
    """The newest report of each replica that this agent has or had, so that a broken session loses none (H10)."""
    advertise: str | None = None
    """The host at which gateways can reach its replicas, all of which listen there. None if the worker does not say."""


@dataclass(frozen=True)
class Heartbeat:
    """A sign of life without a change."""


@dataclass(frozen=True)
class Leaving:
    """The worker drains and ends. Its open requests finish first."""


@dataclass(frozen=True)
class LogChunk:
    """Lines for one log stream, oldest first. `ended` says that no more will come, because the process is gone or was
    never here."""

    tail: int
    lines: tuple[str, ...]
    skipped: int = 0
    """The number of lines that were left out before these because they came faster than they could be sent."""
    ended: bool = False


@dataclass(frozen=True)
class DesiredReplica:
    """One replica of a `DesiredSet`: its model's spec, its desired state, and its token."""

    replica_id: ReplicaId
    spec: ModelSpec
    desired: Desired
    token: str = field(repr=False)
    """The bearer token that the backend process requires of its callers: HMAC(cluster secret, replica id)."""


@dataclass(frozen=True)
class DesiredSet:
    """All replicas that a node should run. A replica that is missing here has to be stopped."""

    epoch: int
    """The epoch of the leader that planned it. A worker refuses a lower one than it has seen (L13)."""
    replicas: tuple[DesiredReplica, ...]


@dataclass(frozen=True)
class TailLogs:
    """A request for the last `lines` lines of the replica's output, then, if `follow`, for every further one, as
    `LogChunk`s."""

    tail: int
    """The number of this log stream within the session, chosen by the gateway."""
    replica_id: ReplicaId
    lines: int
    follow: bool


@dataclass(frozen=True)
class EndTail:
    """The gateway asks the worker to send no more lines for this `TailLogs`."""

    tail: int


FromWorker: TypeAlias = Report | Heartbeat | Capacity | Leaving | LogChunk
"""The messages that follow a `Hello`."""
ToWorker: TypeAlias = DesiredSet | Heartbeat | TailLogs | EndTail


@dataclass(frozen=True)
class Registration:
    """The request of a worker to join, over HTTP, before its first session."""

    name: str
    boot_id: BootId
    node_id: NodeId | None = None
    """The node id of an earlier registration, if the worker has proved with its old credential that it is that node."""
    approved: bool = True
    """Whether a node that was unknown so far may serve at once."""
    proof_boot_id: BootId | None = None
    """The boot id of the start whose credential has proved `node_id`. None means that no proof is required."""


class SessionEnded(Exception):
    """A session has ended before the worker left. The message is a sentence for the worker's log."""


class SessionRefused(SessionEnded):
    """The gateway does not begin this session, or ends it. That says nothing against the worker's replicas.

    `register_again` says that the worker has to register before its next session.
    """

    def __init__(self, message: str, *, register_again: bool = False) -> None:
        super().__init__(message)
        self.register_again = register_again
