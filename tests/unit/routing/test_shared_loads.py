"""What a gateway tells others of its leases, what it makes of theirs, and what all of them say together."""

from collections.abc import Callable, Mapping
from math import inf

import pytest
import trio

from gateway.domain.activity import Usage, merge_usage
from gateway.domain.ids import GatewayId, ModelName, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.peers import PeerState, Use
from gateway.routing.load_tracker import NEVER, LoadTracker
from tests.fakes.fleet import MODEL, replica, view
from tests.fakes.routing_harness import FakePeers, RoutingHarness

A, B, C = ReplicaId("a"), ReplicaId("b"), ReplicaId("c")
[CANDIDATE] = view(replica(A, parallel=2)).candidates[MODEL]
ORIGIN = Origin(RequestId("r"))


class Table(LoadTracker):
    """One whose clock the test sets, and which remembers what it was heard to say."""

    def __init__(
        self,
        *,
        leases_changed: Callable[[], None] | None = None,
        on_free: Callable[[ModelName], None] = lambda _model: None,
        on_release: Callable[[ModelName], None] = lambda _model: None,
    ) -> None:
        self.now = 0.0
        self.changed = 0
        self.changes: list[Mapping[ReplicaId, int]] = []
        super().__init__(
            lambda: self.now,
            peers=FakePeers(leases_changed or self._note_change),
            on_free=on_free,
            on_release=on_release,
            on_peers_changed=self.changes.append,
        )

    def _note_change(self) -> None:
        self.changed += 1


def test_a_lease_is_published_from_the_pick_to_its_end() -> None:
    table = Table()
    first, second = (table.lease(CANDIDATE, ORIGIN, 0.0) for _ in range(2))
    assert (table.published(), table.changed) == ({A: 2}, 2)
    first.release()
    second.release()
    second.release()
    assert (table.published(), table.changed) == ({}, 4)


def test_r4_peers_learn_of_an_end_before_any_request_here_gets_the_slot() -> None:
    order = list[str]()
    table = Table(
        leases_changed=lambda: order.append(f"told {table.published()}"), on_free=lambda _model: order.append("free")
    )
    lease = table.lease(CANDIDATE, ORIGIN, 0.0)
    order.clear()
    lease.release()
    assert order == ["told {}", "free"]


def test_a_refused_lease_frees_no_slot_when_it_ends() -> None:
    freed, again = list[str](), list[str]()
    table = Table(on_free=freed.append, on_release=again.append)
    lease = table.lease(CANDIDATE, ORIGIN, 0.0)
    table.record_full(lease, 1.0)
    lease.release()
    assert (freed, again) == ([], [MODEL])


def test_use_is_silence_while_there_are_requests_and_idleness_after() -> None:
    table = Table()
    assert table.uses() == {}
    first, second = table.lease(CANDIDATE, ORIGIN, 1.0), table.lease(CANDIDATE, ORIGIN, 2.0)
    assert table.uses() == {A: 1.0}
    second.called = True
    assert table.uses() == {A: 2.0}, "the first one still waits for a probe"
    first.called = True
    assert table.uses() == {A: 1.0}
    table.now = 5.0
    table.record_success(CANDIDATE)
    assert table.uses() == {A: 5.0}
    table.now = 6.0
    first.release()
    assert table.uses() == {A: 5.0}
    table.now = 7.0
    second.release()
    assert table.uses() == {A: 7.0}


def test_what_others_have_is_replaced_and_only_changes_are_reported() -> None:
    table = Table()
    table.apply_peers({A: 1, B: 2})
    table.apply_peers({A: 1, B: 2})
    table.apply_peers({B: 1, C: 1})
    assert table.changes == [{A: 1, B: 2}, {A: -1, B: -1, C: 1}]
    assert [table.load_of(each).at_peers for each in (A, B, C)] == [0, 1, 1]


