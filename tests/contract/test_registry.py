"""What every registry store guarantees: the docstrings of gateway/registry/protocol.py, sentence by sentence."""

from dataclasses import replace

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.domain.cluster import Demand, LoadFailure, NodeStatus, Progress
from gateway.domain.ids import Address, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.peers import SILENT_SECONDS_MAX, PeerState, PendingReason, Use
from gateway.domain.plan_write import ControlWrite
from gateway.domain.session import Report
from gateway.registry.protocol import Registry, StaleEpoch
from gateway.registry.store import Store
from tests.contract.samples import (
    GATEWAY,
    MODEL,
    NODE,
    OTHER_GATEWAY,
    OTHER_NODE,
    OTHER_REPLICA,
    REPLICA,
    SettableClock,
    bumping,
    hello,
    join,
    lead,
    place,
    registration,
    replica,
    spec,
    stored,
    stored_node,
)

PATIENCE_SECONDS = 30.0
"""Of tests that would hang for ever if a wake-up were lost."""

FAILURE = LoadFailure(cause="exit code 1", attempts=2, retry_at=1030.5)


async def fail_load(registry: Registry, failure: LoadFailure | None = FAILURE) -> bool:
    return await registry.apply(await lead(registry), ControlWrite(set_failures=((MODEL, failure),)))


# Reading, waiting, versions


async def test_a_new_registry_is_empty(registry: Registry) -> None:
    state = await registry.read_state()
    assert (state.version, state.models, state.nodes, state.replicas, state.demand) == (0, {}, {}, {}, ())


async def test_now_is_the_registrys_clock(registry: Registry, clock: SettableClock) -> None:
    clock.seconds = 5_000.25
    assert await registry.now() == 5_000.25


async def test_a_read_state_does_not_change_any_more(registry: Registry) -> None:
    before = await registry.read_state()
    await registry.declare_models([spec()])
    await join(registry)
    await place(registry, replica())
    assert (before.version, before.models, before.nodes, before.replicas) == (0, {}, {}, {})


async def test_equal_states_are_gone_through_in_one_order(registry: Registry) -> None:
    await registry.declare_models([spec("b"), spec("c")])
    await registry.declare_models([spec("c"), spec("a"), spec("b")])
    assert list((await registry.read_state()).models) == ["a", "b", "c"]


async def test_wait_newer_returns_at_once_for_an_older_version(registry: Registry) -> None:
    await registry.declare_models([spec()])
    with trio.fail_after(PATIENCE_SECONDS):
        await registry.wait_newer(0)


async def test_wait_newer_wakes_every_waiter_when_the_version_grows(registry: Registry) -> None:
    seen: list[int] = []

    async def wait() -> None:
        await registry.wait_newer(0)
        seen.append((await registry.read_state()).version)

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(wait)
            await wait_all_tasks_blocked()
            await registry.declare_models([spec()])
    assert seen == [1, 1, 1]


async def test_wait_newer_sleeps_through_writes_that_change_nothing(registry: Registry) -> None:
    await registry.declare_models([spec()])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(registry.wait_newer, 1)
        await registry.declare_models([spec()])
        await registry.sync_peers(PeerState(GATEWAY, demand=(Demand(GATEWAY, MODEL, 1, 1.0),)), 10)
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_no_wake_up_is_lost_among_concurrent_writers(registry: Registry) -> None:
    writers, writes_each = 4, 5

    async def write(writer: int) -> None:
        for number in range(writes_each):
            await registry.register_node(registration(NodeId(f"node-{writer}"), f"boot-{number}"))

    async def follow() -> None:
        version = 0
        while version < writers * writes_each:
            await registry.wait_newer(version)
            newer = (await registry.read_state()).version
            assert newer > version
            version = newer

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(follow)
            for writer in range(writers):
                nursery.start_soon(write, writer)
    assert (await registry.read_state()).version == writers * writes_each


