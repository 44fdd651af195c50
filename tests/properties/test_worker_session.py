"""Random orders, deaths and broken sessions against a worker: it ends up with what the last set wants, whatever was
lost on the way, and what its gateways hear of a replica never goes back."""

import math
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from gateway.domain.ids import Address, ReplicaId
from gateway.domain.lifecycle import FINAL, Desired, Observed, may_follow
from gateway.domain.resources import UNKNOWN
from gateway.domain.session import DesiredReplica, DesiredSet, FromWorker, Report, ToWorker
from gateway.worker.agent import Agent, run_agent
from gateway.worker.session import WorkerSession
from tests.amounts import seeds_to_run
from tests.fakes.worker_harness import HEARTBEAT_SECONDS, desired_replica, nothing_known, settings_in
from tests.fakes.worker_parts import FakeControl, FakeProcess, FakeSpawn

SEEDS: Final = seeds_to_run(40, quick=16)
STEPS: Final = 60
IDS: Final = 6
"""Replica ids that a set draws from; used up ids are replaced, as the planner does."""
MOMENTS: Final = (0.0, 0.01, 0.3, 2.0, 40.0)
"""How long to wait between two steps, in seconds: within a start, within a load, beyond a drain."""
LONG_SECONDS: Final = 3600.0


class World:
    """One worker, and the gateway it is connected with at the moment, if any."""

    def __init__(self, rng: random.Random, agent: Agent, spawn: FakeSpawn, nursery: trio.Nursery) -> None:
        self._rng = rng
        self._agent = agent
        self._spawn = spawn
        self._nursery = nursery
        self._epoch = 1
        self._made = 0
        self._ids = [self._new_id() for _ in range(IDS)]
        self._settled: dict[str, Desired] = {}
        """What was wanted of each id: as in the planner's rows, it only ever goes on to drain and to stop."""
        self._sent: list[DesiredSet] = []
        self._to_worker: trio.MemorySendChannel[ToWorker] | None = None
        self._from_worker: trio.MemoryReceiveChannel[FromWorker] | None = None
        self.observed_states: dict[ReplicaId, Observed] = {}

    def _new_id(self) -> str:
        self._made += 1
        return f"r{self._made}"

    def step(self) -> None:
        steps: list[tuple[int, Callable[[], None]]] = [
            (8, self.send),
            (3, self.send_late),
            (2, self.lose),
            (3, self.kill),
            (2, self.break_session),
            (4, self.connect),
        ]
        weights, actions = zip(*steps, strict=True)
        self._rng.choices(actions, weights)[0]()
        self.listen()

    def send(self) -> None:
        """A new set, maybe twice, maybe of a new leader."""
        self._epoch += self._rng.random() < 0.2
        wanted = DesiredSet(self._epoch, self._desired())
        self._sent.append(wanted)
        for _ in range(self._rng.choice((1, 1, 2))):
            self._put(wanted)

    def send_late(self) -> None:
        """An old set again: one of an older leader, or one that others have overtaken."""
        if self._sent:
            self._put(self._rng.choice(self._sent))

    def lose(self) -> None:
        """A set that never arrives."""
        self._sent.append(DesiredSet(self._epoch, self._desired()))

    def kill(self) -> None:
        living = [process for process in self._spawn.started if process.code is None]
        if living:
            self._rng.choice(living).end(self._rng.choice((-9, 1, 0)))

    def break_session(self) -> None:
        self.listen()
        if self._to_worker is not None and self._from_worker is not None:
            self._to_worker.close()
            self._from_worker.close()  # whatever was still under way is lost
            self._to_worker = self._from_worker = None

    def connect(self) -> None:
        """With the same gateway or another one: both read the same registry."""
        if self._to_worker is not None:
            return
        self._to_worker, from_gateway = trio.open_memory_channel[ToWorker](math.inf)
        to_gateway, self._from_worker = trio.open_memory_channel[FromWorker](math.inf)
        for report in self._agent.all_reports():
            self._hear(report)
        session = WorkerSession(self._agent, to_gateway, from_gateway, HEARTBEAT_SECONDS, nothing_known, UNKNOWN)
        self._nursery.start_soon(session.run)

    def listen(self) -> None:
        if self._from_worker is None:
            return
        while True:
            try:
                message = self._from_worker.receive_nowait()
            except (trio.WouldBlock, trio.EndOfChannel):
                return
            if isinstance(message, Report):
                self._hear(message)

    def _hear(self, report: Report) -> None:
        before = self.observed_states.get(report.replica_id, Observed.PLACED)
        assert may_follow(before, report.observed), f"{report.replica_id}: {before} -> {report.observed}"
        self.observed_states[report.replica_id] = report.observed

    def _desired(self) -> tuple[DesiredReplica, ...]:
        """Some of the ids in any order, some of them twice; ended ones give way to new ones."""
        for place, name in enumerate(self._ids):
            if self.observed_states.get(ReplicaId(name)) in FINAL and self._rng.random() < 0.7:
                self._ids[place] = self._new_id()
        listed = [name for name in self._ids if self._rng.random() < 0.8]
        desired_replicas = [desired_replica(name, self._further(name)) for name in listed]
        desired_replicas += self._rng.sample(
            desired_replicas, k=min(len(desired_replicas), self._rng.choice((0, 0, 2)))
        )
        self._rng.shuffle(desired_replicas)
        return tuple(desired_replicas)

    def _further(self, name: str) -> Desired:
        order = list(Desired)
        before = order.index(self._settled.get(name, Desired.RUN))
        after = min(before + self._rng.choice((0, 0, 0, 0, 1, 2)), len(order) - 1)
        self._settled[name] = order[after]
        return order[after]

    def _put(self, wanted: DesiredSet) -> None:
        if self._to_worker is not None:
            self._to_worker.send_nowait(wanted)

    def settle(self) -> set[str]:
        """One last set, over a session that holds: new ids, some that run, and, as a planner would, the end of all that
        it has not heard the end of. Returns the ids that are to run."""
        self.connect()
        ready = [each.replica_id for each in self._agent.statistics().replicas if each.observed is Observed.READY]
        kept = [name for name in ready if self._settled[name] is Desired.RUN and self._rng.random() < 0.5]
        wanted = {self._new_id(), self._new_id(), *kept}
        unheard = {each for each, observed in self.observed_states.items() if observed not in FINAL} - wanted
        self._epoch += 1
        desired_replicas = (*map(desired_replica, wanted), *(desired_replica(each, Desired.STOP) for each in unheard))
        self._put(DesiredSet(self._epoch, desired_replicas))
        return wanted