def test_a_mapping_that_is_used_again_is_not_taken_for_what_was_received_before() -> None:
    table, at_peers = Table(), {A: 1}
    table.apply_peers(at_peers)
    at_peers[A] = 2
    table.apply_peers(at_peers)
    assert table.load_of(A).at_peers == 2


def test_a_replica_of_which_others_have_fewer_is_not_full_any_more() -> None:
    table = Table()
    table.apply_peers({A: 2, B: 1})
    for each in (A, B):
        table.change(each).full_until, table.load_of(each).refusals = 9.0, 3
    table.apply_peers({A: 1, B: 2})
    assert (table.load_of(A).full_until, table.load_of(A).refusals) == (NEVER, 0)
    assert (table.load_of(B).full_until, table.load_of(B).refusals) == (9.0, 3)


def test_leases_at_peers_on_a_replica_that_no_view_shows_yet_are_not_forgotten() -> None:
    table = Table()
    table.apply_peers({A: 1})
    table.keep_only(())
    table.apply_peers({A: 1})
    assert table.load_of(A).at_peers == 1
    table.apply_peers({})
    table.keep_only(())
    assert table._loads == {}


async def test_others_leases_count_in_the_pick() -> None:
    harness = RoutingHarness(replica(A, parallel=4), replica(B, parallel=4, slot=1))
    harness.loads.apply_peers({A: 2})
    picked = [(await harness.lease()).candidate.replica_id for _ in range(3)]
    assert picked[:2] == [B, B]


async def test_a_slot_freed_at_a_peer_serves_the_model_that_it_is_of(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness(replica(A, parallel=1))
    harness.loads.apply_peers({A: 1, B: 1})
    harness.loads.change(A).full_until = inf
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.lease)
        await trio.testing.wait_all_tasks_blocked()
        harness.loads.apply_peers({A: 1})  # of one that this gateway does not know
        assert harness.waiting() == 1
        harness.loads.apply_peers({})
        assert harness.waiting() == 0


# Together


def peer_state(name: str, leases: dict[ReplicaId, int], uses: dict[ReplicaId, float]) -> PeerState:
    return PeerState(GatewayId(name), leases=leases, uses={each: Use(since) for each, since in uses.items()})


@pytest.mark.parametrize(
    ("own", "peers_published", "expected"),
    [
        pytest.param(Usage(2, 0, 50), [({A: 3}, {A: 90.0})], Usage(5, 0, 10), id="busy at both"),
        pytest.param(Usage(2, 0, 5), [({A: 3}, {A: 60.0})], Usage(5, 0, 5), id="the newest sign of life counts"),
        pytest.param(Usage(0, 8, 0), [({A: 1}, {A: 40.0})], Usage(1, 0, 60), id="busy elsewhere only"),
        pytest.param(Usage(1, 0, 70), [({}, {A: 99.0})], Usage(1, 0, 70), id="busy here only"),
        pytest.param(Usage(0, 8, 0), [({}, {A: 93.0})], Usage(0, 7, 0), id="idle since the last one anywhere"),
        pytest.param(None, [({}, {A: 93.0}), ({}, {A: 95.0})], Usage(0, 5, 0), id="never used here"),
        pytest.param(Usage(1, 0, 70), [({A: 1}, {})], Usage(2, 0, 0), id="just begun, its use not published yet"),
        pytest.param(None, [({A: 1}, {A: 101.0})], Usage(1, 0, 0), id="clocks differ a little"),
    ],
)
def test_h1_usage_of_several_gateways(
    own: Usage | None, peers_published: list[tuple[dict[ReplicaId, int], dict[ReplicaId, float]]], expected: Usage
) -> None:
    peer_states = [peer_state(str(number), *each) for number, each in enumerate(peers_published)]
    mine = {B: Usage(1, 0, 3)} | ({A: own} if own is not None else {})
    assert merge_usage(mine, peer_states, now=100.0) == {A: expected, B: Usage(1, 0, 3)}