async def test_a_cancelled_wait_leaves_the_others_waiting(registry: Registry) -> None:
    leaving = trio.CancelScope()

    async def wait_and_leave() -> None:
        with leaving:
            await registry.wait_newer(0)

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.wait_newer, 0)
            nursery.start_soon(wait_and_leave)
            await wait_all_tasks_blocked()
            leaving.cancel()
            await wait_all_tasks_blocked()
            assert len(nursery.child_tasks) == 1
            await registry.declare_models([spec()])


# Models


async def test_l17_declared_models_are_stored_completely(registry: Registry) -> None:
    full = spec(
        sha256="ab" * 32,
        context_size=4096,
        gpu_layers=99,
        parallel=8,
        options={"threads": "4"},
        min_replicas=1,
        max_replicas=0,
        on_every_node=True,
        selector={"gpu.vendor": "nvidia"},
        exclusive_group="big",
        pinned=True,
        load_timeout_seconds=90.5,
    )
    async with bumping(registry, 1):
        await registry.declare_models([full, spec("other")])
    models = (await registry.read_state()).models
    assert models == {MODEL: full, "other": spec("other")}
    assert models[MODEL].revision == full.revision


async def test_declaring_the_same_models_again_changes_nothing(registry: Registry) -> None:
    await registry.declare_models([spec(), spec("other")])
    async with bumping(registry, 0):
        await registry.declare_models([spec("other"), spec()])


async def test_a_declaration_adds_replaces_and_removes_in_one_version(registry: Registry) -> None:
    await registry.declare_models([spec(), spec("old")])
    async with bumping(registry, 1):
        await registry.declare_models([spec(min_replicas=2), spec("new")])
    assert (await registry.read_state()).models == {MODEL: spec(min_replicas=2), "new": spec("new")}


async def test_a_declared_model_is_a_file_model_whatever_it_says(registry: Registry) -> None:
    await registry.declare_models([spec(source="api")])
    assert (await registry.read_state()).models[MODEL].source == "file"
    await registry.declare_models([])
    assert (await registry.read_state()).models == {}


async def test_removing_a_model_leaves_its_replicas_to_the_planner(registry: Registry) -> None:
    await registry.declare_models([spec()])
    await join(registry)
    await place(registry, replica())
    await registry.declare_models([])
    assert await stored(registry) == replica()


async def test_a_load_failure_is_kept_while_the_revision_is(registry: Registry) -> None:
    await registry.declare_models([spec()])
    await fail_load(registry)
    await registry.declare_models([spec(min_replicas=3)])
    assert (await registry.read_state()).failures == {MODEL: FAILURE}


async def test_a8_a_new_revision_forgets_the_load_failure(registry: Registry) -> None:
    await registry.declare_models([spec()])
    await fail_load(registry)
    await registry.declare_models([spec(context_size=512)])
    assert (await registry.read_state()).failures == {}


async def test_a_removed_model_takes_its_load_failure_along(registry: Registry) -> None:
    await registry.declare_models([spec()])
    await fail_load(registry)
    await registry.declare_models([])
    await registry.declare_models([spec()])
    assert (await registry.read_state()).failures == {}


# Reports


async def test_h9_a_stale_session_reports_nothing(registry: Registry) -> None:
    old = await join(registry)
    await place(registry, replica())
    await join(registry, gateway_id=OTHER_GATEWAY)
    async with bumping(registry, 0):
        assert not await registry.record_reports(NODE, old, [Report(REPLICA, Observed.FETCHING)])
        assert not await registry.record_reports(NodeId("nobody"), 1, [Report(REPLICA, Observed.FETCHING)])
    assert await stored(registry) == replica()


async def test_h9_a_late_report_does_not_revive_a_node(registry: Registry) -> None:
    session = await join(registry)
    await place(registry, replica())
    await registry.mark_node(NODE, session, NodeStatus.OFFLINE, ended=True)
    await registry.record_reports(NODE, session, [Report(REPLICA, Observed.FETCHING)])
    assert (await stored_node(registry)).status == NodeStatus.OFFLINE


