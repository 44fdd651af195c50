"""The registry's contract, kept by every store alike and checked by one suite (tests/contract/test_registry.py)."""

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from gateway.domain.cluster import ClusterState, Demand, LoadFailure, NodeStatus, Replica
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired
from gateway.domain.model_spec import ModelSpec
from gateway.domain.session import Hello, Report


class RegistryError(Exception):
    """The store can't be used; the message says why and, where there is one, the remedy."""


class RegistryLocked(RegistryError):
    """Another gateway process holds this embedded registry."""


class StaleEpoch(RegistryError):
    """This gateway is not the leader any more: nothing was written, and it must stop planning (L13)."""


@dataclass(frozen=True)
class ControlWrite:
    """What one planning round changes. Applied as one transaction or not at all.

    forget    -- rows to delete; an unknown replica is skipped
    place     -- new rows; one whose id or (node, model, slot) is taken, or whose node is unknown, is skipped (R10)
    desire    -- replica -> what is wanted of it now; an unknown replica is skipped
    failures  -- model -> its load failure, or None to clear it; an unknown model is skipped

    In this order: a slot that is freed here can be placed on here.
    """

    place: tuple[Replica, ...] = ()
    desire: tuple[tuple[ReplicaId, Desired], ...] = ()
    forget: tuple[ReplicaId, ...] = ()
    failures: tuple[tuple[ModelName, LoadFailure | None], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.place or self.desire or self.forget or self.failures)


@dataclass(frozen=True)
class RegistryStatistics:
    version: int
    statements: dict[str, int] = field(default_factory=dict)
    """What was executed since the store was opened, by method."""


class Registry(Protocol):
    """Durable state of the fleet.

    What callers guarantee: one gateway id per process; `apply` is called only with an epoch from `lead`; times are
    never compared with a clock other than the registry's (`now`).

    What every store guarantees:
    - Each method is one transaction. When it returns, the change survives kill -9 of this process (the memory store
      excepted). When it is cancelled, it has happened wholly or not at all, and the caller can't know which: every
      method may be repeated.
    - A write that changes something bumps `version` by one in the same transaction and wakes `wait_newer`; a write
      that changes nothing does neither. Demand never bumps it.
    - `read_state` is one consistent read.
    - No method blocks on another one's I/O for longer than that transaction takes.

    Raises `RegistryError` only.
    """

    async def now(self) -> float:
        """The registry's clock: seconds since the epoch. The only clock that is compared across machines (H11)."""

    async def read_state(self) -> ClusterState: ...

    async def wait_newer(self, version: int) -> None:
        """Returns as soon as the state's version is above `version`: at once if it is already."""

    async def declare_models(self, specs: Sequence[ModelSpec]) -> None:
        """Makes the models of the configuration file exactly `specs`: adds, replaces and removes those with source
        `file`, and leaves those with source `api` alone unless a file model takes the name. The load failure of a
        model whose revision changes, and of a removed one, is forgotten. Replicas are left to the planner."""

    async def join_node(self, hello: Hello, gateway_id: GatewayId) -> int:
        """A worker's session begins: the node becomes healthy and this gateway holds its session. Returns the session
        number, which grows with each session of the node. With a new boot id, the node's replicas become `gone` (a
        restarted agent has no processes: a boot id stands in for the exit reports that can never come). Raises when
        another node has the name."""

    async def leave_node(self, node_id: NodeId, session: int, status: NodeStatus) -> bool:
        """A session ends; the node becomes `status`. False: a newer session has taken over, nothing was written."""

    async def observe(self, node_id: NodeId, session: int, reports: Sequence[Report]) -> bool:
        """Writes what a worker reports. False when `session` is not the node's newest: nothing was written.

        A report for an unknown replica, or one that `lifecycle.may_follow` forbids, is dropped. Fields of a report
        that are None leave what is stored."""

    async def lead(self, gateway_id: GatewayId) -> int:
        """Becomes the leader, or stays it. Returns the epoch; it grows whenever the leader changes."""

    async def apply(self, epoch: int, write: ControlWrite) -> bool:
        """Applies a planner's write if `epoch` is still the leader's. True: something changed.

        Raises `StaleEpoch` when another gateway has become the leader."""

    async def publish_demand(self, gateway_id: GatewayId, demand: Sequence[Demand]) -> None:
        """Replaces all demand of this gateway."""

    def statistics(self) -> RegistryStatistics: ...


class OpenRegistry(Protocol):
    """Opens a store; leaving the context closes it. A seam of the composition root."""

    def __call__(self, url: str) -> AbstractAsyncContextManager[Registry]: ...
