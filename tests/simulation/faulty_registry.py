"""One gateway's way to the registry that all share: it alone can be cut, slow, stopped for a while, or dead.

A statement travels there and back. What breaks on the way there was never executed, what breaks on the way back was,
and nobody told so.
"""

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final, cast

import trio

from gateway.domain.ids import GatewayId
from gateway.domain.model_spec import ModelSpec
from gateway.domain.peers import PeerState
from gateway.domain.plan_write import ControlWrite
from gateway.registry.protocol import Registry, RegistryError, RegistryStatistics
from tests.simulation.fleet_registry import FleetRegistry
from tests.simulation.registry import LATENCIES_SECONDS
from tests.simulation.world import World

FAILURE_SECONDS: Final = (0.0, 0.2, 2.0)
"""Until a statement that can't get through fails."""
LONG_AGO: Final = float("-inf")


class FaultyRegistry:
    """A `Registry` (see `as_registry`)."""

    def __init__(self, world: World, registry: FleetRegistry, declared: Callable[[], Sequence[ModelSpec]]) -> None:
        """`declared` are the models of every gateway's file."""
        self._world = world
        self._declared = declared
        self._registry = registry
        self.gateway_id = GatewayId("")
        """Whose door it is; set once that is known."""
        self.published: PeerState | None = None
        """What the registry has of this gateway."""
        self.is_dead = False
        self.slow_until = LONG_AGO
        self._cut_until = LONG_AGO
        self._stopped_until = LONG_AGO
        self._continued = trio.Event()
        """Set when it is continued earlier than it was to be."""
        self._broken = trio.Event()
        """Set when a connection that waits for news breaks."""
        self._traps: dict[str, Callable[[], None]] = {}

    def as_registry(self) -> Registry:
        return cast("Registry", self)

    @property
    def is_stopped(self) -> bool:
        return trio.current_time() < self._stopped_until

    @property
    def is_cut(self) -> bool:
        now = trio.current_time()
        return now < self._cut_until or now < self._registry.away_until

    @property
    def disturbed_until(self) -> float:
        """From then on statements are executed at once."""
        return max(self._cut_until, self._stopped_until, self.slow_until, self._registry.disturbed_until)

    def cut(self, seconds: float) -> None:
        self._cut_until = max(self._cut_until, trio.current_time() + seconds)
        self.note_break()

    def stop(self, seconds: float) -> None:
        """As SIGSTOP and SIGCONT: nothing gets out or in, and nothing is lost."""
        self._stopped_until = max(self._stopped_until, trio.current_time() + seconds)

    def trap(self, method: str, fault: Callable[[], None]) -> None:
        """`fault` happens as soon as the gateway calls `method`, before that is executed."""
        self._traps[method] = fault

    def clear(self) -> None:
        """The faults end."""
        self._traps.clear()
        now = trio.current_time()
        self._cut_until, self._stopped_until, self.slow_until = (
            min(until, now) for until in (self._cut_until, self._stopped_until, self.slow_until)
        )
        self._continued.set()
        self._continued = trio.Event()

    def die(self) -> None:
        """Nothing of it reaches the registry any more."""
        self.is_dead = True

    def note_break(self) -> None:
        """Connections that wait for news break."""
        self._broken.set()
        self._broken = trio.Event()

    async def wait_continued(self) -> None:
        """Returns at once unless it is stopped; never if it is dead."""
        while self.is_stopped:
            with trio.move_on_at(self._stopped_until):
                await self._continued.wait()
        if self.is_dead:
            await trio.sleep_forever()

    def statistics(self) -> RegistryStatistics:
        return self._registry.statistics()

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        """Every statement that is not written down here."""
        return partial(self._execute, method, getattr(self._registry, method))

    async def declare_models(self, _specs: Sequence[ModelSpec]) -> None:
        async def statement() -> None:
            await self._registry.declare_models(self._declared())

        await self._execute("declare_models", statement)

    async def apply(self, epoch: int, write: ControlWrite) -> bool:
        changed: bool = await self._execute("apply", self._registry.apply_from, self.gateway_id, epoch, write)
        return changed

    async def sync_peers(self, peer_state: PeerState, ttl_seconds: float) -> Any:
        async def statement() -> Any:
            peer_states = await self._registry.sync_peers(peer_state, ttl_seconds)
            self.published = peer_state
            return peer_states

        return await self._execute("sync_peers", statement)

    async def wait_newer(self, version: int) -> None:
        """Raises `RegistryError` when the connection breaks."""
        await self._travel()
        broken = self._broken
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cancel_after, broken.wait, nursery.cancel_scope)
            await self._registry.wait_newer(version)
            nursery.cancel_scope.cancel()
        await self._travel()
        if broken.is_set():
            raise RegistryError("the connection was closed")

    async def _execute(self, method: str, statement: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
        if (fault := self._traps.pop(method, None)) is not None:
            fault()
        await self._travel()
        result = await statement(*args, **named)
        await self._travel()
        return result

    async def _travel(self) -> None:
        """There, or back. Raises `RegistryError`."""
        await self.wait_continued()
        if trio.current_time() < self.slow_until:
            await trio.sleep(self._world.random.choice(LATENCIES_SECONDS))
            await self.wait_continued()
        if self.is_cut:
            await trio.sleep(self._world.random.choice(FAILURE_SECONDS))
            await self.wait_continued()
            raise RegistryError("the registry can't be reached")


async def _cancel_after(wait: Callable[[], Awaitable[None]], scope: trio.CancelScope) -> None:
    await wait()
    scope.cancel()