async def test_a_report_is_written_with_its_time(registry: Registry, clock: SettableClock) -> None:
    session = await join(registry)
    await place(registry, replica())
    clock.seconds = 1234.5
    report = Report(REPLICA, Observed.READY, address=Address("127.0.0.1:20100"), pid=77, parallel=2)
    async with bumping(registry, 1):
        assert await registry.record_reports(NODE, session, [report])
    assert await stored(registry) == replica(
        observed=Observed.READY, address="127.0.0.1:20100", pid=77, parallel=2, since=1234.5
    )


async def test_what_a_report_does_not_say_stays(registry: Registry, clock: SettableClock) -> None:
    session = await join(registry)
    running = replica(observed=Observed.READY, address="127.0.0.1:20100", pid=77, parallel=2)
    await place(registry, running)
    clock.seconds = 1500.0
    await registry.record_reports(NODE, session, [Report(REPLICA, Observed.GONE, exit_code=-9, error="killed")])
    gone = replace(running, observed=Observed.GONE, exit_code=-9, error="killed", since=1500.0)
    assert await stored(registry) == gone


async def test_since_is_when_the_state_changed_not_when_it_was_last_reported(
    registry: Registry, clock: SettableClock
) -> None:
    session = await join(registry)
    await place(registry, replica(observed=Observed.LOADING))
    clock.seconds = 1500.0
    async with bumping(registry, 1):
        await registry.record_reports(NODE, session, [Report(REPLICA, Observed.LOADING, pid=5)])
    assert await stored(registry) == replica(observed=Observed.LOADING, pid=5)


async def test_a_repeated_report_changes_nothing(registry: Registry, clock: SettableClock) -> None:
    session = await join(registry)
    await place(registry, replica())
    report = Report(REPLICA, Observed.LOADING, pid=5)
    await registry.record_reports(NODE, session, [report])
    clock.seconds = 1500.0
    async with bumping(registry, 0):
        assert await registry.record_reports(NODE, session, [report])
        assert await registry.record_reports(NODE, session, [])


@pytest.mark.parametrize(
    ("current", "reported"),
    [
        (Observed.READY, Observed.LOADING),
        (Observed.GONE, Observed.READY),
        (Observed.FAILED, Observed.GONE),
        (Observed.DRAINING, Observed.READY),
    ],
)
async def test_a_report_that_goes_back_is_dropped(registry: Registry, current: Observed, reported: Observed) -> None:
    session = await join(registry)
    await place(registry, replica(observed=current))
    async with bumping(registry, 0):
        assert await registry.record_reports(NODE, session, [Report(REPLICA, reported, pid=1)])


async def test_r9_a_report_for_an_unknown_replica_is_dropped(registry: Registry) -> None:
    session = await join(registry)
    async with bumping(registry, 0):
        assert await registry.record_reports(NODE, session, [Report(ReplicaId("never placed"), Observed.READY)])
    assert (await registry.read_state()).replicas == {}


async def test_a_node_cant_speak_for_another_nodes_replica(registry: Registry) -> None:
    await join(registry)
    session = await join(registry, hello(OTHER_NODE))
    await place(registry, replica())
    async with bumping(registry, 0):
        assert await registry.record_reports(OTHER_NODE, session, [Report(REPLICA, Observed.GONE)])


async def test_reports_of_one_call_are_one_version_in_their_order(registry: Registry) -> None:
    session = await join(registry)
    await place(registry, replica(), replica(OTHER_REPLICA, slot=1))
    reports = [
        Report(REPLICA, Observed.READY, pid=1),
        Report(OTHER_REPLICA, Observed.FAILED, exit_code=1),
        Report(REPLICA, Observed.FETCHING, pid=2),
        Report(REPLICA, Observed.DRAINING),
    ]
    async with bumping(registry, 1):
        await registry.record_reports(NODE, session, reports)
    assert (await stored(registry)).observed == Observed.DRAINING
    assert (await stored(registry)).pid == 1
    assert (await stored(registry, OTHER_REPLICA)).exit_code == 1


