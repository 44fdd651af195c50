"""A machine of a fleet: its worker has a session with one gateway after the other."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from gateway.bridge import Bridge
from gateway.worker.agent import Agent
from gateway.worker.membership import Membership, join_backoff
from tests.fakes.worker_harness import HEARTBEAT_SECONDS, nothing_known
from tests.simulation.joiner import Host, SimJoiner
from tests.simulation.machine import Machine, SimProcess


class OrderedProcess(SimProcess):
    """`on_order` is called when its worker is about to end it at once, and not a fault."""

    on_order: Callable[["OrderedProcess"], None]

    def terminate(self) -> None:
        if not self.backend.refuses:
            self._tell()
        super().terminate()

    def kill(self) -> None:
        self._tell()
        super().kill()

    def _tell(self) -> None:
        if self.code is None:
            self.on_order(self)


@dataclass
class SimWorker(Machine):
    on_order: Callable[["SimWorker", OrderedProcess], None] = field(default=lambda _sim_worker, _process: None)
    leaving_at: float | None = None
    """Since when its worker leaves."""
    in_touch_at: float = float("-inf")
    """When all was last well between it and the registry."""
    joiner: SimJoiner | None = None
    """Of the present boot."""

    async def run_sim_worker(self, bridge: Bridge, gateways: Callable[[], Iterator[Host | None]]) -> None:
        """`gateways` gives those of the join list, again and again; None is one that does not answer."""
        await self._run_boots(partial(self._boot_sim_worker, bridge, gateways))

    async def _boot_sim_worker(
        self, bridge: Bridge, gateways: Callable[[], Iterator[Host | None]], nursery: trio.Nursery
    ) -> Agent:
        agent = await self._start_agent(nursery, bridge)
        self.leaving_at, self.joiner = None, SimJoiner(self, agent)
        membership = Membership(
            gateways=gateways(),
            attend=self.joiner.attend,
            agent=agent,
            heartbeat_seconds=HEARTBEAT_SECONDS,
            read_capacity=nothing_known,
            backoff=join_backoff(self.world.random),
        )
        nursery.start_soon(membership.run)
        nursery.start_soon(self._end_when_left_fleet, agent, membership)
        return agent

    async def _end_when_left_fleet(self, agent: Agent, membership: Membership[Host | None]) -> None:
        await agent.leaving.wait()
        self.leaving_at = trio.current_time()
        await agent.wait_empty()
        await membership.say_goodbye()
        self.crash.set()

    def note_touch(self) -> None:
        """To be called at each rest."""
        link = self.joiner.link if self.joiner is not None else None
        if link is not None and link.gateway.is_well:
            self.in_touch_at = max(self.in_touch_at, link.reported_at)

    def cut_session(self) -> None:
        if self.joiner is not None and self.joiner.link is not None:
            self.world.note(f"{self.name}'s session breaks")
            self.joiner.link.cut()

    def _make_process(self, pid: int, command: tuple[str, ...], env: Mapping[str, str], cwd: Path | None) -> SimProcess:
        process = OrderedProcess(pid, command, env, cwd)
        process.on_order = partial(self.on_order, self)
        return process
