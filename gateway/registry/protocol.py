"""The registry's contract, kept by every store alike and checked by one suite (tests/contract/test_registry.py)."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Final, Protocol, runtime_checkable

from gateway.bridge import Bridge
from gateway.config.model import RegistrySection
from gateway.domain.cluster import ClusterState, Node, NodeStatus
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId, Revision
from gateway.domain.model_spec import NOTHING, ModelSpec
from gateway.domain.peers import PeerState, PeerStates, SlotRequest
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import Capacity, Requirement, VramBudget
from gateway.domain.session import Hello, Registration, Report

RETRY_SECONDS: Final = 1.0
"""How long a loop pauses after a `RegistryError`, before it asks again."""


class RegistryError(Exception):
    """The store can't be used; the message says why and, where there is one, the remedy."""


class RegistryLocked(RegistryError):
    """Another gateway process holds this embedded registry."""


class NameTaken(RegistryError):
    """Another node has the name; the message says which."""


class StaleCredential(RegistryError):
    """A newer credential of the node was used since; the message says what to do."""


class FleetFull(RegistryError):
    """There are as many nodes as there can be."""


class NotRegistered(RegistryError):
    """The worker has to register (again) before a session can begin."""


class DeclaredInFile(RegistryError):
    """The model is the configuration file's, and only an edit of that changes it; the message names the model."""


class StaleEpoch(RegistryError):
    """This gateway is not the leader any more: nothing was written, and it must stop planning (L13)."""


@dataclass(frozen=True)
class NodeEdit:
    """What an admin changes of a node; None leaves it. An empty override takes the earlier one back, and what the
    worker says counts again."""

    approved: bool | None = None
    draining: bool | None = None
    overrides: "NodeOverrides | None" = None
    kept: frozenset[str] = frozenset()
    """Fields of the overrides that stay as they are, whatever `overrides` says."""


@dataclass(frozen=True)
class NodeOverrides:
    """What an admin says of a node instead of its worker."""

    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    """Laid over the worker's."""
    max_replicas_per_model: int | None = None
    vram_budget: VramBudget | None = None


@dataclass(frozen=True)
class Event:
    """One line of the audit trail."""

    at: float
    """Seconds of the registry's clock."""
    kind: str
    """`<table>.<what happened>`, such as `replica.observed`."""
    subject: str
    """Name of the model, id of the node, replica or gateway."""
    detail: str = ""
    epoch: int | None = None
    """Of the leader whose plan it was; None: nobody planned it."""


@dataclass(frozen=True)
class RegistryStatistics:
    """The version that this process knows of the state, and how many statements it has executed."""

    version: int
    statements: dict[str, int] = field(default_factory=dict)
    """What was executed since the store was opened, by method."""


class StateReader(Protocol):
    """Reads of the fleet's state, which the other protocols have in common. `Registry` says what holds for all."""

    async def now(self) -> float:
        """The registry's clock: seconds since the epoch. The only clock that is compared across machines (H11)."""

    async def read_state(self) -> ClusterState:
        """Reads the whole state of the fleet, consistently and with its version."""

    async def read_events(self, newest: int) -> tuple[Event, ...]:
        """The last `newest` lines of the audit trail, the newest first. Older ones are deleted."""

    async def wait_newer(self, version: int) -> None:
        """Returns as soon as the state's version is above `version`: at once if it is already."""


class ModelRegistry(StateReader, Protocol):
    """What the configuration file and admins say of models."""

    async def declare_models(self, specs: Sequence[ModelSpec]) -> None:
        """Makes the models of the configuration file exactly `specs`: adds, replaces and removes those with source
        `file`, and leaves those with source `api` alone unless a file model takes the name. What is known of a
        revision (the load failure, the requirement) is forgotten when the model has another one or is removed.
        Replicas are left to the planner."""

    async def put_model(self, spec: ModelSpec) -> bool:
        """Adds or replaces a model; its source becomes `api`. What is known of a revision is forgotten as above.
        True: there was no model of this name.

        Raises `DeclaredInFile` when the configuration file has one."""

    async def remove_model(self, name: ModelName) -> bool:
        """Forgets a model; its replicas are left to the planner. False: no such model.

        Raises `DeclaredInFile` when it is one of the configuration file."""

    async def unload_model(self, name: ModelName) -> bool:
        """Somebody wishes that what is loaded of a model now be loaded no more: `ClusterState.unloads` has the present
        time from now on. False: no such model."""


