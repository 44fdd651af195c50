"""The methods of the registry, written once over the few primitives of each store."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

import trio

from gateway.domain.cluster import ClusterState, Node, NodeStatus
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId, Revision, new_id
from gateway.domain.model_spec import Capabilities, ModelSpec
from gateway.domain.peers import PeerState, PeerStates
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import Capacity, Requirement
from gateway.domain.session import Hello, Registration, Report
from gateway.registry.protocol import Event, NodeEdit, RegistryStatistics
from gateway.registry.tables import Tables
from gateway.registry.writes import models as model_writes
from gateway.registry.writes import nodes as node_writes
from gateway.registry.writes import replicas as writes

Clock: TypeAlias = Callable[[], float]
"""A clock in seconds since the epoch. A store may ask it on any thread."""
MakeId: TypeAlias = Callable[[], str]
"""Makes a unique id."""

After = TypeVar("After", bound=Tables | None)
"""The rows to store. None if a write may be refused."""

Decision: TypeAlias = Callable[[Tables, float], After]
"""Returns the rows to store, given the stored rows and the time. It is pure."""


@dataclass(frozen=True)
class RowScope:
    """The rows that a decision reads and may change, besides the leader's row. A store may pass more."""

    model: ModelName | None = None
    node: NodeId | None = None
    """The node whose row is read, with the rows of its replicas."""
    registration: Registration | None = None
    """The nodes that have its id or its name, or never had a session, which are few, with their replicas."""
    everything: bool = False


NO_ROWS: Final = RowScope()
EVERYTHING: Final = RowScope(everything=True)


@dataclass(frozen=True)
class Outcome(Generic[After]):
    """The rows before and after a transaction, and whether it has written anything."""

    before: Tables
    after: After
    changed: bool


