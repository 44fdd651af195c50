"""The snapshot: readers see one whole value, waiters miss none that stays, an outage leaves the last one standing."""

from collections import deque

import pytest
import structlog.testing
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.domain.cluster import EMPTY_STATE, ClusterState
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.protocol import RegistryError
from gateway.registry.snapshot import SnapshotStore, run_snapshot_watcher
from tests.contract.samples import NODE, registration
from tests.fakes.fleet import at_once


class FailingRegistry(MemoryRegistry):
    """Raises the queued errors, one per read or wait, before it answers again. Keeps the times of all reads."""

    def __init__(self, *errors: RegistryError) -> None:
        super().__init__()
        self.errors = deque(errors)
        self.wait_errors = deque[RegistryError]()
        self.read_at: list[float] = []

    async def wait_newer(self, version: int) -> None:
        if self.wait_errors:
            raise self.wait_errors.popleft()
        await super().wait_newer(version)

    async def read_state(self) -> ClusterState:
        self.read_at.append(trio.current_time())
        if self.errors:
            raise self.errors.popleft()
        return await super().read_state()


def same(state: ClusterState) -> ClusterState:
    return state


async def test_wait_change_returns_at_once_when_another_value_is_current() -> None:
    store = SnapshotStore("old")
    store.publish("new")
    assert await store.wait_change("old") == "new"


async def test_every_waiter_wakes_and_sees_the_last_of_several_values() -> None:
    store, seen = SnapshotStore("old"), list[str]()

    async def wait() -> None:
        seen.append(await store.wait_change("old"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        store.publish("between")
        store.publish("new")
    assert seen == ["new"] * 3


async def test_publishing_the_seen_value_again_wakes_nobody() -> None:
    store = SnapshotStore("same")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.wait_change, "same")
        await wait_all_tasks_blocked()
        store.publish("same")
        await wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel()


async def test_the_watcher_has_published_when_it_reports_started() -> None:
    registry, store = MemoryRegistry(), SnapshotStore(EMPTY_STATE)
    await registry.register_node(registration())
    async with trio.open_nursery() as nursery:
        await nursery.start(run_snapshot_watcher, registry, store, at_once(same))
        assert NODE in store.current.nodes
        nursery.cancel_scope.cancel()


async def test_the_watcher_builds_one_value_per_version_and_rests_in_between() -> None:
    registry, store = MemoryRegistry(), SnapshotStore(-1)
    built: list[int] = []

    def build(state: ClusterState) -> int:
        built.append(state.version)
        return state.version

    async with trio.open_nursery() as nursery:
        await nursery.start(run_snapshot_watcher, registry, store, at_once(build))
        for version in (1, 2):
            await registry.register_node(registration(boot_id=f"boot-{version}"))
            assert await store.wait_change(version - 1) == version
            await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert built == [0, 1, 2]


async def test_an_outage_keeps_the_snapshot_and_is_retried_with_growing_pauses(autojump_clock: MockClock) -> None:
    registry, store = FailingRegistry(), SnapshotStore(EMPTY_STATE)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_snapshot_watcher, registry, store, at_once(same))
        before = store.current
        registry.errors.extend(RegistryError("connection refused") for _ in range(8))
        registry.read_at.clear()
        with structlog.testing.capture_logs() as logs:
            await registry.register_node(registration())
            await trio.sleep(10)
            assert store.current is before
            assert NODE in (await store.wait_change(before)).nodes
        nursery.cancel_scope.cancel()
    pauses = [later - earlier for earlier, later in zip(registry.read_at, registry.read_at[1:], strict=False)]
    assert pauses == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    assert [line["error"] for line in logs] == ["connection refused"] * 8


async def test_a_watch_that_broke_reads_everything_again_whatever_the_version(autojump_clock: MockClock) -> None:
    """The registry may have come back from a backup with a lower version: waiting for a higher one would be wrong."""
    registry, store = FailingRegistry(), SnapshotStore(EMPTY_STATE)
    registry.wait_errors.append(RegistryError("connection lost"))
    async with trio.open_nursery() as nursery:
        with structlog.testing.capture_logs():
            await nursery.start(run_snapshot_watcher, registry, store, at_once(same))
            first = store.current
            with trio.fail_after(1):
                again = await store.wait_change(first)
        assert again.version == first.version
        assert registry.read_at == [0.0, 0.1]
        nursery.cancel_scope.cancel()


async def test_a_registry_that_fails_at_the_start_says_so() -> None:
    registry, store = FailingRegistry(RegistryError("connection refused")), SnapshotStore(EMPTY_STATE)
    with pytest.raises(RegistryError, match="connection refused"):
        await run_snapshot_watcher(registry, store, at_once(same))
