"""What every registry store guarantees of nodes: those docstrings of registry/protocol.py, sentence by sentence."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import trio

from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import BootId, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import UNKNOWN, Capacity, Gpu, VramBudget
from gateway.domain.session import Report
from gateway.registry.protocol import (
    FleetFull,
    NameTaken,
    NodeEdit,
    NodeOverrides,
    NotRegistered,
    Registry,
    StaleCredential,
)
from gateway.registry.store import Store
from gateway.registry.tables import Tables
from gateway.registry.writes import nodes as node_writes
from tests.contract.samples import (
    GATEWAY,
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
    stored,
    stored_node,
)

GIB = 1 << 30
PAIR = Capacity(
    gpus=(Gpu("nvidia", "RTX 4090", "GPU-1", 24 * GIB, 20 * GIB), Gpu("nvidia", "T4", "GPU-2", 16 * GIB, GIB))
)
"""40 GiB of GPU memory, of which 21 are free."""
UP = NodeStatus.HEALTHY
OFF = NodeStatus.OFFLINE


async def leave(registry: Registry, session: int, node_id: NodeId = NODE) -> None:
    assert await registry.mark_node(node_id, session, OFF, ended=True)


async def events_of(registry: Store, beginning: int = 0) -> list[tuple[str, str]]:
    """Kind and detail of the events from the `beginning`th on, the oldest first."""
    events = (await registry.read_events(100))[::-1]
    assert {event.subject for event in events[beginning:] if event.kind.startswith("node.")} <= {NODE, OTHER_NODE}
    return [(event.kind, event.detail) for event in events[beginning:]]


# Registration


async def test_a_new_node_is_offline_until_a_session_begins(registry: Registry, clock: SettableClock) -> None:
    clock.seconds = 1234.5
    async with bumping(registry, 1):
        node = await registry.register_node(registration(node_id=None, name="box"))
    assert (node.name, node.boot_id, node.condition, node.since) == ("box", "boot-1", OFF, 1234.5)
    assert (node.approved, node.draining, node.capacity) == (True, False, UNKNOWN)
    assert (await registry.read_state()).nodes == {node.id: node}


async def test_two_workers_without_an_id_get_two(registry: Registry) -> None:
    ids = {(await registry.register_node(registration(None, name=name))).id for name in ("box", "tower")}
    assert len(ids) == 2


async def test_a_proved_id_is_the_nodes_and_is_made_if_need_be(registry: Registry) -> None:
    made = await registry.register_node(registration(NODE, name="box"))
    again = await registry.register_node(registration(NODE, name="box"))
    assert made.id == again.id == NODE


async def test_a_node_may_change_its_name(registry: Registry) -> None:
    session = await join(registry, hello(name="box"))
    async with bumping(registry, 1):
        await registry.register_node(registration(name="tower"))
    await registry.register_node(registration(OTHER_NODE, name="box"))
    node = await stored_node(registry)
    assert (node.name, node.labels, node.condition, node.session) == ("tower", {"node.name": "tower"}, UP, session)


async def test_without_a_proof_the_name_of_an_offline_node_is_the_node(registry: Registry) -> None:
    await leave(registry, await join(registry, hello(name="box")))
    node = await registry.register_node(registration(node_id=None, name="box", boot_id="boot-2"))
    assert (node.id, node.boot_id) == (NODE, "boot-2")


@pytest.mark.parametrize("link", [link for link in NodeStatus if link not in (OFF, NodeStatus.PENDING)])
async def test_without_a_proof_the_name_of_a_node_that_is_not_offline_is_taken(
    registry: Registry, link: NodeStatus
) -> None:
    session = await join(registry, hello(name="box"))
    await registry.mark_node(NODE, session, link)
    async with bumping(registry, 0):
        with pytest.raises(NameTaken, match=f"'box' belongs to node {NODE}"):
            await registry.register_node(registration(node_id=None, name="box"))


async def test_a11_with_a_proof_the_name_of_another_node_is_taken_while_that_is_not_offline(registry: Registry) -> None:
    await join(registry, hello(NODE, name="box"))
    await registry.register_node(registration(OTHER_NODE, name="tower"))
    async with bumping(registry, 0):
        for node_id in (OTHER_NODE, NodeId("not made yet")):
            with pytest.raises(NameTaken, match=f"'box' belongs to node {NODE}"):
                await registry.register_node(registration(node_id, name="box"))


@pytest.mark.parametrize("node_id", [OTHER_NODE, NodeId("not made yet")])
async def test_a_machine_that_was_set_up_anew_takes_its_name_from_the_node_that_it_was(
    registry: Registry, node_id: NodeId
) -> None:
    session = await join(registry, hello(NODE, name="box"))
    await place(registry, replica())
    await leave(registry, session)
    await registry.register_node(registration(OTHER_NODE, name="tower"))
    async with bumping(registry, 1):
        assert (await registry.register_node(registration(node_id, name="box"))).id == node_id
    state = await registry.read_state()
    assert (NODE in state.nodes, state.replicas, state.nodes[node_id].name) == (False, {}, "box")


async def test_of_many_that_ask_for_one_id_all_get_the_one_node(registry: Registry) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(5):
            nursery.start_soon(registry.register_node, registration(boot_id=f"boot-{number}"))
    assert list((await registry.read_state()).nodes) == [NODE]


async def test_nodes_that_only_register_are_few_and_push_out_nobody_who_was_here(
    registry: Registry, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_writes, "UNJOINED_MAX", 3)
    await leave(registry, await join(registry))
    drained = await registry.register_node(registration(node_id=None, name="drained"))
    await registry.edit_node(drained.id, NodeEdit(draining=True))
    for number in range(20):
        clock.seconds += 1
        await registry.register_node(registration(node_id=None, name=f"flood-{number}", boot_id=f"b-{number}"))
    nodes = (await registry.read_state()).nodes
    kept = {node.name for node in nodes.values()} - {nodes[NODE].name}
    assert kept == {"drained", "flood-17", "flood-18", "flood-19"}


async def test_a_registration_is_decided_by_few_rows_however_large_the_fleet(
    store_url: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strangers with the join token may send many, and what is read is paid for under the lock of all writers."""
    if store_url == "memory:":
        pytest.skip("all rows are at hand, nothing is read")
    for number in range(20):
        node_id = NodeId(f"node-{number}")
        await join(registry, hello(node_id, name=f"name-{number}"))
        await place(registry, replica(ReplicaId(f"replica-{number}"), node_id=node_id))
    decide, seen = node_writes.registered, list[Tables]()

    def decide_and_note(tables: Tables, *rest: Any) -> Tables:
        seen.append(tables)
        return decide(tables, *rest)

    monkeypatch.setattr(node_writes, "registered", decide_and_note)
    await registry.register_node(registration(NodeId("node-7"), "boot-2", name="name-7"))
    await registry.register_node(registration(None, "boot-2", name="new"))
    await registry.register_node(registration(None, "boot-2", name="newer"))
    assert [({row.node.name for row in tables.nodes.values()}, set(tables.replicas)) for tables in seen] == [
        ({"name-7"}, {"replica-7"}),
        (set(), set()),
        ({"new"}, set()),
    ]
    assert [len(tables.nodes) + tables.other_nodes for tables in seen] == [20, 20, 21]
    state = await registry.read_state()
    assert (len(state.nodes), len(state.replicas)) == (22, 20)
    assert state.replicas[ReplicaId("replica-7")].observed is Observed.GONE