class NodeRegistry(StateReader, Protocol):
    """What is said of nodes: by workers of themselves and of their replicas, by those who watch them, and by admins."""

    async def record_requirement(self, name: ModelName, revision: Revision, requirement: Requirement) -> bool:
        """What a replica of the model takes; what is None in it leaves what is stored. False: `revision` is not the
        model's present one, or an estimate would replace a measurement; nothing was written."""

    async def register_node(self, registration: Registration) -> Node:
        """A worker asks to join. Returns its node, whose id it has to use from now on. Nothing is healthy by this
        alone.

        - With `node_id` (proved): that node, made if need be, with this name.
        - Without: the node of that name if it is offline and so nobody's at present; else a new one.
        - With a boot id that is not the stored one the earlier agent is over: its replicas become `gone` (a restarted
          agent has no processes), its session is superseded, the node is offline until a session begins. With the
          stored one nothing changes (H10).
        - A new node is approved if the registration says so; a known one stays what it was. An admin's wish to drain
          outlives the worker's restart.
        - A node that is offline and has the name that a proved one wants is forgotten, as by `remove_node`.

        - Nodes of which no session ever began are few: the oldest are forgotten when a new one comes, so whoever only
          registers costs the fleet nothing.

        Raises `NameTaken` when another node has the name and is not offline, `StaleCredential` when it was proved by a
        start that is neither the newest one nor the one whose session began last, `FleetFull`."""

    async def join_node(self, hello: Hello, gateway_id: GatewayId) -> int:
        """A worker's session begins: the node's condition becomes healthy, it is known with what `hello` says, and this
        gateway holds its session. Returns the session number, which grows with each session of the node. Its name is
        the one that it was registered with.

        Replicas are not touched: `hello.replicas` are for `record_reports`. Raises `NotRegistered` when there is no
        such node or it has another boot id."""

    async def mark_node(
        self, node_id: NodeId, session: int, condition: NodeStatus | None, *, ended: bool = False
    ) -> bool:
        """What the holder of the session sees of the node; None leaves it. `ended`: nobody holds a session any more.
        False: `session` is not the node's newest, or it has ended and would make the node healthy again; nothing was
        written (H9)."""

    async def record_capacity(self, node_id: NodeId, session: int, capacity: Capacity) -> bool:
        """What the node has now. False: `session` is not the node's newest; nothing was written (H9)."""

    async def edit_node(self, node_id: NodeId, edit: NodeEdit) -> bool:
        """An admin's wishes. They outlive sessions and restarts of the worker. False: no such node."""

    async def remove_node(self, node_id: NodeId) -> bool:
        """Forgets the node and its replicas: it stands in for the exit reports that can never come. False: no such
        node."""

    async def record_reports(self, node_id: NodeId, session: int, reports: Sequence[Report]) -> bool:
        """Writes what a worker reports. False when `session` is not the node's newest: nothing was written.

        A report for an unknown replica, or one that `lifecycle.may_follow` forbids, is dropped. Fields of a report
        that are None leave what is stored."""

    async def record_broken(self, replica_id: ReplicaId, because: str, *, lost: bool = False) -> bool:
        """A gateway has found out that a replica is of no use: let the leader replace it. See `Replica.broken` and
        `Replica.lost`. False: no such replica."""


class PlanRegistry(StateReader, Protocol):
    """What only the leader writes, and how a gateway becomes the leader."""

    async def acquire_or_renew(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        """Becomes the leader for a term, or stays it for another one. Returns the epoch, which grows whenever the
        leader changes; None: another gateway leads, and its term is not over. Only a change of the leader bumps the
        version."""

    async def apply(self, epoch: int, write: ControlWrite) -> bool:
        """Applies a planner's write if `epoch` is still the leader's. True: something changed.

        Raises `StaleEpoch` when another gateway has become the leader."""


class PeerRegistry(Protocol):
    """What gateways publish for each other."""

    async def sync_peers(self, peer_state: PeerState, ttl_seconds: float) -> PeerStates:
        """Publishes over the gateway's last peer state, to count for `ttl_seconds`, and hears the others'. One that
        does not count any more is heard as that of a silent gateway only, and its demand is not part of the state."""

    async def leave(self, gateway_id: GatewayId) -> None:
        """The gateway ends: its peer state and its term as leader are over at once."""


class Registry(ModelRegistry, NodeRegistry, PlanRegistry, PeerRegistry, Protocol):
    """Durable state of the fleet. Its users take the narrowest of the protocols that it consists of.

    What callers guarantee: one gateway id per process; `apply` is called only with an epoch from `acquire_or_renew`;
    times are never compared with a clock other than the registry's (`now`).

    What every store guarantees:
    - Each method is one transaction. When it returns, the change survives kill -9 of this process (the memory store
      excepted). When it is cancelled, it has happened wholly or not at all, and the caller can't know which: every
      method may be repeated.
    - A write that changes something bumps `version` by one in the same transaction and wakes `wait_newer`; a write
      that changes nothing does neither. Bulletins and the leader's terms never bump it.
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
        """Picks a replica for one request by what all gateways have just then, and counts it as a lease of the asking
        gateway. None: no slot is free.

        Raises `RegistryError`; the lease may be counted all the same, until the gateway's next peer state."""


class OpenRegistry(Protocol):
    """Opens a store; leaving the context closes it, and what uses `bridge` is to end before that. A seam of the
    composition root."""

    def __call__(self, section: RegistrySection, bridge: Bridge) -> AbstractAsyncContextManager[Registry]: ...
