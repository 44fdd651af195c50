"""What must be true of several gateways: of each as if it were alone, and of all of them together."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Final

import trio

from gateway.domain.cluster import NodeStatus, Replica
from gateway.domain.errors import GatewayError, Unavailable
from gateway.domain.ids import NodeId, ReplicaId
from gateway.domain.lifecycle import Desired
from gateway.domain.routability import Candidate
from gateway.registry.snapshot import RETRY_MAX_SECONDS
from tests.simulation.clients import Request
from tests.simulation.fleet import TTL_SECONDS, Fleet, Post
from tests.simulation.installation import LOAD_WAIT_SECONDS
from tests.simulation.invariants import ROUNDING_SECONDS, Watch
from tests.simulation.machine import DRAIN_TIMEOUT_SECONDS
from tests.simulation.sim_worker import OrderedProcess, SimWorker

CATCH_UP_SECONDS: Final = RETRY_MAX_SECONDS + 2.5
"""Until a gateway whose registry answers again has learned of everything: its longest pause, and a last failure."""
STALE_SECONDS: Final = 45.0
"""`health.stale_after`."""
SLACK_SECONDS: Final = 1.0
KNOWN_SECONDS: Final = 0.5
"""Until the other gateways know of a lease: a few exchanges."""


class GatewayWatch(Watch):
    """One gateway of several."""

    def __init__(self, post: Post) -> None:
        super().__init__(post.installation)
        self._post = post

    def _checks(self) -> Iterator[Callable[[], None]]:
        yield self._check_view_is_current
        yield self._check_one_lease_per_running_request
        yield self._check_nobody_waits_in_vain
        yield self._check_nobody_waits_for_the_vanished

    def well_for(self) -> float:
        """Seconds for which its registry has answered it."""
        since = max(self._post.faulty_registry.disturbed_until, self._post.began_at)
        return 0.0 if self._post.faulty_registry.is_dead else trio.current_time() - since

    def _check_view_is_current(self) -> None:
        if self.well_for() > CATCH_UP_SECONDS:
            super()._check_view_is_current()

    def _why_unfounded(self, request: Request, error: GatewayError) -> str | None:
        """While its registry does not answer a gateway can't know what comes up."""
        if type(error) is Unavailable:
            waited = trio.current_time() - request.begun_at
            is_in_doubt = self.well_for() < TTL_SECONDS + CATCH_UP_SECONDS
            return None if is_in_doubt and waited >= LOAD_WAIT_SECONDS - ROUNDING_SECONDS else f"it waited {waited} s"
        return super()._why_unfounded(request, error)

    def _may_have_room(self, candidate: Candidate) -> bool:
        """What others have published may be doubted."""
        return super()._may_have_room(candidate) or self._gateway.routing.admission.loads.is_doubtful(candidate)

    def _is_free(self, candidate: Candidate, now: float) -> bool:
        """A slot may be left to an older request elsewhere, for a moment."""
        is_left = any(
            until >= now for until in self._gateway.routing.admission._deferral.deferred_until(candidate.model)
        )
        return super()._is_free(candidate, now) and not is_left