async def test_an_error_with_bytes_that_are_no_text_is_stored(registry: Registry) -> None:
    session = await join(registry)
    await place(registry, replica())
    error = b"bad \xff byte, \0 too".decode(errors="surrogateescape")
    assert await registry.record_reports(NODE, session, [Report(REPLICA, Observed.FAILED, error=error)])
    assert (await stored(registry)).error == "bad ? byte, \ufffd too"


# Leadership and the planner's writes


async def test_the_epoch_grows_with_each_new_leader_only(registry: Registry) -> None:
    assert await lead(registry) == 1
    async with bumping(registry, 0):
        assert await lead(registry) == 1
    async with bumping(registry, 1):
        assert await lead(registry, OTHER_GATEWAY) == 2
    assert await lead(registry) == 3


async def test_l13_a_former_leader_writes_nothing(registry: Registry) -> None:
    await join(registry)
    former = await lead(registry)
    await lead(registry, OTHER_GATEWAY)
    async with bumping(registry, 0):
        with pytest.raises(StaleEpoch):
            await registry.apply(former, ControlWrite(create=(replica(),)))
        with pytest.raises(StaleEpoch):
            await registry.apply(former, ControlWrite())
    assert (await registry.read_state()).replicas == {}


@pytest.mark.parametrize("epoch", [-1, 1, 7])
async def test_l13_an_epoch_that_never_was_writes_nothing(registry: Registry, epoch: int) -> None:
    await registry.declare_models([spec()])
    with pytest.raises(StaleEpoch):
        await registry.apply(epoch, ControlWrite(set_failures=((MODEL, FAILURE),)))
    assert (await registry.read_state()).failures == {}


async def test_a_control_write_is_one_version(registry: Registry) -> None:
    await registry.declare_models([spec()])
    await join(registry)
    await place(registry, replica(), replica(OTHER_REPLICA, slot=1))
    write = ControlWrite(
        create=(replica(ReplicaId("replica-3"), slot=2),),
        set_desired=((REPLICA, Desired.DRAIN),),
        delete=(OTHER_REPLICA,),
        set_failures=((MODEL, FAILURE),),
    )
    async with bumping(registry, 1):
        assert await registry.apply(1, write)
    state = await registry.read_state()
    assert state.replicas == {
        REPLICA: replica(desired=Desired.DRAIN, desired_version=state.version),
        "replica-3": replica(ReplicaId("replica-3"), slot=2),
    }
    assert state.failures == {MODEL: FAILURE}


async def test_a_repeated_control_write_changes_nothing(registry: Registry) -> None:
    await registry.declare_models([spec()])
    await join(registry)
    epoch = await lead(registry)
    write = ControlWrite((replica(),), ((REPLICA, Desired.STOP),), (OTHER_REPLICA,), ((MODEL, FAILURE),))
    assert await registry.apply(epoch, write)
    async with bumping(registry, 0):
        assert not await registry.apply(epoch, write)
        assert not await registry.apply(epoch, ControlWrite())


async def test_unknown_rows_make_a_part_of_a_write_void_not_the_write(registry: Registry) -> None:
    await join(registry)
    epoch = await lead(registry)
    write = ControlWrite(
        create=(replica(OTHER_REPLICA, node_id=NodeId("never joined")), replica()),
        set_desired=((ReplicaId("never placed"), Desired.STOP),),
        delete=(ReplicaId("never placed"),),
        set_failures=((ModelName("never declared"), FAILURE),),
    )
    assert await registry.apply(epoch, write)
    state = await registry.read_state()
    assert state.replicas == {REPLICA: replica()}
    assert state.failures == {}


async def test_a_cleared_failure_is_gone(registry: Registry) -> None:
    await registry.declare_models([spec()])
    assert await fail_load(registry)
    assert await fail_load(registry, None)
    assert (await registry.read_state()).failures == {}


