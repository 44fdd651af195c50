"""Watches the nodes: it notices silent nodes, probes their replicas, and writes down what follows.

Two questions are kept apart. Whether a *node* can be reached depends on its session and on time, and is written to the
registry only when it changes (H12). Whether its *replicas* live is asked of the replicas themselves as soon as the node
becomes suspect. Dead replicas are out of routing long before the node is unhealthy, and those that answer keep serving.

The monitor reads neither the clock of another machine nor that of the registry (H11).

Each gateway judges the nodes whose session it holds. The leader also judges the nodes whose session no living gateway
holds. A gateway that takes over a node starts its silence timer at zero, and so does every gateway after an outage of
the registry, because no gateway could write that it holds a session (H9).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Final, Protocol

import structlog
import trio

from gateway.backends.protocol import Target
from gateway.concurrency import Wake
from gateway.control.node_health import Connectivity, HealthSettings, assess
from gateway.domain.cluster import ClusterState, Node, NodeStatus, ProbeOutcome, Replica
from gateway.domain.ids import NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.routability import FleetView
from gateway.registry.protocol import RETRY_SECONDS, NodeRegistry, RegistryError
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.probe_cache import Probe

log = structlog.get_logger(__name__)

PAUSE_SECONDS_MIN: Final = 0.01
"""The shortest pause between two rounds if only time has passed: a rounded age must not make the loop spin."""
PROBES_MAX: Final = 32
"""The largest number of probes at a time."""
PROBE_PAUSE_SECONDS: Final = 0.1
"""The pause between two probes of a replica that seems to be gone."""
SECOND_LOOK_SECONDS: Final = 0.5
"""The time from the first look at the replicas of a suspect node to the second. A process may die a moment after its
worker."""
LISTENING: Final = frozenset({Observed.LOADING, Observed.READY})
"""The states in which a replica has to listen. Before them it need not listen yet, and a draining replica need not
listen any more (R13)."""


class OpenSession(Protocol):
    """An open session at this gateway, as it is now."""

    @property
    def number(self) -> int:
        """The session number, which grows with each session of the node."""

    @property
    def last_contact_at(self) -> float:
        """The time of the last message from the worker (Trio's clock, seconds)."""

    @property
    def leaving(self) -> bool:
        """Whether the worker has said that it drains and ends."""


@dataclass(frozen=True)
class _Seen:
    """The newest session of a node, and the time since which it has this state (Trio's clock, seconds)."""

    number: int
    connected: bool
    since: float


@dataclass(frozen=True)
class _Change:
    """A change that has to be written: the node's condition becomes `condition`."""

    version: int
    """The version of the view on which the decision is based."""
    node: Node
    condition: NodeStatus
    ended: bool


@dataclass(frozen=True)
class _Round:
    """The result of one look at all nodes."""

    changes: tuple[_Change, ...]
    suspects: tuple[Node, ...]
    again_at: float
    """The time at which the result changes without an event (Trio's clock, seconds)."""


@dataclass
class HealthMonitor:
    """Judges the nodes of this gateway. `wake` asks for a round when a session has begun or ended; without it there is
    one with every heartbeat."""

    registry: NodeRegistry
    views: SnapshotStore[FleetView]
    """The views. There has to be a first snapshot of the registry when `run` begins."""
    settings: HealthSettings
    sessions: Callable[[], Mapping[NodeId, OpenSession]]
    """Returns the open sessions of this gateway."""
    probe: Probe
    token_of: Callable[[ReplicaId], str]
    report_broken: Callable[[ReplicaId, str], None]
    """Called with a replica whose process is gone, and the evidence for that."""
    is_responsible_for: Callable[[Node], bool] = lambda _node: True
    """Returns whether this gateway judges a node that has no session here."""
    is_paused: Callable[[], bool] = lambda: False
    """Returns whether the registry is unreachable. While it is, nodes without a session here are not judged."""
    wake: Wake = field(default_factory=Wake)
    _seen: dict[NodeId, _Seen] = field(default_factory=dict, init=False)
    _written_on: dict[NodeId, int] = field(default_factory=dict, init=False)
    """The version of the view with which a node's condition was written. It is not written again before the view has
    changed."""
    _probe_at: dict[NodeId, float] = field(default_factory=dict, init=False)
    """The suspect nodes, and the time of the next probes of their replicas (Trio's clock, seconds)."""
    _examined: set[ReplicaId] = field(default_factory=set, init=False)
    """The replicas that are being probed now."""
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(PROBES_MAX), init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watches until cancelled. The silence of nodes without a session here begins now."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                found = self._assess_nodes(trio.current_time())
                for target in self._due(found.suspects, trio.current_time()):
                    nursery.start_soon(self._examine, target)
                retry_at = await self._write(found.changes)
                again_at = min(found.again_at, retry_at, *self._probe_at.values())
                await self.wake.wait_until(max(again_at, trio.current_time() + PAUSE_SECONDS_MIN))

    def restart(self) -> None:
        """Starts all silence timers at zero, because after a long outage of the registry the earlier ones mean nothing
        (H9)."""
        sessions = self.sessions()
        self._seen = {node_id: seen for node_id, seen in self._seen.items() if node_id in sessions}

    def _assess_nodes(self, now: float) -> _Round:
        state, sessions = self.views.current.state, self.sessions()
        changes, suspects, pause = list[_Change](), list[Node](), self.settings.heartbeat_seconds
        for node in state.nodes.values():
            session = sessions.get(node.id)
            if session is None and self.is_paused():
                continue
            if session is None and not self.is_responsible_for(node):
                self._seen.pop(node.id, None)
                continue
            seen = self._see(node, session, now)
            assessment = assess(node.condition, _connectivity(session, seen, now), self.settings)
            pause = min(pause, assessment.again_in)
            if assessment.condition is not node.condition and self._is_up_to_date(node, session, state.version):
                changes.append(_Change(state.version, node, assessment.condition, ended=session is None))
            if assessment.suspect:
                suspects.append(node)
        self._keep_only(state, suspects)
        return _Round(tuple(changes), tuple(suspects), now + pause)

    def _see(self, node: Node, session: OpenSession | None, now: float) -> _Seen:
        """Updates the session of a node. Each session that begins or breaks starts the node's silence timer at zero."""
        number, connected = (node.session, False) if session is None else (session.number, True)
        seen = self._seen.get(node.id)
        if seen is None or (seen.number, seen.connected) != (number, connected):
            seen = self._seen[node.id] = _Seen(number, connected, now)
        return seen

    def _is_up_to_date(self, node: Node, session: OpenSession | None, version: int) -> bool:
        """Returns whether the view shows the node's session here and the last change that was written."""
        return self._written_on.get(node.id) != version and (session is None or session.number == node.session)

    def _keep_only(self, state: ClusterState, suspects: list[Node]) -> None:
        for node_id in [each for each in self._seen if each not in state.nodes]:
            del self._seen[node_id]
            self._written_on.pop(node_id, None)
        for node_id in self._probe_at.keys() - {node.id for node in suspects}:
            del self._probe_at[node_id]

    def _due(self, suspects: tuple[Node, ...], now: float) -> Iterator[Target]:
        """Yields the replicas that have to be probed now. A replica is probed at once, then soon again, then with every
        heartbeat."""
        for node in suspects:
            pause = self.settings.heartbeat_seconds
            if node.id not in self._probe_at:
                log.warning("health.node_suspect", node=node.name, condition=node.condition)
                pause = min(pause, SECOND_LOOK_SECONDS)
            elif now < self._probe_at[node.id]:
                continue
            self._probe_at[node.id] = now + pause
            yield from self._listening(node)

    def _listening(self, node: Node) -> Iterator[Target]:
        for replica in self.views.current.state.replicas.values():
            if replica.node_id == node.id and replica.id not in self._examined and _has_to_listen(replica, node):
                assert replica.address is not None  # noqa: S101 - follows from having to listen
                yield Target(replica.id, replica.model, replica.address, self.token_of(replica.id))

    async def _examine(self, target: Target) -> None:
        """Finds out whether a process is gone. Any other result changes nothing, because the router probes replicas
        itself (H1)."""
        self._examined.add(target.replica_id)
        try:
            for probes in range(self.settings.misses):
                await trio.sleep(PROBE_PAUSE_SECONDS if probes else 0)
                async with self._limiter:
                    if await self.probe(target) is not ProbeOutcome.GONE:
                        return
        finally:
            self._examined.discard(target.replica_id)
        because = f"its worker does not answer and nothing listens at {target.address} any more"
        self.report_broken(target.replica_id, because)

    async def _write(self, changes: tuple[_Change, ...]) -> float:
        """Writes the changes. Returns when to try again (Trio's clock, seconds): infinity if everything is written."""
        for change in changes:
            node = change.node
            try:
                if await self.registry.mark_node(node.id, node.session, change.condition, ended=change.ended):
                    log.info("health.node_changed", node=node.name, condition=change.condition, was=node.condition)
                self._written_on[node.id] = change.version
            except RegistryError as error:
                log.log(
                    error.log_level, "health.write_failed", node=node.name, condition=change.condition, error=str(error)
                )
                return trio.current_time() + RETRY_SECONDS
        return inf


def _connectivity(session: OpenSession | None, seen: _Seen, now: float) -> Connectivity:
    if session is None:
        return Connectivity(connected=False, silent_seconds=now - seen.since)
    return Connectivity(connected=True, silent_seconds=now - session.last_contact_at, leaving=session.leaving)


def _has_to_listen(replica: Replica, node: Node) -> bool:
    """Returns whether the replica has to listen. A draining replica closes its listener before its last answer is out
    (R13)."""
    drains = replica.desired is not Desired.RUN or node.condition is NodeStatus.DRAINING
    return replica.observed in LISTENING and replica.address is not None and not drains