async def live(seed: int) -> None:
    rng = random.Random(seed)

    async def pause(address: Address) -> None:
        await trio.sleep(rng.choice((0.0, 0.2, 1.0)))

    spawn = FakeSpawn(ignores_term=rng.random() < 0.3)
    control = FakeControl(spawn, healthy=pause, load=pause, unload=pause)
    with tempfile.TemporaryDirectory() as folder:
        run = partial(run_agent, settings_in(Path(folder)), spawn=spawn, control=control)
        async with trio.open_nursery() as nursery:
            agent = await nursery.start(run)
            world = World(rng, agent, spawn, nursery)
            for _ in range(STEPS):
                world.step()
                await trio.sleep(rng.choice(MOMENTS))
                world.listen()
                check(spawn, agent)
            await trio.sleep(LONG_SECONDS)
            world.listen()
            wanted = world.settle()
            await trio.sleep(LONG_SECONDS)
            world.listen()
            check(spawn, agent)
            alive = [process for process in spawn.started if process.code is None]
            assert sorted(map(replica_of, alive)) == sorted(wanted)
            assert {each for each, observed in world.observed_states.items() if observed is Observed.READY} == wanted
            assert {each for each, observed in world.observed_states.items() if observed not in FINAL} == wanted
            nursery.cancel_scope.cancel()
    assert not [process for process in spawn.started if process.code is None]


def check(spawn: FakeSpawn, agent: Agent) -> None:
    """What holds at any moment."""
    starts = Counter(map(replica_of, spawn.started))
    assert not [name for name, times in starts.items() if times > 1], "a replica was started twice"
    known = {each.pid for each in agent.statistics().replicas}
    assert {process.pid for process in spawn.started if process.code is None} <= known, "an orphan"


def replica_of(process: FakeProcess) -> str:
    return process.env["LOCALAI_GRPC_AUTH_TOKEN"].removeprefix("token-of-")


@pytest.mark.parametrize("seed", SEEDS)
def test_w12_h10_a_worker_ends_up_with_what_the_last_set_wants(seed: int) -> None:
    with capture_logs():
        trio.run(live, seed, clock=MockClock(autojump_threshold=0))