async def test_r10_twenty_claims_of_a_node_with_four_slots_make_four_rows(registry: Registry) -> None:
    await join(registry)
    epoch = await lead(registry)
    applied: list[bool] = []

    async def claim(number: int) -> None:
        claimed = replica(ReplicaId(f"claim-{number}"), slot=number % 4)
        applied.append(await registry.apply(epoch, ControlWrite(create=(claimed,))))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(claim, number)
    assert sorted(applied) == [False] * 16 + [True] * 4
    assert sorted(row.slot for row in (await registry.read_state()).replicas.values()) == [0, 1, 2, 3]


async def test_r10_two_claims_of_one_slot_in_one_write_make_one_row(registry: Registry) -> None:
    await join(registry)
    await place(registry, replica(), replica(OTHER_REPLICA))
    assert (await registry.read_state()).replicas == {REPLICA: replica()}


async def test_r9_a_placed_id_is_not_placed_again_on_another_node(registry: Registry) -> None:
    await join(registry)
    await place(registry, replica())
    async with bumping(registry, 0):
        await place(registry, replica(slot=3))


async def test_an_ended_replica_holds_its_slot_until_it_is_forgotten(registry: Registry) -> None:
    await join(registry)
    await place(registry, replica(observed=Observed.FAILED))
    successor = replica(OTHER_REPLICA)
    await place(registry, successor)
    assert list((await registry.read_state()).replicas) == [REPLICA]
    await registry.apply(1, ControlWrite(create=(successor,), delete=(REPLICA,)))
    assert (await registry.read_state()).replicas == {OTHER_REPLICA: successor}


async def test_a_late_report_cant_undo_a_drain(registry: Registry) -> None:
    session = await join(registry)
    await place(registry, replica())
    await registry.apply(1, ControlWrite(set_desired=((REPLICA, Desired.DRAIN),)))
    await registry.record_reports(NODE, session, [Report(REPLICA, Observed.READY)])
    assert (await stored(registry)).desired == Desired.DRAIN


async def test_who_has_seen_the_version_of_a_drain_knows_of_it(registry: Registry) -> None:
    await join(registry)
    await place(registry, replica())
    await registry.apply(1, ControlWrite(set_desired=((REPLICA, Desired.DRAIN),)))
    drained = await registry.read_state()
    await registry.declare_models([spec()])
    await registry.apply(1, ControlWrite(set_desired=((REPLICA, Desired.DRAIN),)))
    assert (await stored(registry)).desired_version == drained.version


async def test_a_broken_replica_is_broken_for_every_gateway(registry: Registry) -> None:
    await join(registry)
    await place(registry, replica(), replica(OTHER_REPLICA, slot=1))
    async with bumping(registry, 1):
        assert await registry.record_broken(REPLICA, "it hangs\0")
    async with bumping(registry, 0):
        assert await registry.record_broken(REPLICA, "it is gone")
    assert await registry.record_broken(OTHER_REPLICA, "nothing listens", lost=True)
    assert not await registry.record_broken(ReplicaId("replica-3"), "who?")
    state = await registry.read_state()
    assert state.replicas == {
        REPLICA: replica(broken="it hangs\ufffd"),
        OTHER_REPLICA: replica(OTHER_REPLICA, slot=1, broken="nothing listens", lost=True),
    }


async def test_l13_the_audit_trail_tells_whose_plan_it_was(registry: Registry) -> None:
    await join(registry)
    await place(registry, replica())
    await registry.apply(await lead(registry, OTHER_GATEWAY), ControlWrite(delete=(REPLICA,)))
    planned = [(event.kind, event.epoch) for event in await registry.read_events(10) if event.epoch is not None]
    assert planned == [("replica.forgotten", 2), ("replica.placed", 1)]


# The leader's term


