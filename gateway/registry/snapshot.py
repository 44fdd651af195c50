"""This process's view of the fleet: one immutable value that is replaced as a whole and read without any I/O.

The request path reads `SnapshotStore.current` and nothing else, which is why a warm request executes no statement. The
readers decide what the value is: `build` makes it from a `ClusterState`, once per version, in parts.
"""

from collections.abc import Callable, Generator
from typing import Final, Generic, NoReturn, TypeVar

import structlog
import trio

from gateway.domain.cluster import ClusterState
from gateway.domain.pacing import Backoff
from gateway.registry.protocol import RegistryError, StateReader

Value = TypeVar("Value")
log = structlog.get_logger()

RETRY_FIRST_SECONDS: Final = 0.1
RETRY_MAX_SECONDS: Final = 5.0
ANY_VERSION: Final = -1
"""A version older than all others: with it `wait_newer` returns at once, so everything is read again."""


class SnapshotStore(Generic[Value]):
    """The current value, and a way to wait for another one. A waiter may miss values in between, but never the last."""

    def __init__(self, initial: Value) -> None:
        self.current = initial
        self._changed = trio.Event()

    def publish(self, value: Value) -> None:
        """Replaces the current value and wakes all waiters."""
        self.current = value
        self._changed.set()
        self._changed = trio.Event()

    async def wait_change(self, seen: Value) -> Value:
        """Waits until the current value is another object than `seen`, and returns it. Returns at once if it already
        is."""
        await trio.lowlevel.checkpoint()
        while self.current is seen:
            await self._changed.wait()
        return self.current


async def run_snapshot_watcher(
    registry: StateReader,
    store: SnapshotStore[Value],
    build: Callable[[ClusterState], Generator[None, None, Value]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> NoReturn:
    """Keeps `store` up to date. Reports started once the first snapshot is published. `build` returns the value at its
    end, and other tasks run whenever it yields.

    If the registry fails at the start, this raises `RegistryError`. If it fails later, the last snapshot stays and the
    fleet keeps serving. The registry is asked again after a growing pause, and everything is read again.
    """
    state = await registry.read_state()
    store.publish(await _built(build(state)))
    task_status.started()
    seen, backoff = state.version, Backoff(RETRY_FIRST_SECONDS, RETRY_MAX_SECONDS)
    while True:
        try:
            await registry.wait_newer(seen)
            state = await registry.read_state()
        except RegistryError as error:
            pause_seconds = backoff.next_seconds()
            log.warning(
                "registry.snapshot_outdated", error=str(error), version=state.version, retry_seconds=pause_seconds
            )
            await trio.sleep(pause_seconds)
            seen = ANY_VERSION
        else:
            store.publish(await _built(build(state)))
            seen = state.version
            backoff.reset()


async def _built(parts: Generator[None, None, Value]) -> Value:
    while True:
        try:
            next(parts)
        except StopIteration as end:
            value: Value = end.value
            return value
        await trio.lowlevel.checkpoint()