async def test_the_limit_of_nodes_counts_also_those_that_a_registration_does_not_read(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_writes, "NODES_MAX", 3)
    for number in range(3):
        await join(registry, hello(NodeId(f"node-{number}"), name=f"name-{number}"))
    with pytest.raises(FleetFull, match="has 3 nodes"):
        await registry.register_node(registration(None, name="box"))
    await registry.register_node(registration(NodeId("node-1"), "boot-2", name="name-1"))


async def test_a_node_that_never_came_is_forgotten_after_a_while(registry: Registry, clock: SettableClock) -> None:
    never = await registry.register_node(registration(node_id=None, name="never"))
    clock.seconds += node_writes.UNJOINED_SECONDS + 1
    await registry.register_node(registration(node_id=None, name="other"))
    assert never.id not in (await registry.read_state()).nodes


async def test_a11_a_proof_counts_while_its_start_is_the_newest_or_the_last_that_joined(registry: Registry) -> None:
    await join(registry)
    first = BootId(hello().boot_id)
    for boot_id in ("lost-1", "lost-2"):
        await registry.register_node(replace(registration(boot_id=boot_id), proof_boot_id=first))
    await join(registry, hello(boot_id="lost-2"))
    assert (await stored_node(registry)).joined_boot_id == "lost-2"
    for stale in (first, BootId("lost-1")):
        with pytest.raises(StaleCredential):
            await registry.register_node(replace(registration(boot_id="thief"), proof_boot_id=stale))
    assert (await stored_node(registry)).boot_id == "lost-2"


