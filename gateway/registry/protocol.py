"""The contract of the registry. Every store keeps it, and one suite checks it (tests/contract/test_registry.py)."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol, runtime_checkable

from gateway.bridge import Bridge
from gateway.config.model import RegistrySection
from gateway.domain.cluster import ClusterState, Node, NodeStatus
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId, Revision
from gateway.domain.model_spec import NOTHING, Capabilities, ModelSpec
from gateway.domain.peers import PeerState, PeerStates, SlotRequest
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import Capacity, Requirement, VramBudget
from gateway.domain.session import Hello, Registration, Report

RETRY_SECONDS: Final = 1.0
"""How long a loop pauses after a `RegistryError`, before it asks again."""


class RegistryError(Exception):
    """The store cannot be used. The message says why and, if there is a remedy, what to do."""

    log_level: ClassVar[int] = logging.WARNING
    """The level at which a loop logs a try that failed."""


class WritesRefused(RegistryError):
    """The store can be read, but takes no writes now. It has logged that once, and will find out when they work."""

    log_level = logging.DEBUG

    def __init__(self, message: str, cause: str) -> None:
        """`cause` is the part of the message that names no file, for clients."""
        super().__init__(message)
        self.cause = cause


class RegistryLocked(RegistryError):
    """Another gateway process has this embedded registry open."""


class NameTaken(RegistryError):
    """Another node has the name. The message says which one."""


class StaleCredential(RegistryError):
    """A newer credential of the node has been used since. The message says what to do."""


class FleetFull(RegistryError):
    """The fleet has the largest number of nodes already."""


class NotRegistered(RegistryError):
    """The worker has to register, or register again, before a session can begin."""


class DeclaredInFile(RegistryError):
    """The model is declared in the configuration file, and only an edit of the file can change it. The message names
    the model."""


class StaleEpoch(RegistryError):
    """This gateway is not the leader any more. Nothing was written, and it must stop planning (L13)."""


@dataclass(frozen=True)
class NodeEdit:
    """An admin's changes of a node. A field that is None changes nothing. An empty override removes an earlier one, so
    that the worker's own setting counts again."""

    approved: bool | None = None
    draining: bool | None = None
    overrides: "NodeOverrides | None" = None
    kept: frozenset[str] = frozenset()
    """The fields of the overrides that stay as they are, whatever `overrides` has."""


@dataclass(frozen=True)
class NodeOverrides:
    """An admin's settings of a node. They replace the worker's own."""

    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """The labels that are added to the worker's, and replace those of the same name."""
    max_replicas_per_model: int | None = None
    vram_budget: VramBudget | None = None


@dataclass(frozen=True)
class Event:
    """One line of the audit trail."""

    at: float
    """The time in seconds of the registry's clock."""
    kind: str
    """The kind of the event: `<table>.<what happened>`, such as `replica.observed`."""
    subject: str
    """The name of the model, or the id of the node, replica or gateway."""
    detail: str = ""
    epoch: int | None = None
    """The epoch of the leader that planned it. None if nobody planned it."""


@dataclass(frozen=True)
class RegistryStatistics:
    """The version of the state that this process knows, and the number of statements that it has executed."""

    version: int
    statements: dict[str, int] = field(default_factory=dict)
    """The number of executions since the store was opened, by method."""


class StateReader(Protocol):
    """The reads of the fleet's state, which the other protocols have in common. `Registry` says what holds for all."""

    async def now(self) -> float:
        """Returns the registry's clock: seconds since the epoch. No other clock is compared across machines (H11)."""

    async def read_state(self) -> ClusterState:
        """Reads the whole state of the fleet, consistently and with its version."""

    async def read_events(self, newest: int) -> tuple[Event, ...]:
        """Returns the last `newest` lines of the audit trail, the newest first. Older ones are deleted."""

    async def wait_newer(self, version: int) -> None:
        """Waits until the state's version is above `version`. Returns at once if it is."""


