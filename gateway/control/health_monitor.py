"""The nodes' loop: notices what has become silent, probes its replicas, and writes down what is to be thought of it.

Two questions are kept apart. Whether a *node* can be reached is a matter of its session and of time, and is written
to the registry, at its edges only (H12). Whether its *replicas* live is asked of them at once when the node becomes
suspect: those that are gone are out of routing long before the node is unhealthy, those that answer serve on.

No time of another machine and none of the registry is looked at (H11).

Of several gateways each judges the nodes whose session it holds; the leader judges those whose session nobody holds
who lives. Whoever begins to judge a node has not heard of it for no time yet, and so has everybody after the registry
was away, since nobody could have said that he holds the session (H9).
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
from gateway.registry.protocol import Registry, RegistryError
from gateway.registry.snapshot import SnapshotStore
from gateway.routing.probe_cache import Probe

log = structlog.get_logger(__name__)

RETRY_SECONDS: Final = 1.0
"""Pause after the registry could not be used."""
PAUSE_SECONDS_MIN: Final = 0.01
"""Between two rounds that time alone brings about: a rounded age must not make the loop spin."""
PROBES_MAX: Final = 32
"""Probes at a time."""
PROBE_PAUSE_SECONDS: Final = 0.1
"""Between two probes of a replica that seems to be gone."""
SECOND_LOOK_SECONDS: Final = 0.5
"""From the first look at a suspect node's replicas to the second: a process may die a moment after its worker."""
LISTENING: Final = frozenset({Observed.LOADING, Observed.READY})
"""Where a replica has to listen. Before that it need not yet, and one that drains need not any more (R13)."""


class SessionLink(Protocol):
    """A session that is open at this gateway, as it is now."""

    @property
    def number(self) -> int:
        """Returns the session number, which grows with each session of the node."""

    @property
    def last_heard(self) -> float:
        """When anything came from the worker: trio clock, seconds."""

    @property
    def leaving(self) -> bool:
        """The worker has said that it drains and ends."""


@dataclass(frozen=True)
class _Seen:
    """A node's newest session, and since when it is as it is (trio clock, seconds)."""

    number: int
    connected: bool
    since: float


@dataclass(frozen=True)
class _Change:
    """To be written: the node's link becomes `link`."""

    version: int
    """Version of the view upon which it was decided."""
    node: Node
    link: NodeStatus
    ended: bool


@dataclass(frozen=True)
class _Look:
    """What one look at all nodes has come to."""

    changes: tuple[_Change, ...]
    suspects: tuple[Node, ...]
    again_at: float
    """When time alone changes it: trio clock, seconds."""