async def test_h10_the_same_boot_id_changes_nothing(registry: Registry) -> None:
    await join(registry)
    await place(registry, replica(observed=Observed.READY))
    before = await registry.read_state()
    async with bumping(registry, 0):
        assert await registry.register_node(registration()) == before.nodes[NODE]
    assert await registry.read_state() == before


async def test_h10_a_new_boot_id_ends_the_nodes_replicas_and_only_those(
    registry: Registry, clock: SettableClock
) -> None:
    await join(registry)
    await join(registry, hello(OTHER_NODE))
    on_other_node = replica(OTHER_REPLICA, node_id=OTHER_NODE, observed=Observed.READY)
    failed = replica(ReplicaId("replica-3"), slot=1, observed=Observed.FAILED, error="exit code 1")
    await place(registry, replica(observed=Observed.READY), on_other_node, failed)
    clock.seconds = 2000.0
    async with bumping(registry, 1):
        await registry.register_node(registration(boot_id="boot-2"))
    replicas = (await registry.read_state()).replicas
    assert replicas[REPLICA] == replica(observed=Observed.GONE, since=2000.0)
    assert replicas[on_other_node.id] == on_other_node
    assert replicas[failed.id] == failed


async def test_h9_a_new_boot_id_supersedes_the_earlier_agents_session(registry: Registry, clock: SettableClock) -> None:
    session = await join(registry)
    clock.seconds = 2000.0
    await registry.register_node(registration(boot_id="boot-2"))
    async with bumping(registry, 0):
        assert not await registry.mark_node(NODE, session, UP)
        assert not await registry.record_capacity(NODE, session, PAIR)
        assert not await registry.record_reports(NODE, session, [])
    node = await stored_node(registry)
    assert (node.condition, node.since) == (OFF, 2000.0)
    assert await registry.join_node(hello(boot_id="boot-2"), GATEWAY) > node.session > session


@pytest.mark.parametrize("node_id", [NODE, None], ids=["proved", "by name"])
async def test_only_an_unknown_node_is_approved_as_the_registration_says(
    registry: Registry, node_id: NodeId | None
) -> None:
    """Neither a restart nor another setting approves a node that waits, or unapproves one that serves."""
    waiting = await registry.register_node(registration(node_id, name="box", approved=False))
    again = await registry.register_node(registration(node_id, "boot-2", name="box", approved=True))
    assert (waiting.status, again.status, again.id) == (NodeStatus.PENDING, NodeStatus.PENDING, waiting.id)
    await registry.edit_node(waiting.id, NodeEdit(approved=True))
    assert (await registry.register_node(registration(node_id, "boot-3", name="box", approved=False))).approved


async def test_the_order_to_drain_outlives_the_workers_restart(registry: Registry) -> None:
    await join(registry)
    await registry.edit_node(NODE, NodeEdit(draining=True))
    await join(registry, hello(boot_id="boot-2"))
    node = await stored_node(registry)
    assert (node.condition, node.draining, node.status) == (UP, True, NodeStatus.DRAINING)


# Joining