class ModelRegistry(StateReader, Protocol):
    """The writes of models, by the configuration file and by admins."""

    async def declare_models(self, specs: Sequence[ModelSpec]) -> None:
        """Makes the models of the configuration file exactly `specs`. It adds, replaces and removes models with source
        `file`, and leaves those with source `api` alone unless a model of the file takes the name. The knowledge about
        a revision (its load failure, its requirement) is deleted when the model gets another revision or is removed.
        Replicas are left to the planner."""

    async def put_model(self, spec: ModelSpec) -> bool:
        """Adds or replaces a model with source `api`. The knowledge about a revision is deleted as in `declare_models`.
        Returns True if there was no model of this name.

        Raises `DeclaredInFile` if the configuration file has one.
        """

    async def remove_model(self, name: ModelName) -> bool:
        """Deletes a model. Its replicas are left to the planner. Returns False if there is no such model.

        Raises `DeclaredInFile` if the configuration file has it.
        """

    async def unload_model(self, name: ModelName) -> bool:
        """Requests that the loaded replicas of a model be unloaded: `ClusterState.unloads` has the present time from
        now on. Returns False if there is no such model."""

    async def retry_model(self, name: ModelName) -> bool:
        """Ends the pause after a load failure: the next try may be made now. The number of failures in a row stays.
        Returns False, and writes nothing, if no pause is left."""


class NodeRegistry(StateReader, Protocol):
    """The writes of nodes: by workers about themselves and their replicas, by the health monitor, and by admins."""

    async def record_requirement(self, name: ModelName, revision: Revision, requirement: Requirement) -> bool:
        """Stores what a replica of the model needs. A part that is None leaves the stored value. Returns False and
        writes nothing if `revision` is not the model's current one, or if an estimate would replace a measurement."""

    async def record_capabilities(self, name: ModelName, revision: Revision, capabilities: Capabilities) -> bool:
        """Stores what the model can do, as a backend says that has just loaded it. Returns False and writes nothing if
        `revision` is not the model's current one."""

    async def register_node(self, registration: Registration) -> Node:
        """Registers a worker. Returns its node, whose id the worker has to use from now on. Registration alone makes no
        node healthy.

        - With `node_id` (proved), it is that node, created if necessary, with this name.
        - Without `node_id`, it is the node of that name if that one is offline, or else a new node.
        - A boot id that differs from the stored one ends the earlier agent: its replicas become `gone`, because a
          restarted agent has no processes; its session is superseded; and the node is offline until a session begins.
          The same boot id changes nothing (H10).
        - A new node is approved if the registration says so. A known node keeps its approval. An admin's drain outlives
          the restart of the worker.
        - An offline node whose name a proved one wants is deleted, as by `remove_node`.
        - There are only few nodes of which no session ever began: the oldest of them are deleted when a new one comes.
          So a worker that only registers costs the fleet nothing.

        Raises `NameTaken` if another node has the name and is not offline, `StaleCredential` if the proof comes from a
        start that is neither the newest one nor the one whose session began last, `FleetFull`.
        """

    async def join_node(self, hello: Hello, gateway_id: GatewayId) -> int:
        """Records the beginning of a worker's session: the node's condition becomes healthy, its facts are those of
        `hello`, and this gateway holds its session. Returns the session number, which grows with each session of the
        node. Its name is the one that it was registered with.

        Replicas do not change: `hello.replicas` are for `record_reports`. Raises `NotRegistered` if there is no such
        node or it has another boot id.
        """

    async def mark_node(
        self, node_id: NodeId, session: int, condition: NodeStatus | None, *, ended: bool = False
    ) -> bool:
        """Stores the node's condition as the session's gateway sees it; None leaves it. `ended` says that no gateway
        holds the session any more. Returns False and writes nothing if `session` is not the node's newest, or if it has
        ended and would make the node healthy again (H9)."""

    async def record_capacity(self, node_id: NodeId, session: int, capacity: Capacity) -> bool:
        """Stores the node's capacity. Returns False and writes nothing if `session` is not the node's newest (H9)."""

    async def edit_node(self, node_id: NodeId, edit: NodeEdit) -> bool:
        """Stores an admin's settings. They outlive sessions and restarts of the worker. Returns False if there is no
        such node."""

    async def remove_node(self, node_id: NodeId) -> bool:
        """Deletes the node and its replicas. This stands in for the final reports that can never come. Returns False if
        there is no such node."""

    async def record_reports(self, node_id: NodeId, session: int, reports: Sequence[Report]) -> bool:
        """Stores a worker's reports. Returns False and writes nothing if `session` is not the node's newest.

        A report about an unknown replica, or one that `lifecycle.may_follow` forbids, is dropped. Fields of a report
        that are None leave the stored value.
        """

    async def record_broken(self, replica_id: ReplicaId, because: str, *, lost: bool = False) -> bool:
        """Records that a gateway has found a replica broken, so that the leader replaces it. See `Replica.broken` and
        `Replica.lost`. Returns False if there is no such replica."""