async def test_l15_another_gateway_leads_only_once_the_leaders_term_is_over(
    registry: Registry, clock: SettableClock
) -> None:
    assert await registry.acquire_or_renew(GATEWAY, 10) == 1
    clock.seconds += 9
    async with bumping(registry, 0):
        assert await registry.acquire_or_renew(OTHER_GATEWAY, 10) is None
        assert await registry.acquire_or_renew(GATEWAY, 10) == 1
    clock.seconds += 9
    assert await registry.acquire_or_renew(OTHER_GATEWAY, 10) is None
    clock.seconds += 2
    async with bumping(registry, 1):
        assert await registry.acquire_or_renew(OTHER_GATEWAY, 10) == 2
    state = await registry.read_state()
    assert (state.leader, state.epoch) == (OTHER_GATEWAY, 2)
    assert await registry.acquire_or_renew(GATEWAY, 10) is None


async def test_a_leader_whose_term_ran_out_goes_on_if_nobody_else_wanted_to(
    registry: Registry, clock: SettableClock
) -> None:
    assert await registry.acquire_or_renew(GATEWAY, 10) == 1
    clock.seconds += 1000
    async with bumping(registry, 0):
        assert await registry.acquire_or_renew(GATEWAY, 10) == 1
    assert await registry.acquire_or_renew(OTHER_GATEWAY, 10) is None


async def test_a_leader_that_leaves_makes_room_at_once(registry: Registry) -> None:
    assert await registry.acquire_or_renew(GATEWAY, 10) == 1
    await registry.leave(OTHER_GATEWAY)
    assert await registry.acquire_or_renew(OTHER_GATEWAY, 10) is None
    await registry.leave(GATEWAY)
    assert await registry.acquire_or_renew(OTHER_GATEWAY, 10) == 2


# Bulletins

PEER_STATE = PeerState(
    GATEWAY,
    "http://one:8080",
    "f1",
    seen_version=7,
    leases={REPLICA: 3},
    uses={REPLICA: Use(12.5), OTHER_REPLICA: Use(11.0)},
    demand=(Demand(GATEWAY, MODEL, 4, 10.0),),
    progress={OTHER_REPLICA: Progress(1, 2, 0.5), REPLICA: Progress()},
    pending={MODEL: PendingReason("no room\0", is_shortage=True)},
    unsatisfiable={MODEL: "1 of 2 replicas"},
)


async def test_a_gateway_gets_the_newest_states_of_its_peers(registry: Registry) -> None:
    async with bumping(registry, 0):
        assert (await registry.sync_peers(PeerState(GATEWAY), 10)).peers == {}
        peer_states = await registry.sync_peers(PeerState(OTHER_GATEWAY, "http://two"), 10)
        assert peer_states.peers == {GATEWAY: PeerState(GATEWAY)}
        await registry.sync_peers(PEER_STATE, 10)
        peer_states = await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)
        again = await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)
    assert replace(peer_states.peers[GATEWAY], pending={}) == replace(PEER_STATE, pending={})
    assert peer_states.peers[GATEWAY].pending[MODEL].is_shortage
    assert again.peers == peer_states.peers
    changed = replace(PEER_STATE, leases={}, seen_version=8)
    await registry.sync_peers(changed, 10)
    last = (await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)).peers[GATEWAY]
    assert (last.leases, last.seen_version, last.uses) == ({}, 8, PEER_STATE.uses)


async def test_the_answer_tells_the_time_and_the_version(registry: Registry, clock: SettableClock) -> None:
    await registry.declare_models([spec()])
    clock.seconds = 77.5
    peer_states = await registry.sync_peers(PeerState(GATEWAY), 10)
    assert (peer_states.now, peer_states.version) == (77.5, 1)


async def test_a_gateway_that_has_gone_silent_is_no_peer_any_more_and_its_demand_ends(
    registry: Registry, clock: SettableClock
) -> None:
    await registry.sync_peers(PEER_STATE, 10)
    clock.seconds += 9
    assert (await registry.read_state()).demand == PEER_STATE.demand
    clock.seconds += 2
    assert (await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)).peers == {}
    assert (await registry.read_state()).demand == ()