async def test_a_joining_node_is_healthy_and_stored_as_it_introduced_itself(
    registry: Registry, clock: SettableClock
) -> None:
    await registry.register_node(registration())
    introduction = hello(labels={"tier": "gpu"}, max_replicas_per_model=3, capacity=PAIR)
    clock.seconds = 1100.0
    async with bumping(registry, 1):
        await registry.join_node(introduction, GATEWAY)
    node = await stored_node(registry)
    assert (node.id, node.name, node.boot_id) == (NODE, introduction.name, "boot-1")
    assert (node.condition, node.since, node.status) == (UP, 1100.0, UP)
    assert (node.max_replicas_per_model, node.capacity, node.free_vram_bytes) == (3, PAIR, 21 * GIB)
    assert node.labels == {
        "node.name": introduction.name,
        "gpu.vendor": "nvidia",
        "gpu.count": "2",
        "gpu.vram": "40GiB",
        "tier": "gpu",
    }


async def test_the_session_number_grows_with_each_session_and_the_state_shows_it(registry: Registry) -> None:
    node = await registry.register_node(registration(node_id=None, name="box"))
    numbers = [await registry.join_node(hello(node.id), GATEWAY) for _ in range(3)]
    assert numbers == [1, 2, 3]
    assert (await stored_node(registry, node.id)).session == 3


async def test_a_later_introduction_counts_and_the_earlier_is_forgotten(registry: Registry) -> None:
    await join(registry, hello(labels={"tier": "gpu"}, max_replicas_per_model=3, capacity=PAIR))
    await join(registry, hello(labels={"zone": "b"}))
    node = await stored_node(registry)
    assert node.labels == {"node.name": node.name, "zone": "b"}
    assert (node.max_replicas_per_model, node.capacity, node.free_vram_bytes) == (1, UNKNOWN, None)


async def test_since_is_when_the_link_changed_not_when_a_session_began(
    registry: Registry, clock: SettableClock
) -> None:
    await join(registry)
    clock.seconds = 1500.0
    await join(registry, gateway_id=OTHER_GATEWAY)
    assert (await stored_node(registry)).since == 1000.0


async def test_h10_joining_touches_no_replica_whatever_it_says_of_them(registry: Registry) -> None:
    await join(registry)
    await place(registry, replica(observed=Observed.READY))
    async with bumping(registry, 1):
        await registry.join_node(hello(replicas=(Report(REPLICA, Observed.GONE),)), OTHER_GATEWAY)
    assert await stored(registry) == replica(observed=Observed.READY)


async def test_a_node_keeps_the_name_it_was_registered_with(registry: Registry) -> None:
    await registry.register_node(registration(OTHER_NODE, name="tower"))
    await registry.register_node(registration(name="box"))
    await registry.join_node(hello(name="tower"), GATEWAY)
    assert (await stored_node(registry)).name == "box"


async def test_a_node_that_was_never_registered_or_removed_cant_join(registry: Registry) -> None:
    async with bumping(registry, 0):
        with pytest.raises(NotRegistered, match=f"node {NODE} is not registered"):
            await registry.join_node(hello(), GATEWAY)
    await join(registry)
    await registry.remove_node(NODE)
    with pytest.raises(NotRegistered):
        await registry.join_node(hello(), GATEWAY)


async def test_h10_an_agent_that_was_superseded_cant_join(registry: Registry) -> None:
    await join(registry)
    await registry.register_node(registration(boot_id="boot-2"))
    async with bumping(registry, 0):
        with pytest.raises(NotRegistered, match="register again"):
            await registry.join_node(hello(), GATEWAY)


async def test_a_node_that_waits_for_approval_may_join_and_is_pending(registry: Registry) -> None:
    await registry.register_node(registration(approved=False))
    await registry.join_node(hello(), GATEWAY)
    node = await stored_node(registry)
    assert (node.condition, node.status) == (UP, NodeStatus.PENDING)


# What the holder of the session sees


async def test_a_mark_is_written_with_its_time(registry: Registry, clock: SettableClock) -> None:
    session = await join(registry)
    clock.seconds = 1060.0
    async with bumping(registry, 1):
        assert await registry.mark_node(NODE, session, NodeStatus.UNHEALTHY)
    node = await stored_node(registry)
    assert (node.condition, node.since, node.session) == (NodeStatus.UNHEALTHY, 1060.0, session)
    assert await registry.mark_node(NODE, session, UP)
    assert (await stored_node(registry)).status == UP