class FleetWatch:
    """Sees every write as it is made, and everything else at each rest."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._world = fleet.world
        self._watches: dict[Post, GatewayWatch] = {}
        self._tokens: dict[ReplicaId, str] = {}
        self._replicas: dict[str, Replica] = {}
        """By token: each as it was when it was first seen."""
        self._leaderless_since = 0.0
        self._marks_seen = 0
        self._unpublished_since: dict[Post, float] = {}
        fleet.on_post = self._begin
        for machine in fleet.machines:
            machine.on_order = self._check_end

    def _begin(self, post: Post) -> None:
        self._watches[post] = GatewayWatch(post)

    def check(self) -> None:
        """To be called at each rest. Raises `Violation`."""
        self._learn_replicas()
        for machine in self._fleet.machines:
            machine.note_touch()
        self._watches = {post: each for post, each in self._watches.items() if post in self._fleet.posts.values()}
        for watch in self._watches.values():
            watch.check()
        self._check_one_leader()
        self._check_takeover()
        self._check_calls_are_covered()
        self._check_one_process_per_slot()
        self._check_probes()
        self._check_cut_off()
        self._check_peers()
        self._check_published()
        self._check_nodes_given_up()
        self._world.raise_violations()

    def _check_one_leader(self) -> None:
        """L13: a leader believes in its term no longer than the registry does."""
        leaders = [str(post) for post in self._fleet.posts.values() if post.gateway.shared.election.epoch is not None]
        if len(leaders) > 1:
            self._world.object_to(f"{leaders} lead at a time")
        if leaders:
            self._leaderless_since = trio.current_time()

    def _check_takeover(self) -> None:
        """Whoever could lead does, within the time after which a gateway counts as dead."""
        leaderless = trio.current_time() - self._leaderless_since
        for post, watch in self._watches.items():
            if min(leaderless, watch.well_for()) > TTL_SECONDS + SLACK_SECONDS:
                self._world.object_to(f"nobody has led for {leaderless:.1f} s, though {post} could")

    def _check_calls_are_covered(self) -> None:
        leases = {
            (self._tokens[lease.candidate.replica_id], str(lease.origin.request_id))
            for watch in self._watches.values()
            for lease in watch._leases()
        }
        for backend in self._fleet.backends():
            if self._fleet.network.host(backend.address).is_holding:
                continue
            for visit in backend.calls:
                if (backend.token, visit.request_id) not in leases:
                    self._world.object_to(f"{visit.request_id} runs at {backend.address} without a lease")

    def _learn_replicas(self) -> None:
        token_of = self._fleet.token_of
        for row in self._fleet.registry._tables.replicas.values():
            if row.id not in self._tokens:
                self._tokens[row.id] = token_of(row.id)
                self._replicas[self._tokens[row.id]] = row

    def _check_one_process_per_slot(self) -> None:
        """R10: never two loads of one model in one place, whoever was asked for them."""
        found = [self._replicas.get(process.backend.token) for process in self._fleet.processes()]
        places = Counter((row.node_id, row.model, row.slot) for row in found if row is not None)
        for place, processes in places.items():
            if processes > 1:
                self._world.object_to(f"{processes} processes for {place}")

    def _check_probes(self) -> None:
        for backend in self._fleet.backends():
            is_holding = self._fleet.network.host(backend.address).is_holding
            if backend.probes_now > self._fleet.places and not is_holding:
                self._world.object_to(f"{backend.probes_now} probes at a time of {backend.address}")

    def _check_cut_off(self) -> None:
        """A gateway that is dead for the others gives its workers away."""
        for post in self._fleet.posts.values():
            unheard = trio.current_time() - post.gateway.control.sync._synced_at
            is_cut_off = unheard > TTL_SECONDS + CATCH_UP_SECONDS + SLACK_SECONDS
            if (
                is_cut_off
                and post.faulty_registry.is_cut
                and not post.faulty_registry.is_stopped
                and post.gateway.control.sessions.open
            ):
                self._world.object_to(f"{post} holds sessions, cut off for {unheard:.1f} s")

    def _check_peers(self) -> None:
        """R4: what a dead gateway has said does not count for longer than it may: its time, and the time of one who
        has heard it last and nothing since."""
        now = trio.current_time()
        for post in self._fleet.posts.values():
            for other in post.gateway.shared.peers.states.values():
                died_at = self._fleet.dead.get(other.gateway_id, now)
                counts = other.leases or other.demand
                if counts and now - died_at > 2 * TTL_SECONDS + CATCH_UP_SECONDS:
                    self._world.object_to(f"{post} counts {other.gateway_id}, dead for {now - died_at:.1f} s")

    def _check_published(self) -> None:
        """R4 to R9: what the others count of a gateway is what it has."""
        now = trio.current_time()
        for post, watch in self._watches.items():
            said = post.faulty_registry.published
            differs = said is not None and dict(said.leases) != post.gateway.routing.admission.loads.published()
            if not differs or not post.gateway.shared.peers.has_peers or watch.well_for() <= CATCH_UP_SECONDS:
                self._unpublished_since.pop(post, None)
            elif now - self._unpublished_since.setdefault(post, now) > KNOWN_SECONDS:
                self._world.object_to(f"{post} has {post.gateway.routing.admission.loads.published()} and says {said}")

    def _check_nodes_given_up(self) -> None:
        """H9, H12: it takes a silence to write off a node, not a takeover, nor a registry that was away."""
        given_up = self._fleet.registry.nodes_given_up
        for at, node_id, link in given_up[self._marks_seen :]:
            machine = self._machine(node_id)
            has_left = link is NodeStatus.OFFLINE and machine.leaving_at is not None
            if not has_left and at - machine.in_touch_at < STALE_SECONDS - SLACK_SECONDS:
                silent = at - machine.in_touch_at
                self._world.object_to(f"{node_id} is {link} though it was in touch {silent:.1f} s before")
        self._marks_seen = len(given_up)

    def _machine(self, node_id: NodeId) -> SimWorker:
        return next(machine for machine in self._fleet.machines if machine.name == node_id)

    def _check_end(self, machine: SimWorker, process: OrderedProcess) -> None:
        """W11: no leader ends a replica that has requests through any gateway. To be called before the end."""
        calls = {visit.request_id for visit in process.backend.calls if visit.outcome == "running"}
        cut = [request for request in sorted(calls) if self._may_not_be_cut(request)]
        if cut and (why := self._why_unfounded_end(machine, process)) is not None:
            self._world.object_to(f"{cut} are cut at {process.backend.token[:6]}: {why}")

    def _may_not_be_cut(self, request_id: str) -> bool:
        """Also if its gateway can't be heard: it may serve on all the same."""
        return any(request_id in post.installation.clients.live for post in self._fleet.posts.values())

    def _why_unfounded_end(self, machine: SimWorker, process: OrderedProcess) -> str | None:
        """None: there is another good reason."""
        self._learn_replicas()
        known = self._replicas.get(process.backend.token)
        row = None if known is None else self._fleet.registry._tables.replicas.get(known.id)
        if row is None or row.broken is not None or row.model not in self._fleet.registry._tables.models:
            return None
        if row.id in self._fleet.registry.stopped_by_fault:
            return None
        began = [self._fleet.registry.unwanted_at.get(row.id), machine.leaving_at]
        drains_since = min((at for at in began if at is not None), default=trio.current_time())
        drained = trio.current_time() - drains_since
        if drained >= DRAIN_TIMEOUT_SECONDS:
            return None
        return f"it drains for {drained:.1f} s; {row}"

    def check_end(self) -> None:
        """When nothing is asked for any more, nothing is left, and everybody knows it. Raises `Violation`."""
        self.check()
        if len(self._fleet.posts) != self._fleet.places:
            self._world.object_to(f"only {list(map(str, self._fleet.posts.values()))} live")
        for post, watch in self._watches.items():
            watch.check_end()
            self._check_views(post)
            if misplaced := {
                name: use.at_peers for name, use in post.gateway.routing.admission.loads._loads.items() if use.at_peers
            }:
                self._world.object_to(f"{post} counts leases elsewhere: {misplaced}")
        self._world.raise_violations()

    def _check_views(self, post: Post) -> None:
        """H9: what is well is well in every view."""
        state = post.gateway.shared.views.current.state
        for machine in self._fleet.machines:
            node = state.nodes.get(NodeId(machine.name))
            if node is None or node.status is not NodeStatus.HEALTHY:
                self._world.object_to(f"{machine.name} is well, and {post} sees {node}")
        unended = [row for row in state.replicas.values() if row.desired is not Desired.RUN]
        if unended:
            self._world.object_to(f"{post} sees replicas that do not end: {unended}")
