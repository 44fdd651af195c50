"""Many requests at once: how they spread over replicas, what a failing one attracts, and that each ends once."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from random import Random

import pytest
import trio
import trio.testing

from gateway.backends.protocol import Lost, Refused, Stale, Target, Unreachable
from gateway.domain.cluster import ProbeOutcome, Replica
from gateway.domain.errors import BackendFailed, BadRequest, GatewayError
from gateway.domain.ids import ReplicaId, RequestId
from gateway.domain.inference import Completion, Delta, EmbeddingInput, Origin
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import FleetView
from gateway.routing.probe_cache import HOLD_PAUSE_SECONDS
from tests.fakes.backends import DONE, Item
from tests.fakes.fleet import MODEL, node, replica, spec, view
from tests.fakes.routing_harness import LIMITS, RoutingHarness, generation

REQUESTS = 2500
"""Of each random run; there are four."""
PATIENT = replace(LIMITS, queue_length_max=1000, queue_timeout_seconds=1000)


def harness_of(*replicas: Replica) -> RoutingHarness:
    return RoutingHarness(*replicas, limits=PATIENT)


async def run_sequential(harness: RoutingHarness, count: int, service_seconds: float) -> Counter[ReplicaId]:
    served = Counter[ReplicaId]()
    for _ in range(count):
        _, served_by = await harness.generate()
        served[served_by] += 1
        await trio.sleep(service_seconds)
    return served


async def run_concurrent(count: int, at_once: int, request: Callable[[], Awaitable[object]]) -> None:
    numbers = iter(range(count))

    async def work() -> None:
        for _ in numbers:
            await request()

    async with trio.open_nursery() as nursery:
        for _ in range(at_once):
            nursery.start_soon(work)


async def test_r1_two_equal_replicas_share_sequential_calls_equally(autojump_clock: trio.testing.MockClock) -> None:
    harness = harness_of(replica("a"), replica("b", slot=1))
    assert await run_sequential(harness, 100, 0.01) == {"a": 50, "b": 50}


async def test_r2_unequal_replicas_are_all_used(autojump_clock: trio.testing.MockClock) -> None:
    harness = harness_of()
    harness.view = view(
        *(replica(name, node_id=name, parallel=slots) for name, slots in (("a", 8), ("b", 4), ("c", 1))),
        nodes=[node("a", free_vram_bytes=80 << 30), node("b", free_vram_bytes=24 << 30), node("c")],
    )
    assert await run_sequential(harness, 99, 0.01) == {"a": 33, "b": 33, "c": 33}


async def test_r3_a_burst_is_spread_evenly() -> None:
    harness = harness_of(*(replica(name, slot=slot, parallel=16) for slot, name in enumerate("abcd")))
    for name in "abcd":
        harness.backends.script(ReplicaId(name), trio.Event())
    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(harness.generate)
        await trio.testing.wait_all_tasks_blocked()
        assert Counter(harness.backends.running) == {"a": 16, "b": 16, "c": 16, "d": 16}
        nursery.cancel_scope.cancel()
    assert harness.in_flight() == 0


def failing_beside_healthy(slots: int = 32) -> RoutingHarness:
    """`bad` fails in no time, `good` takes a tenth of a second."""
    harness = harness_of(replica("bad", parallel=slots), replica("good", slot=1, parallel=slots))
    harness.backends.script(ReplicaId("bad"), BackendFailed("broke"))
    answer_after(harness, ReplicaId("good"), 0.1)
    return harness


def answer_after(harness: RoutingHarness, replica_id: ReplicaId, seconds: float) -> None:
    nursery = trio.lowlevel.current_task().parent_nursery
    assert nursery is not None

    def on_call(target: Target) -> None:
        if target.replica_id == replica_id:
            harness.backends.script(replica_id, event_after(nursery, seconds), DONE)

    harness.backends.on_call = on_call


def event_after(nursery: trio.Nursery, seconds: float) -> trio.Event:
    event = trio.Event()

    async def set_it() -> None:
        await trio.sleep(seconds)
        event.set()

    nursery.start_soon(set_it)
    return event


@pytest.mark.parametrize(("at_once", "slots"), [(1, 32), (32, 32), (32, 16), (32, 4)])
async def test_r8_a_replica_that_fails_at_once_attracts_nothing(
    autojump_clock: trio.testing.MockClock, at_once: int, slots: int
) -> None:
    """Also while the healthy one is full: requests rather wait for it."""
    harness, failed = failing_beside_healthy(slots), 0

    async def request() -> None:
        nonlocal failed
        try:
            await harness.generate()
        except BackendFailed:
            failed += 1

    await run_concurrent(1000, at_once, request)
    assert 0 < failed < 50
    assert harness.backends.calls.count(ReplicaId("bad")) == failed


async def test_a_replica_that_has_recovered_is_found_out_by_itself(autojump_clock: trio.testing.MockClock) -> None:
    harness = failing_beside_healthy()
    harness.backends.script(ReplicaId("bad"), Unreachable("refused"))
    await run_concurrent(100, 8, harness.generate)
    harness.backends.script(ReplicaId("bad"), DONE)
    await trio.sleep(60)  # no phantom is older
    served = await run_sequential(harness, 20, 0.1)
    assert served == {"bad": 10, "good": 10}


class Chaos:
    """Random answers, probes, departures and fleets, all from one seed."""

    CLIENTS = 48
    FAULTS: tuple[Item, ...] = (
        Refused(draining=False),
        Refused(draining=True),
        Stale("not loaded"),
        Unreachable("refused"),
        Lost("reset"),
        BackendFailed("broke"),
        BadRequest("too long"),
    )

    def __init__(self, nursery: trio.Nursery, seed: int, model: ModelSpec) -> None:
        self.rng = Random(seed)
        self.nursery = nursery
        self.model = model
        self.slots = {ReplicaId(str(number)): number + 1 for number in range(5)}
        self.harness = RoutingHarness(limits=replace(LIMITS, queue_timeout_seconds=2, queue_length_max=20))
        self.harness.show(self.fleet())
        self.harness.backends.on_call = self.prepare_call
        self.harness.probe.wait = self.wait_for_probe
        self.endings = Counter[str]()

    def fleet(self) -> FleetView:
        """Every now and then without some replicas, never without all."""
        gone = self.rng.sample(sorted(self.slots), self.rng.choice((0, 0, 1, 4)))
        replicas = [
            replica(name, self.model, slot=number, parallel=slots)
            for number, (name, slots) in enumerate(self.slots.items())
            if name not in gone
        ]
        return view(*replicas, specs=[self.model])

    async def run_fleet_changes(self) -> None:
        while True:
            await trio.sleep(self.rng.uniform(0, 2))
            self.harness.show(self.fleet())

    def prepare_call(self, target: Target) -> None:
        backends = self.harness.backends
        assert backends.running.count(target.replica_id) < self.slots[target.replica_id]
        assert len(backends.running) < self.harness.in_flight()  # each running call has a lease, and so has this one
        items: list[Item] = [Delta("x")] * self.rng.randrange(3)
        items.append(self.pause())
        items.append(self.rng.choice(self.FAULTS) if self.rng.random() < 0.3 else DONE)
        backends.script(target.replica_id, *items)

    def pause(self) -> trio.Event:
        hangs = self.rng.random() < 0.01
        return trio.Event() if hangs else event_after(self.nursery, self.rng.expovariate(10))

    async def wait_for_probe(self) -> None:
        await trio.sleep(self.rng.uniform(0, 0.5))
        odd = self.rng.choice(list(ProbeOutcome))
        for name in self.slots:
            self.harness.probe.outcomes[name] = odd if self.rng.random() < 0.2 else ProbeOutcome.ALIVE

    async def request(self, number: int) -> None:
        origin = Origin(RequestId(f"request {number}"), self.rng.choice("xyz"))
        call = self.rng.choice((self.unary, self.stream, self.embedding))
        tolerance = self.rng.choice((0.05, 1, 10))
        with trio.move_on_after(tolerance) as scope:
            try:
                await call(origin)
                self.endings["served"] += 1
            except GatewayError as error:
                self.endings[type(error).__name__] += 1
        self.endings["left"] += scope.cancelled_caught

    async def unary(self, origin: Origin) -> None:
        await self.harness.router.generate(generation(), origin)

    async def embedding(self, origin: Origin) -> None:
        await self.harness.router.embed(EmbeddingInput(MODEL, "text"), origin)

    async def stream(self, origin: Origin) -> None:
        async with self.harness.router.open_stream(generation(), origin) as stream:
            while not isinstance((await stream.receive_batch())[-1], Completion):
                if self.rng.random() < 0.05:
                    return  # as when a stop word was found


@pytest.mark.parametrize("backend", ["llama-cpp", "whisper"], ids=["own", "foreign"])
@pytest.mark.parametrize("seed", range(2))
async def test_r4_under_random_faults_each_call_ends_once_and_leaves_nothing(
    autojump_clock: trio.testing.MockClock, seed: int, backend: str
) -> None:
    async with trio.open_nursery() as nursery:
        chaos = Chaos(nursery, seed, spec(backend=backend))
        nursery.start_soon(chaos.run_fleet_changes)
        numbers = iter(range(REQUESTS))

        async def client() -> None:
            for number in numbers:
                await trio.sleep(chaos.rng.expovariate(3))
                await chaos.request(number)

        async with trio.open_nursery() as clients:
            for _ in range(chaos.CLIENTS):
                clients.start_soon(client)
        await check_nothing_is_left(chaos)
        nursery.cancel_scope.cancel()


async def check_nothing_is_left(chaos: Chaos) -> None:
    harness = chaos.harness
    assert chaos.endings.total() == REQUESTS
    assert min(chaos.endings[word] for word in ("served", "left", "BackendFailed", "BadRequest", "Overloaded")) > 10
    assert harness.waiting() == 0
    assert harness.backends.running == []
    decisions = harness.admission.decisions
    kept = [decisions.find(RequestId(f"request {number}")) for number in range(REQUESTS - 1000, REQUESTS)]
    attempts = [attempt for decision in kept if decision is not None for attempt in decision.attempts]
    assert attempts
    assert all(attempt.outcome != "running" and attempt.ended_at is not None for attempt in attempts)
    harness.probe.wait = lambda: calm(harness)
    await trio.sleep(2 * HOLD_PAUSE_SECONDS)
    assert harness.in_flight() == 0


async def calm(harness: RoutingHarness) -> None:
    """From now on every replica answers."""
    harness.probe.outcomes.clear()
    await trio.lowlevel.checkpoint()


async def test_who_waits_for_a_full_replica_is_served_as_soon_as_a_doubtful_one_has_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    harness = RoutingHarness(replica("a"), replica("b", slot=1, parallel=1))
    doubtful = next(each for each in harness.view.candidates[MODEL] if each.replica_id == "a")
    for _ in range(5):
        harness.loads.record_failure(ReplicaId("a"), trio.current_time())
    with await harness.lease("first") as held:
        assert held.candidate.replica_id == "b"
        begin = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def wait() -> None:
                with await harness.lease("second") as lease:
                    assert lease.candidate.replica_id == "a"

            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert harness.waiting() == 1
            harness.loads.record_success(doubtful)
        assert trio.current_time() == begin