class Store(ABC):
    """A `Registry`. Its contract is in protocol.py."""

    def __init__(self, version: int = 0, make_id: MakeId = new_id) -> None:
        self._make_id = make_id
        self._version = version
        self._advanced = trio.Event()
        self._statements = Counter[str]()

    @abstractmethod
    async def read_state(self) -> ClusterState:
        """Reads the whole state of the fleet, consistently and with its version. Raises `RegistryError`."""

    @abstractmethod
    async def read_events(self, newest: int) -> tuple[Event, ...]:
        """Returns the last `newest` lines of the audit trail, the newest first."""

    @abstractmethod
    async def _transact(
        self, method: str, decide: Decision[After], scope: RowScope, epoch: int | None = None
    ) -> Outcome[After]:
        """Runs one transaction: it reads, decides, writes the difference, and increments the version if there is one
        (then call `_advance_version`). If `decide` raises, nothing is written. `epoch` goes to the audit trail."""

    @abstractmethod
    async def now(self) -> float:
        """Returns the registry's clock in seconds since the epoch (H11)."""

    @abstractmethod
    async def sync_peers(self, peer_state: PeerState, ttl_seconds: float) -> PeerStates:
        """Publishes a gateway's peer state for `ttl_seconds` and returns those of its peers. Raises `RegistryError`."""

    @abstractmethod
    async def leave(self, gateway_id: GatewayId) -> None:
        """Ends the gateway's peer state and its term as leader at once. Raises `RegistryError`."""

    @abstractmethod
    async def _renew_term(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        """Renews the leader's term, without a transaction on the state. Returns None if `gateway_id` is not the
        leader."""

    async def wait_newer(self, version: int) -> None:
        """Waits until this process knows a version above `version`; returns at once if it already does."""
        await trio.lowlevel.checkpoint()
        while self._version <= version:
            await self._advanced.wait()

    async def declare_models(self, specs: Sequence[ModelSpec]) -> None:
        """Makes `specs` the exact set of models whose source is `file`. Raises `RegistryError`."""
        await self._transact("declare_models", lambda tables, _: model_writes.declared(tables, specs), EVERYTHING)

    async def put_model(self, spec: ModelSpec) -> bool:
        """Adds or replaces a model with source `api`. Returns True if it is new. Raises `DeclaredInFile`."""
        outcome = await self._transact(
            "put_model", lambda tables, _: model_writes.put(tables, spec), RowScope(model=spec.name)
        )
        return spec.name not in outcome.before.models and spec.name not in outcome.before.unreadable

    async def remove_model(self, name: ModelName) -> bool:
        """Deletes a model. Returns False if there is none of this name. Raises `DeclaredInFile`."""
        outcome = await self._transact(
            "remove_model", lambda tables, _: model_writes.removed(tables, name), RowScope(model=name)
        )
        return outcome.after is not None

    async def unload_model(self, name: ModelName) -> bool:
        """Asks the planner to unload the model by storing the present time. Returns False if there is no such model."""
        outcome = await self._transact(
            "unload_model", lambda tables, now: model_writes.unloaded(tables, name, now), RowScope(model=name)
        )
        return outcome.after is not None

    async def retry_model(self, name: ModelName) -> bool:
        """Ends the pause after a load failure. Returns False if no pause is left."""
        outcome = await self._transact(
            "retry_model", lambda tables, now: model_writes.retried(tables, name, now), RowScope(model=name)
        )
        return outcome.after is not None

    async def record_requirement(self, name: ModelName, revision: Revision, requirement: Requirement) -> bool:
        """Stores what a replica takes. Returns False if `revision` is old or a measurement would become an estimate."""
        outcome = await self._transact(
            "note_requirement",
            lambda tables, _: model_writes.requirement_recorded(tables, name, revision, requirement),
            RowScope(model=name),
        )
        return outcome.after is not None

    async def record_capabilities(self, name: ModelName, revision: Revision, capabilities: Capabilities) -> bool:
        """Stores what the model can do. Returns False if `revision` is not the current one."""
        outcome = await self._transact(
            "record_capabilities",
            lambda tables, _: model_writes.capabilities_recorded(tables, name, revision, capabilities),
            RowScope(model=name),
        )
        return outcome.after is not None

    async def register_node(self, registration: Registration) -> Node:
        """Registers a worker and returns its node. Raises `NameTaken`, `StaleCredential` or `FleetFull`."""
        fresh = NodeId(self._make_id())
        outcome = await self._transact(
            "register_node",
            lambda tables, now: node_writes.registered(tables, registration, fresh, now),
            RowScope(registration=registration),
        )
        row = node_writes.node_named(outcome.after, registration.name)
        assert row is not None  # noqa: S101 - it is registered
        return row.node

    async def join_node(self, hello: Hello, gateway_id: GatewayId) -> int:
        """Begins a worker's session and returns its number. Raises `NotRegistered` for an unknown node or boot id."""
        outcome = await self._transact(
            "join_node",
            lambda tables, now: node_writes.joined(tables, hello, gateway_id, now),
            RowScope(node=hello.node_id),
        )
        return outcome.after.nodes[hello.node_id].node.session

    async def mark_node(
        self, node_id: NodeId, session: int, condition: NodeStatus | None, *, ended: bool = False
    ) -> bool:
        """Stores the condition of a node's connection.

        Returns False if `session` is not the node's newest, or if it has ended and would make the node healthy again
        (H9).
        """
        outcome = await self._transact(
            "mark_node",
            lambda tables, now: node_writes.marked(tables, node_id, session, condition, ended=ended, now=now),
            RowScope(node=node_id),
        )
        return outcome.after is not None

    async def record_capacity(self, node_id: NodeId, session: int, capacity: Capacity) -> bool:
        """Stores a node's capacity. Returns False if `session` is not the node's newest (H9)."""
        outcome = await self._transact(
            "note_capacity",
            lambda tables, _: node_writes.capacity_recorded(tables, node_id, session, capacity),
            RowScope(node=node_id),
        )
        return outcome.after is not None

    async def edit_node(self, node_id: NodeId, edit: NodeEdit) -> bool:
        """Applies an admin's settings to a node. Returns False if there is no such node."""
        outcome = await self._transact(
            "edit_node", lambda tables, _: node_writes.edited(tables, node_id, edit), RowScope(node=node_id)
        )
        return outcome.after is not None

    async def remove_node(self, node_id: NodeId) -> bool:
        """Deletes a node with its replicas. Returns False if there is no such node."""
        outcome = await self._transact(
            "remove_node", lambda tables, _: node_writes.removed(tables, node_id), RowScope(node=node_id)
        )
        return outcome.after is not None

    async def record_reports(self, node_id: NodeId, session: int, reports: Sequence[Report]) -> bool:
        """Stores what a worker reports of its replicas. Returns False if `session` is not the node's newest."""
        outcome = await self._transact(
            "observe",
            lambda tables, now: writes.reports_recorded(tables, node_id, session, reports, now),
            RowScope(node=node_id),
        )
        return outcome.after is not None

    async def record_broken(self, replica_id: ReplicaId, because: str, *, lost: bool = False) -> bool:
        """Marks a replica as broken so that the leader replaces it. Returns False if there is no such replica."""
        outcome = await self._transact(
            "note_broken", lambda tables, _: writes.broken(tables, replica_id, because, lost=lost), EVERYTHING
        )
        return outcome.after is not None

    async def acquire_or_renew(self, gateway_id: GatewayId, term_seconds: float) -> int | None:
        """Takes or renews the leader's term. Returns the epoch; None if another gateway's term is not over."""
        epoch = await self._renew_term(gateway_id, term_seconds)
        if epoch is not None:
            return epoch
        outcome = await self._transact(
            "lead", lambda tables, now: writes.term_acquired(tables, gateway_id, now + term_seconds, now), NO_ROWS
        )
        return None if outcome.after is None else outcome.after.leader_term.epoch

    async def apply(self, epoch: int, write: ControlWrite) -> bool:
        """Applies a planner's write and returns whether anything changed. Raises `StaleEpoch` for an old epoch."""
        outcome = await self._transact(
            "apply", lambda tables, _: writes.applied(tables, epoch, write), EVERYTHING, epoch
        )
        return outcome.changed

    def statistics(self) -> RegistryStatistics:
        """Returns the known version and the counts of statements, without any I/O."""
        return RegistryStatistics(self._version, dict(self._statements))

    def _advance_version(self, version: int) -> None:
        """Wakes `wait_newer`. It is called once a change is durable, without an `await` in between. Two calls may come
        in the wrong order, because two callers may resume in any order."""
        if version > self._version:
            self._wake(version)

    def _wake(self, version: int) -> None:
        self._version = version
        self._advanced.set()
        self._advanced = trio.Event()