async def test_w11_the_last_state_of_a_silent_gateway_is_kept_for_a_while(
    registry: Registry, clock: SettableClock
) -> None:
    await registry.sync_peers(PEER_STATE, 10)
    assert (await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)).silent == {}
    clock.seconds += 11
    peer_states = await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)
    said = peer_states.silent[GATEWAY]
    assert (peer_states.peers, [*peer_states.silent]) == ({}, [GATEWAY])
    assert (said.url, said.seen_version, said.leases) == (PEER_STATE.url, 7, PEER_STATE.leases)
    await registry.sync_peers(PEER_STATE, 10)
    peer_states = await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)
    assert ([*peer_states.peers], peer_states.silent) == ([GATEWAY], {})
    clock.seconds += SILENT_SECONDS_MAX + 11
    assert (await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)).silent == {}


async def test_w11_a_gateway_that_has_said_goodbye_is_not_silent_but_gone(
    registry: Registry, clock: SettableClock
) -> None:
    await registry.sync_peers(PEER_STATE, 10)
    await registry.leave(GATEWAY)
    clock.seconds += 11
    assert (await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)).silent == {}


async def test_a_gateway_that_leaves_is_no_peer_until_it_publishes_again(registry: Registry) -> None:
    await registry.sync_peers(PEER_STATE, 10)
    await registry.leave(GATEWAY)
    assert (await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)).peers == {}
    assert (await registry.read_state()).demand == ()
    await registry.sync_peers(PEER_STATE, 10)
    peer_states = await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)
    assert peer_states.peers[GATEWAY].leases == PEER_STATE.leases


async def test_demand_is_each_gateways_own_and_no_version(registry: Registry) -> None:
    mine, theirs = Demand(GATEWAY, MODEL, 3, 10.0), Demand(OTHER_GATEWAY, MODEL, 9, 5.5)
    async with bumping(registry, 0):
        await registry.sync_peers(PeerState(OTHER_GATEWAY, demand=(theirs,)), 10)
        await registry.sync_peers(PeerState(GATEWAY, demand=(mine,)), 10)
    assert (await registry.read_state()).demand == (mine, theirs)
    await registry.sync_peers(PeerState(OTHER_GATEWAY), 10)
    assert (await registry.read_state()).demand == (mine,)


# Statistics and the audit trail


async def test_statements_are_counted_under_the_method_that_caused_them(registry: Registry) -> None:
    await join(registry)
    before = registry.statistics().statements
    assert set(before) == {"register_node", "join_node"}
    await registry.read_state()
    after = registry.statistics().statements
    assert after.pop("read_state") > 0
    assert after == before


async def test_the_clock_and_waiting_cost_no_statement(registry: Registry) -> None:
    await registry.now()
    await registry.wait_newer(-1)
    registry.statistics()
    assert registry.statistics().statements == {}


async def test_changes_leave_one_line_each_in_the_audit_trail(registry: Store, clock: SettableClock) -> None:
    await registry.declare_models([spec()])
    session = await join(registry)
    await place(registry, replica())
    await fail_load(registry)
    clock.seconds = 1100.0
    await registry.record_reports(NODE, session, [Report(REPLICA, Observed.FAILED, error="exit code 1")])
    await registry.apply(1, ControlWrite(set_desired=((REPLICA, Desired.STOP),)))
    await registry.apply(1, ControlWrite(delete=(REPLICA,)))
    await registry.declare_models([])
    events = (await registry.read_events(100))[::-1]
    assert [(event.kind, event.subject) for event in events] == [
        ("model.declared", MODEL),
        ("node.registered", NODE),
        ("node.joined", NODE),
        ("node.link", NODE),
        ("gateway.leads", GATEWAY),
        ("replica.placed", REPLICA),
        ("model.failed", MODEL),
        ("replica.observed", REPLICA),
        ("replica.desired", REPLICA),
        ("replica.forgotten", REPLICA),
        ("model.removed", MODEL),
    ]
    assert (events[0].at, events[7].at) == (1000.0, 1100.0)
    assert events[7].detail == "placed -> failed: exit code 1"
    assert await registry.read_events(1) == events[-1:]
