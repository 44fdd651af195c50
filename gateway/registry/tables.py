"""The content of a registry, as immutable records."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from types import MappingProxyType
from typing import Final, TypeVar

from gateway.domain.cluster import ClusterState, Demand, LoadFailure, Node, Replica
from gateway.domain.ids import GatewayId, ModelName, NodeId, ReplicaId
from gateway.domain.model_spec import NOTHING, Capabilities, ModelSpec
from gateway.domain.resources import ALL_VRAM, Requirement, VramBudget
from gateway.registry.protocol import NodeOverrides

Key = TypeVar("Key", bound=str)
Row = TypeVar("Row")

EVENTS_KEPT: Final = 10_000
"""The number of rows of the audit trail that are kept. Older ones are deleted."""


@dataclass(frozen=True)
class ModelRow:
    """A model as it is stored: its spec and the knowledge about the spec's current revision."""

    spec: ModelSpec
    failure: LoadFailure | None = None
    requirement: Requirement | None = None
    """The resources that a replica of the current revision needs. None means unknown."""
    capabilities: Capabilities | None = None
    """The abilities of the current revision. None means that no backend has said it yet."""
    unload_at: float | None = None
    """The time of the last requested unload (see `ClusterState.unloads`). It outlives the revision."""


@dataclass(frozen=True)
class Declared:
    """The facts that a worker declares about its node: see `Hello`."""

    labels: Mapping[str, str] = field(default_factory=lambda: NOTHING)
    max_replicas_per_model: int = 1
    vram_budget: VramBudget = ALL_VRAM


@dataclass(frozen=True)
class NodeRow:
    """A node as it is stored, with what its worker declared and what an admin has set."""

    node: Node
    """The node that follows from the other fields: its labels, its number of replicas, its free VRAM."""
    declared: Declared = Declared()
    overrides: NodeOverrides = field(default_factory=NodeOverrides)


@dataclass(frozen=True)
class LeaderTerm:
    """The row that says which gateway leads, in which epoch and until when."""

    gateway_id: GatewayId | None = None
    epoch: int = 0
    """The epoch. 0 if no gateway has led yet."""
    expires_at: float = 0.0
    """The time at which another gateway may lead (seconds of the registry's clock). It is not part of the version."""

    @property
    def term(self) -> tuple[GatewayId | None, int]:
        """The leader and its epoch without the end of the term. A renewal changes neither, and so does not increment
        the version."""
        return self.gateway_id, self.epoch


@dataclass(frozen=True)
class Tables:
    """The rows at one moment. A store that reads only a part passes the part that the decision needs."""

    models: Mapping[ModelName, ModelRow] = field(default_factory=dict)
    nodes: Mapping[NodeId, NodeRow] = field(default_factory=dict)
    replicas: Mapping[ReplicaId, Replica] = field(default_factory=dict)
    leader_term: LeaderTerm = LeaderTerm()
    version: int = 0
    unreadable: Mapping[ModelName, str] = field(default_factory=dict)
    """The model rows that this version of the gateway does not understand, with their `source`. They are kept and
    never shown."""
    other_nodes: int = 0
    """The number of nodes besides `nodes`. It is not 0 only while a registration is decided by a part of the rows."""

    def state(self, demand: Iterable[Demand]) -> ClusterState:
        """Returns the rows as a `ClusterState`, in the order of ids, so that equal states iterate alike in every
        store."""
        return ClusterState(
            version=self.version,
            models=_ordered({name: row.spec for name, row in self.models.items()}),
            failures=_ordered({name: row.failure for name, row in self.models.items() if row.failure}),
            nodes=_ordered({node_id: row.node for node_id, row in self.nodes.items()}),
            replicas=_ordered(self.replicas),
            demand=tuple(sorted(demand, key=lambda row: (row.gateway_id, row.model))),
            requirements=_ordered({name: row.requirement for name, row in self.models.items() if row.requirement}),
            capabilities=_ordered({name: row.capabilities for name, row in self.models.items() if row.capabilities}),
            unloads=_ordered({name: row.unload_at for name, row in self.models.items() if row.unload_at is not None}),
            leader=self.leader_term.gateway_id,
            epoch=self.leader_term.epoch,
        )


def _ordered(rows: Mapping[Key, Row]) -> Mapping[Key, Row]:
    return MappingProxyType(dict(sorted(rows.items(), key=itemgetter(0))))