@dataclass
class HealthMonitor:
    """`wake` asks for a round, when a session has begun or ended; without it one comes with every heartbeat."""

    registry: Registry
    views: SnapshotStore[FleetView]
    """Has to hold a first snapshot of the registry when `run` begins."""
    settings: HealthSettings
    links: Callable[[], Mapping[NodeId, SessionLink]]
    """The sessions that are open at this gateway."""
    probe: Probe
    token_of: Callable[[ReplicaId], str]
    note_broken: Callable[[ReplicaId, str], None]
    """Told of a replica whose process is gone, and how that is known."""
    is_judge_of: Callable[[Node], bool] = lambda _node: True
    """Whether a node that has no session here is for this gateway to judge."""
    rests: Callable[[], bool] = lambda: False
    """The registry is away: nobody could have said that he holds a session, so nobody without one is judged."""
    wake: Wake = field(default_factory=Wake)
    _seen: dict[NodeId, _Seen] = field(default_factory=dict, init=False)
    _written_on: dict[NodeId, int] = field(default_factory=dict, init=False)
    """Version of the view upon which a node's link was written. It is not written again before the view has changed."""
    _probe_at: dict[NodeId, float] = field(default_factory=dict, init=False)
    """Suspect nodes, and when their replicas are probed next (trio clock, seconds)."""
    _examined: set[ReplicaId] = field(default_factory=set, init=False)
    """Replicas that are being probed now."""
    _limiter: trio.CapacityLimiter = field(default_factory=lambda: trio.CapacityLimiter(PROBES_MAX), init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watches until cancelled. Nodes without a session here count as silent from now on."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                look = self._look(trio.current_time())
                for target in self._due(look.suspects, trio.current_time()):
                    nursery.start_soon(self._examine, target)
                retry_at = await self._write(look.changes)
                again_at = min(look.again_at, retry_at, *self._probe_at.values())
                await self.wake.wait_until(max(again_at, trio.current_time() + PAUSE_SECONDS_MIN))

    def begin_anew(self) -> None:
        """The registry was away for so long that what was heard before means nothing (H9)."""
        links = self.links()
        self._seen = {node_id: seen for node_id, seen in self._seen.items() if node_id in links}

    def _look(self, now: float) -> _Look:
        state, links = self.views.current.state, self.links()
        changes, suspects, pause = list[_Change](), list[Node](), self.settings.heartbeat_seconds
        for node in state.nodes.values():
            session = links.get(node.id)
            if session is None and self.rests():
                continue
            if session is None and not self.is_judge_of(node):
                self._seen.pop(node.id, None)
                continue
            seen = self._note(node, session, now)
            verdict = assess(node.link, _link(session, seen, now), self.settings)
            pause = min(pause, verdict.again_in)
            if verdict.link is not node.link and self._is_up_to_date(node, session, state.version):
                changes.append(_Change(state.version, node, verdict.link, ended=session is None))
            if verdict.suspect:
                suspects.append(node)
        self._keep_only(state, suspects)
        return _Look(tuple(changes), tuple(suspects), now + pause)

    def _note(self, node: Node, session: SessionLink | None, now: float) -> _Seen:
        """A node's silence begins anew with each session that begins or breaks."""
        number, connected = (node.session, False) if session is None else (session.number, True)
        seen = self._seen.get(node.id)
        if seen is None or (seen.number, seen.connected) != (number, connected):
            seen = self._seen[node.id] = _Seen(number, connected, now)
        return seen

    def _is_up_to_date(self, node: Node, session: SessionLink | None, version: int) -> bool:
        """Whether the view shows the session that the node has here, and what was written of it last."""
        return self._written_on.get(node.id) != version and (session is None or session.number == node.session)

    def _keep_only(self, state: ClusterState, suspects: list[Node]) -> None:
        for node_id in [each for each in self._seen if each not in state.nodes]:
            del self._seen[node_id]
            self._written_on.pop(node_id, None)
        for node_id in self._probe_at.keys() - {node.id for node in suspects}:
            del self._probe_at[node_id]

    def _due(self, suspects: tuple[Node, ...], now: float) -> Iterator[Target]:
        """Whom to probe now: at once, soon again, then with every heartbeat."""
        for node in suspects:
            pause = self.settings.heartbeat_seconds
            if node.id not in self._probe_at:
                log.warning("health.node_suspect", node=node.name, link=node.link)
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
        """Finds out whether a process is gone. Any other answer changes nothing: the router asks for itself (H1)."""
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
        self.note_broken(target.replica_id, because)

    async def _write(self, changes: tuple[_Change, ...]) -> float:
        """Returns when to try again: never, if all is written (trio clock, seconds)."""
        for change in changes:
            node = change.node
            try:
                if await self.registry.mark_node(node.id, node.session, change.link, ended=change.ended):
                    log.info("health.node_changed", node=node.name, link=change.link, was=node.link)
                self._written_on[node.id] = change.version
            except RegistryError as error:
                log.warning("health.not_written", node=node.name, link=change.link, error=str(error))
                return trio.current_time() + RETRY_SECONDS
        return inf


def _link(session: SessionLink | None, seen: _Seen, now: float) -> Connectivity:
    if session is None:
        return Connectivity(connected=False, silent_seconds=now - seen.since)
    return Connectivity(connected=True, silent_seconds=now - session.last_heard, leaving=session.leaving)


def _has_to_listen(replica: Replica, node: Node) -> bool:
    """What drains closes its listener before its last answer is out (R13)."""
    drains = replica.desired is not Desired.RUN or node.link is NodeStatus.DRAINING
    return replica.observed in LISTENING and replica.address is not None and not drains