class PlanRegistry(StateReader, Protocol):
    """The writes that only the leader may make, and those by which a gateway becomes the leader."""

    async def acquire_or_renew(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        """Makes the gateway the leader for a term, or renews its term. Returns the epoch, which grows whenever the
        leader changes. Returns None if another gateway leads and its term is not over. Only a change of the leader
        increments the version."""

    async def apply(self, epoch: int, write: ControlWrite) -> bool:
        """Applies a planner's write if `epoch` is still the leader's. Returns whether something changed.

        Raises `StaleEpoch` if another gateway has become the leader.
        """


class PeerRegistry(Protocol):
    """The exchange of the states that gateways publish for each other."""

    async def sync_peers(self, peer_state: PeerState, ttl_seconds: float) -> PeerStates:
        """Publishes over the gateway's last peer state, to count for `ttl_seconds`, and hears the others'. One that
        does not count any more is heard as that of a silent gateway only, and its demand is not part of the state."""

    async def leave(self, gateway_id: GatewayId) -> None:
        """Removes what the gateway has in the registry as it ends: its peer state and its term as leader are over at
        once."""


class Registry(ModelRegistry, NodeRegistry, PlanRegistry, PeerRegistry, Protocol):
    """Durable state of the fleet. Its users take the narrowest of the protocols that it consists of.

    What callers guarantee: one gateway id per process; `apply` is called only with an epoch from `acquire_or_renew`;
    times are never compared with a clock other than the registry's (`now`).

    What every store guarantees:
    - Each method is one transaction. When it returns, the change survives kill -9 of this process (the memory store
      excepted). When it is cancelled, it has happened wholly or not at all, and the caller can't know which: every
      method may be repeated.
    - A write that changes something bumps `version` by one in the same transaction and wakes `wait_newer`; a write
      that changes nothing does neither. Peer states and the leader's terms never bump it.
    - `read_state` is one consistent read.
    - No method blocks on another one's I/O for longer than that transaction takes.

    Raises `RegistryError` only.
    """

    def statistics(self) -> RegistryStatistics:
        """Returns the known version and the counts of statements, without any I/O."""


@runtime_checkable
class SlotReserver(Protocol):
    """A registry in which gateways can pick exactly (strict mode)."""

    async def reserve_slot(self, request: SlotRequest) -> ReplicaId | None:
        """Picks a replica for one request by the leases of all gateways at that moment, and counts it as a lease of the
        asking gateway. Returns None if no slot is free.

        Raises `RegistryError`; the lease may be counted all the same, until the gateway's next peer state."""


class OpenRegistry(Protocol):
    """Opens a store. Leaving the context closes it. Whatever uses `bridge` has to end before that. It is a seam of the
    composition root."""

    def __call__(self, section: RegistrySection, bridge: Bridge) -> AbstractAsyncContextManager[Registry]: ...