async def test_h12_a_mark_that_changes_nothing_is_no_version_and_no_event(
    registry: Store, clock: SettableClock
) -> None:
    session = await join(registry)
    await registry.mark_node(NODE, session, NodeStatus.UNHEALTHY)
    before = await registry.read_events(100)
    clock.seconds = 1060.0
    async with bumping(registry, 0):
        for _ in range(3):
            assert await registry.mark_node(NODE, session, NodeStatus.UNHEALTHY)
    assert await registry.read_events(100) == before
    assert (await stored_node(registry)).since == 1000.0


async def test_h12_a_mark_drops_no_replica(registry: Registry) -> None:
    session = await join(registry)
    await place(registry, replica(observed=Observed.READY))
    for link in (NodeStatus.UNHEALTHY, OFF):
        await registry.mark_node(NODE, session, link)
    assert await stored(registry) == replica(observed=Observed.READY)


async def test_an_ended_session_is_nobodys_once(registry: Registry) -> None:
    session = await join(registry)
    async with bumping(registry, 1):
        assert await registry.mark_node(NODE, session, UP, ended=True)
        assert await registry.mark_node(NODE, session, UP, ended=True)
    assert (await stored_node(registry)).condition == UP
    async with bumping(registry, 1):
        assert await registry.mark_node(NODE, session, NodeStatus.UNHEALTHY)


async def test_h9_a_session_that_has_ended_cant_revive_the_node(registry: Registry) -> None:
    session = await join(registry)
    await leave(registry, session)
    async with bumping(registry, 0):
        assert not await registry.mark_node(NODE, session, UP)
    assert (await stored_node(registry)).status == OFF
    await join(registry)
    assert (await stored_node(registry)).status == UP


async def test_h9_a_late_report_does_not_revive_a_node(registry: Registry) -> None:
    session = await join(registry)
    await place(registry, replica())
    await leave(registry, session)
    await registry.record_reports(NODE, session, [Report(REPLICA, Observed.FETCHING)])
    await registry.record_capacity(NODE, session, PAIR)
    assert (await stored_node(registry)).status == OFF


HolderWrite = Callable[[Registry, NodeId, int], Awaitable[bool]]
HOLDER_WRITES: dict[str, HolderWrite] = {
    "mark_node": lambda registry, node_id, session: registry.mark_node(node_id, session, OFF),
    "mark_node, ended": lambda registry, node_id, session: registry.mark_node(node_id, session, UP, ended=True),
    "note_capacity": lambda registry, node_id, session: registry.record_capacity(node_id, session, PAIR),
    "observe": lambda registry, node_id, session: registry.record_reports(
        node_id, session, [Report(REPLICA, Observed.GONE)]
    ),
}


@pytest.mark.parametrize("write", HOLDER_WRITES.values(), ids=HOLDER_WRITES)
async def test_h9_a_session_that_was_taken_over_writes_nothing(registry: Registry, write: HolderWrite) -> None:
    old = await join(registry)
    await place(registry, replica())
    new = await join(registry, gateway_id=OTHER_GATEWAY)
    async with bumping(registry, 0):
        assert not await write(registry, NODE, old)
        assert not await write(registry, NodeId("nobody"), new)
    async with bumping(registry, 1):
        assert await write(registry, NODE, new)


@pytest.mark.parametrize("write", HOLDER_WRITES.values(), ids=HOLDER_WRITES)
async def test_h9_a_session_of_a_removed_node_is_none_of_the_node_that_returns(
    registry: Registry, write: HolderWrite, clock: SettableClock
) -> None:
    old = await join(registry)
    await registry.remove_node(NODE)
    clock.seconds += 0.25
    await join(registry)
    async with bumping(registry, 0):
        assert not await write(registry, NODE, old)


# Capacity


async def test_the_capacity_is_recorded_with_what_follows_from_it(registry: Registry) -> None:
    session = await join(registry, hello(capacity=PAIR, vram_budget=VramBudget(share=0.75)))
    assert (await stored_node(registry)).free_vram_bytes == 11 * GIB
    less = replace(PAIR, gpus=(replace(PAIR.gpus[0], vram_free_bytes=15 * GIB), PAIR.gpus[1]), ram_free_bytes=7)
    async with bumping(registry, 1):
        assert await registry.record_capacity(NODE, session, less)
    node = await stored_node(registry)
    assert (node.capacity, node.free_vram_bytes, node.labels["gpu.count"]) == (less, 6 * GIB, "2")
    await registry.record_capacity(NODE, session, UNKNOWN)
    node = await stored_node(registry)
    assert (node.capacity, node.free_vram_bytes, node.labels) == (UNKNOWN, None, {"node.name": node.name})


