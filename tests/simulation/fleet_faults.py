"""What happens to a fleet of several gateways: all that happens to one, and what happens to gateways."""

from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from gateway.domain.ids import ModelName
from gateway.domain.lifecycle import Desired
from gateway.domain.model_spec import ModelSpec
from gateway.domain.plan_write import ControlWrite
from tests.simulation.faults import Events
from tests.simulation.fleet import Fleet, Post

CUT_SECONDS: Final = (1.0, 5.0, 20.0, 60.0)
STOP_SECONDS: Final = (1.0, 5.0, 20.0, 40.0)
TRAPS: Final = ("apply", "apply", "apply", "acquire_or_renew", "join_node", "record_reports", "mark_node", "sync_peers")
"""Statements that a fault waits for, so that it hits the worst moment."""


class FleetEvents(Events):
    def __init__(self, fleet: Fleet, nursery: trio.Nursery) -> None:
        super().__init__(fleet, nursery)
        self._fleet = fleet
        self._kinds |= {
            self.kill_gateway: 2,
            self.end_gateway: 2,
            self.cut_gateway: 3,
            self.stop_gateway: 3,
            self.slow_gateway: 2,
            self.trap_gateway: 4,
            self.take_registry_away: 1,
            self.cut_session: 2,
        }

    def happen(self) -> None:
        """While no gateway lives there is nobody whom anything could happen to."""
        if self._fleet.posts:
            super().happen()
        else:
            self.next_at = trio.current_time() + 1.0

    def _gateway(self) -> Post:
        return self._random.choice(list(self._fleet.posts.values()))

    def kill_gateway(self) -> None:
        post = self._gateway()
        self._fleet.world.note(f"{post} is killed")
        post.kill()

    def end_gateway(self) -> None:
        post = self._gateway()
        self._fleet.world.note(f"{post} is told to end")
        post.ends.set()

    def cut_gateway(self) -> None:
        self._cut(self._gateway(), self._random.choice(CUT_SECONDS))

    def _cut(self, post: Post, seconds: float) -> None:
        self._fleet.world.note(f"{post} is cut from the registry for {seconds} s")
        post.faulty_registry.cut(seconds)

    def stop_gateway(self) -> None:
        self._stop(self._gateway(), self._random.choice(STOP_SECONDS))

    def _stop(self, post: Post, seconds: float) -> None:
        self._fleet.world.note(f"{post} is stopped for {seconds} s")
        post.faulty_registry.stop(seconds)

    def slow_gateway(self) -> None:
        post = self._gateway()
        post.faulty_registry.slow_until = trio.current_time() + self._fault_seconds()
        self._fleet.world.note(f"{post} is slow until {post.faulty_registry.slow_until:.3f}")

    def trap_gateway(self) -> None:
        post, method = self._gateway(), self._random.choice(TRAPS)
        faults: list[Callable[[], None]] = [
            partial(self._stop, post, self._random.choice(STOP_SECONDS)),
            partial(self._cut, post, self._random.choice(CUT_SECONDS)),
            post.kill,
        ]
        self._fleet.world.note(f"{post}'s next {method} is waited for")
        post.faulty_registry.trap(method, self._random.choice(faults))

    def take_registry_away(self) -> None:
        seconds = self._random.choice(CUT_SECONDS)
        self._fleet.world.note(f"the registry is away for {seconds} s")
        self._fleet.take_registry_away(seconds)

    def cut_session(self) -> None:
        self._random.choice(self._fleet.machines).cut_session()

    def retire_replica(self) -> None:
        """As if the leader wished it, in its own name: whoever leads is overruled."""
        if replicas := list(self._fleet.registry._tables.replicas.values()):
            replica, desired = self._random.choice(replicas), self._random.choice([Desired.DRAIN, Desired.STOP])
            self._fleet.world.note(f"{replica.id} is to {desired}")
            if desired is Desired.STOP:
                self._fleet.registry.stopped_by_fault.add(replica.id)
            self._nursery.start_soon(self._overrule, ControlWrite(set_desired=((replica.id, desired),)))

    async def _overrule(self, write: ControlWrite) -> None:
        await self._fleet.registry.overrule(write)

    def _declare(self, *changed: ModelSpec) -> None:
        super()._declare(*changed)
        models: set[ModelName] = set(self._fleet.specs)
        for replica in self._fleet.registry._tables.replicas.values():
            if replica.model not in models:
                self._fleet.registry.stopped_by_fault.add(replica.id)

    def stop_faults(self) -> None:
        super().stop_faults()
        self._fleet.registry.away_until = self._fleet.registry.slow_until = min(
            trio.current_time(), self._fleet.registry.away_until
        )
        for post in self._fleet.posts.values():
            post.faulty_registry.clear()