async def test_a_capacity_that_changes_nothing_is_no_version(registry: Registry) -> None:
    session = await join(registry, hello(capacity=PAIR))
    async with bumping(registry, 0):
        assert await registry.record_capacity(NODE, session, PAIR)


async def test_a_capacity_is_a_version_but_no_event(registry: Store) -> None:
    session = await join(registry)
    before = await registry.read_events(100)
    async with bumping(registry, 1):
        await registry.record_capacity(NODE, session, PAIR)
    assert await registry.read_events(100) == before


async def test_a_waiter_hears_of_a_capacity(registry: Registry) -> None:
    session = await join(registry)
    version = (await registry.read_state()).version
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(registry.wait_newer, version)
            await registry.record_capacity(NODE, session, PAIR)


# An admin's wishes


async def test_an_edit_changes_what_it_names_only(registry: Registry) -> None:
    await registry.register_node(registration(approved=False))
    before = await stored_node(registry)
    for edit, changed in [
        (NodeEdit(approved=True), {"approved": True}),
        (NodeEdit(draining=True), {"draining": True}),
        (NodeEdit(overrides=NodeOverrides(max_replicas_per_model=7)), {"max_replicas_per_model": 7}),
        (NodeEdit(draining=False), {"draining": False}),
        (NodeEdit(approved=False), {"approved": False}),
    ]:
        async with bumping(registry, 1):
            assert await registry.edit_node(NODE, edit)
            assert await registry.edit_node(NODE, edit)
        before = replace(before, **changed)  # type: ignore[arg-type] # named above
        assert await stored_node(registry) == before


async def test_an_empty_edit_changes_nothing(registry: Registry) -> None:
    await registry.register_node(registration())
    async with bumping(registry, 0):
        assert await registry.edit_node(NODE, NodeEdit())


async def test_an_unknown_node_cant_be_edited(registry: Registry) -> None:
    async with bumping(registry, 0):
        assert not await registry.edit_node(NODE, NodeEdit(approved=True))


async def test_overrides_lie_over_what_the_worker_says(registry: Registry) -> None:
    said = hello(labels={"tier": "gpu", "zone": "b"}, max_replicas_per_model=3, vram_budget=VramBudget(share=0.5))
    await join(registry, replace(said, capacity=PAIR))
    assert (await stored_node(registry)).free_vram_bytes == 1 * GIB
    overrides = NodeOverrides({"tier": "a", "gpu.count": "0"}, 0, VramBudget(amount=24 * GIB))
    await registry.edit_node(NODE, NodeEdit(overrides=overrides))
    node = await stored_node(registry)
    assert (node.max_replicas_per_model, node.free_vram_bytes) == (0, 5 * GIB)
    assert {key: node.labels[key] for key in ("tier", "zone", "gpu.count", "gpu.vendor")} == {
        "tier": "a",
        "zone": "b",
        "gpu.count": "0",
        "gpu.vendor": "nvidia",
    }


async def test_a_workers_labels_lie_over_the_automatic_ones(registry: Registry) -> None:
    await join(registry, hello(labels={"gpu.vendor": "other", "node.name": "alias"}, capacity=PAIR))
    labels = (await stored_node(registry)).labels
    assert (labels["gpu.vendor"], labels["node.name"], labels["gpu.count"]) == ("other", "alias", "2")


async def test_an_override_replaces_the_whole_earlier_one(registry: Registry) -> None:
    await join(registry, hello(labels={"tier": "gpu"}, capacity=PAIR))
    await registry.edit_node(NODE, NodeEdit(overrides=NodeOverrides({"tier": "a"}, 5, VramBudget(amount=0))))
    await registry.edit_node(NODE, NodeEdit(overrides=NodeOverrides({"zone": "b"})))
    node = await stored_node(registry)
    assert (node.labels["tier"], node.labels["zone"]) == ("gpu", "b")
    assert (node.max_replicas_per_model, node.free_vram_bytes) == (1, 21 * GIB)


async def test_what_an_edit_keeps_stays(registry: Registry) -> None:
    await join(registry, hello(labels={"tier": "gpu"}, capacity=PAIR))
    await registry.edit_node(NODE, NodeEdit(overrides=NodeOverrides({"tier": "a"}, 5, VramBudget(amount=0))))
    kept = frozenset({"labels", "vram_budget"})
    await registry.edit_node(NODE, NodeEdit(overrides=NodeOverrides({"zone": "b"}, 6), kept=kept))
    node = await stored_node(registry)
    assert (node.labels["tier"], node.max_replicas_per_model, node.free_vram_bytes) == ("a", 6, 0)


async def test_an_empty_override_takes_the_earlier_one_back(registry: Registry) -> None:
    await join(registry, hello(labels={"tier": "gpu"}, max_replicas_per_model=2, capacity=PAIR))
    before = await stored_node(registry)
    await registry.edit_node(NODE, NodeEdit(overrides=NodeOverrides({"tier": "a"}, 5, VramBudget(amount=0))))
    assert await stored_node(registry) != before
    await registry.edit_node(NODE, NodeEdit(overrides=NodeOverrides()))
    assert await stored_node(registry) == before


async def test_an_admins_settings_outlive_sessions_and_restarts(registry: Registry) -> None:
    await join(registry)
    admin_edit = NodeEdit(
        approved=False, draining=True, overrides=NodeOverrides({"tier": "a"}, 5, VramBudget(share=0.5))
    )
    await registry.edit_node(NODE, admin_edit)
    for boot_id in ("boot-1", "boot-2"):
        session = await join(registry, hello(boot_id=boot_id, labels={"tier": "gpu"}))
        await registry.record_capacity(NODE, session, PAIR)
        node = await stored_node(registry)
        assert (node.approved, node.draining, node.status) == (False, True, NodeStatus.PENDING)
        assert (node.labels["tier"], node.max_replicas_per_model, node.free_vram_bytes) == ("a", 5, 1 * GIB)


async def test_an_edit_leaves_the_session_alone(registry: Registry) -> None:
    session = await join(registry)
    await registry.edit_node(NODE, NodeEdit(draining=True))
    async with bumping(registry, 0):
        assert await registry.mark_node(NODE, session, UP)
    assert (await stored_node(registry)).status == NodeStatus.DRAINING


# Removal


async def test_w13_a_removed_node_takes_its_replicas_along_whatever_they_are(registry: Registry) -> None:
    await leave(registry, await join(registry))
    await join(registry, hello(OTHER_NODE))
    on_other_node = replica(ReplicaId("replica-3"), node_id=OTHER_NODE)
    stuck = replica(desired=Desired.STOP, observed=Observed.DRAINING)
    await place(registry, stuck, replica(OTHER_REPLICA, slot=1, observed=Observed.FAILED), on_other_node)
    async with bumping(registry, 1):
        assert await registry.remove_node(NODE)
    state = await registry.read_state()
    assert (list(state.nodes), state.replicas) == ([OTHER_NODE], {on_other_node.id: on_other_node})


async def test_an_unknown_node_cant_be_removed(registry: Registry) -> None:
    await join(registry)
    assert await registry.remove_node(NODE)
    async with bumping(registry, 0):
        assert not await registry.remove_node(NODE)


async def test_nothing_is_placed_on_a_removed_node(registry: Registry) -> None:
    await join(registry)
    await registry.remove_node(NODE)
    epoch = await lead(registry)
    async with bumping(registry, 0):
        assert not await registry.apply(epoch, ControlWrite(create=(replica(),)))


async def test_a_removed_node_may_register_again_and_is_a_new_one(registry: Registry) -> None:
    await join(registry)
    await registry.edit_node(NODE, NodeEdit(draining=True, overrides=NodeOverrides({"tier": "a"})))
    await registry.remove_node(NODE)
    await registry.register_node(registration(approved=False))
    await registry.join_node(hello(), GATEWAY)
    node = await stored_node(registry)
    assert (node.approved, node.draining, node.labels) == (False, False, {"node.name": node.name})


async def test_the_name_of_a_removed_node_is_free(registry: Registry) -> None:
    await join(registry, hello(name="box"))
    await registry.remove_node(NODE)
    assert (await registry.register_node(registration(OTHER_NODE, name="box"))).id == OTHER_NODE


# Odd texts


@pytest.mark.parametrize("odd", ["a\0b", "\0", "a\ud800b", "☃"])
async def test_odd_characters_break_no_store(registry: Registry, odd: str) -> None:
    gpu = Gpu(odd, odd, odd, 24 * GIB, 20 * GIB)
    introduction = hello(name=odd, labels={odd: odd}, capacity=Capacity(gpus=(gpu,), cpu_flags=(odd,)))
    session = await join(registry, introduction)
    overrides = NodeOverrides(MappingProxyType({"tier": odd}))
    assert await registry.edit_node(NODE, NodeEdit(overrides=overrides))
    async with bumping(registry, 0):
        assert (await registry.register_node(registration(name=odd))).status == UP
        assert await registry.record_capacity(NODE, session, introduction.capacity)
        assert await registry.edit_node(NODE, NodeEdit(overrides=overrides))
    node = await stored_node(registry)
    clean = odd.replace("\0", "\ufffd").replace("\ud800", "?")
    assert (node.name, node.status, node.free_vram_bytes) == (clean, UP, 20 * GIB)
    assert (node.labels[clean], node.labels["tier"], node.labels["gpu.vendor"]) == (clean, clean, clean)
    assert node.capacity == Capacity(gpus=(Gpu(clean, clean, clean, 24 * GIB, 20 * GIB),), cpu_flags=(clean,))


# The audit trail


async def test_the_audit_trail_tells_what_happened_to_a_node(registry: Store) -> None:
    await registry.register_node(registration(name="box", approved=False))
    session = await registry.join_node(hello(), GATEWAY)
    await registry.edit_node(NODE, NodeEdit(approved=True))
    await registry.edit_node(NODE, NodeEdit(draining=True))
    await registry.edit_node(NODE, NodeEdit(draining=False))
    await registry.edit_node(NODE, NodeEdit(overrides=NodeOverrides({"tier": "a"}, 2)))
    await registry.edit_node(NODE, NodeEdit(approved=False))
    await registry.mark_node(NODE, session, NodeStatus.UNHEALTHY)
    await registry.mark_node(NODE, session, OFF, ended=True)
    await registry.remove_node(NODE)
    assert await events_of(registry) == [
        ("node.registered", "box, to be approved"),
        ("node.joined", f"session {session} at gateway {GATEWAY}"),
        ("node.link", "offline -> healthy"),
        ("node.approved", ""),
        ("node.draining", ""),
        ("node.resumed", ""),
        ("node.edited", "labels, max_replicas_per_model"),
        ("node.edited", "approval withdrawn"),
        ("node.link", "healthy -> unhealthy"),
        ("node.link", "unhealthy -> offline"),
        ("node.removed", "box"),
    ]


async def test_the_audit_trail_tells_of_a_restart_and_of_a_new_name(registry: Store) -> None:
    await join(registry, hello(name="box"))
    beginning = len(await events_of(registry))
    await registry.register_node(registration(name="tower"))
    await registry.register_node(registration(name="tower", boot_id=BootId("boot-2")))
    session = await registry.join_node(hello(boot_id="boot-2"), OTHER_GATEWAY)
    assert await events_of(registry, beginning) == [
        ("node.registered", "tower"),
        ("node.registered", "tower"),
        ("node.link", "healthy -> offline"),
        ("node.joined", f"session {session} at gateway {OTHER_GATEWAY}"),
        ("node.link", "offline -> healthy"),
    ]


async def test_a_removed_nodes_replicas_have_an_event_each(registry: Store) -> None:
    await join(registry)
    await place(registry, replica(), replica(OTHER_REPLICA, slot=1, observed=Observed.READY))
    beginning = len(await events_of(registry))
    await registry.remove_node(NODE)
    assert await events_of(registry, beginning) == [
        ("replica.forgotten", "placed"),
        ("replica.forgotten", "ready"),
        ("node.removed", (f"name of {NODE}")),
    ]
