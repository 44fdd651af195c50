"""What happens to the installation: the next event is drawn from the run's own randomness."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import count
from typing import Final, Protocol

import trio

from gateway.composition.parts import Gateway
from gateway.domain.ids import ModelName, NodeId, RequestId
from gateway.domain.lifecycle import Desired
from gateway.domain.model_spec import ModelSpec
from gateway.domain.plan_write import ControlWrite
from gateway.registry.protocol import NodeEdit, StaleEpoch
from tests.simulation.backend import POISON, Mood, SimBackend
from tests.simulation.clients import CALLERS, Request
from tests.simulation.installation import MODELS
from tests.simulation.machine import Machine, SimProcess
from tests.simulation.network import Network
from tests.simulation.registry import SimRegistry
from tests.simulation.world import World

EVENT_SECONDS_MEAN: Final = 0.4
FAULT_SECONDS_MEAN: Final = 3.0
FAULT_SECONDS_MAX: Final = 20.0
VANISHED_SECONDS: Final = (40.0, 150.0)
AT_ONCE_PROBABILITY: Final = 0.25
"""That the next event comes in the same moment."""
LEAVE_AT_PICK_PROBABILITY: Final = 0.02
POISON_PROBABILITY: Final = 0.01
LAST_CALLER: Final = "the last"
"""Asks when all is well again, and is patient."""
FOR_EVER: Final = 3600.0
STALL_SECONDS: Final = 40.0
"""Between two reads of a client that has stopped reading, as one of HTTP/2 with a window of 0; its answer is complete
long before."""
UNKNOWN_MODEL: Final = ModelName("nobody's")


class Site(Protocol):
    """What events happen to: one gateway with its machines, or several."""

    @property
    def world(self) -> World: ...

    @property
    def network(self) -> Network: ...

    @property
    def registry(self) -> SimRegistry: ...

    @property
    def machines(self) -> tuple[Machine, ...]: ...

    @property
    def specs(self) -> dict[ModelName, ModelSpec]: ...

    @property
    def gateway(self) -> Gateway:
        """One that lives."""

    @property
    def live(self) -> Mapping[RequestId, Request]:
        """Requests that have not ended."""

    async def send(self, request: Request) -> None: ...

    def watch_picks(self, notify: Callable[[RequestId], None]) -> None:
        """`notify` is called just before a request gets a lease."""

    def processes(self) -> list[SimProcess]: ...

    def backends(self) -> list[SimBackend]: ...

    async def declare(self) -> None: ...


class Events:
    """`happen` makes one event happen. Everything that takes time runs in `nursery`."""

    def __init__(self, installation: Site, nursery: trio.Nursery) -> None:
        self._installation = installation
        self._nursery = nursery
        self._random = installation.world.random
        self._numbers = count(1)
        self.next_at = trio.current_time()
        installation.watch_picks(self.maybe_leave_now)
        self._kinds: dict[Callable[[], None], int] = {
            self.send_request: 50,
            self.send_burst: 3,
            self.leave: 12,
            self.change_mood: 16,
            self.kill_process: 2,
            self.crash_machine: 1,
            self.vanish_machine: 1,
            self.cut_machine: 2,
            self.lag_machine: 3,
            self.slow_registry: 2,
            self.fail_loads: 1,
            self.edit_model: 2,
            self.remove_model: 1,
            self.restore_models: 6,
            self.retire_replica: 4,
            self.drain_node: 1,
            self.silence_machine: 1,
            self.leave_machine: 1,
        }

    def happen(self) -> None:
        [event] = self._random.choices(list(self._kinds), list(self._kinds.values()))
        event()
        if self._random.random() >= AT_ONCE_PROBABILITY:
            self.next_at = trio.current_time() + self._random.expovariate(1 / EVENT_SECONDS_MEAN)

    def _fault_seconds(self) -> float:
        return min(self._random.expovariate(1 / FAULT_SECONDS_MEAN), FAULT_SECONDS_MAX)

    def send_request(self, model: ModelName | None = None, caller: str | None = None) -> None:
        names = [*(spec.name for spec in MODELS), UNKNOWN_MODEL]
        is_last = caller == LAST_CALLER
        request = Request(
            RequestId(f"q{next(self._numbers)}"),
            model or self._random.choices(names, [50, 25, 25, 1])[0],
            caller or self._random.choice(CALLERS),
            self._random.choice(["stream", "stream", "unary", "embedding"]),
            tokens=self._random.randint(1, 8),
            timeout_seconds=self._random.choice([FOR_EVER, FOR_EVER, FOR_EVER if is_last else self._patience()]),
            pause_seconds=0.0 if is_last else self._random.choice([0.0, 0.0, 0.5, STALL_SECONDS]),
            prompt=POISON if not is_last and self._random.random() < POISON_PROBABILITY else "hello",
        )
        self._nursery.start_soon(self._installation.send, request)

    def _patience(self) -> float:
        return self._random.expovariate(1 / 2)

    def send_burst(self) -> None:
        """One caller floods one model."""
        model, caller = self._random.choice(MODELS).name, self._random.choice(CALLERS)
        for _ in range(self._random.randint(4, 15)):
            self.send_request(model, caller)

    def leave(self) -> None:
        if live := list(self._installation.live.values()):
            request = self._random.choice(live)
            self._installation.world.note(f"{request} is about to leave")
            request.leave.cancel()

    def maybe_leave_now(self, request_id: RequestId) -> None:
        """In the moment in which it gets what it waited for."""
        request = self._installation.live[request_id]
        if request.caller != LAST_CALLER and self._random.random() < LEAVE_AT_PICK_PROBABILITY:
            self._installation.world.note(f"{request} is about to leave with a lease")
            request.leave.cancel()

    def change_mood(self) -> None:
        if backends := self._installation.backends():
            backend, mood = self._random.choice(backends), self._random.choice(list(Mood))
            seconds = self._fault_seconds()
            self._installation.world.note(f"{backend.token[:6]} is {mood} for {seconds:.3f} s")
            backend.be(mood, seconds)

    def kill_process(self) -> None:
        if processes := self._installation.processes():
            process = self._random.choice(processes)
            self._installation.world.note(f"{process.backend.token[:6]} is killed")
            process.end(-9)

    def crash_machine(self) -> None:
        self._random.choice(self._installation.machines).crash.set()

    def cut_machine(self) -> None:
        machine, seconds = self._random.choice(self._installation.machines), self._fault_seconds()
        self._installation.world.note(f"{machine.name} is cut off for {seconds:.3f} s")
        for backend in self._installation.backends():
            if backend.address.startswith(machine.host):
                backend.disturbed = True
        self._nursery.start_soon(self._installation.network.run_cut, machine.host, seconds)

    def vanish_machine(self) -> None:
        """It loses its power and its place in the network: nobody is told that any connection has ended."""
        machine, seconds = self._random.choice(self._installation.machines), self._random.uniform(*VANISHED_SECONDS)
        self._installation.world.note(f"{machine.name} vanishes for {seconds:.3f} s")
        machine.down_until = trio.current_time() + seconds
        self._installation.network.cut(machine.host, seconds)
        self._nursery.start_soon(self._installation.network.run_cut, machine.host, seconds)
        machine.crash.set()

    def lag_machine(self) -> None:
        machine = self._random.choice(self._installation.machines)
        machine.lag_seconds = self._random.choice([0.0, 0.0, 0.5, 3.0])
        self._installation.world.note(f"{machine.name} lags by {machine.lag_seconds} s")

    def slow_registry(self) -> None:
        self._installation.registry.slow_until = trio.current_time() + self._fault_seconds()
        self._installation.world.note(f"the registry is slow until {self._installation.registry.slow_until:.3f}")

    def fail_loads(self) -> None:
        self._random.choice(self._installation.machines).load_failures += self._random.randint(1, 3)

    def edit_model(self) -> None:
        spec = self._random.choice(MODELS)
        changes: dict[str, object] = self._random.choice(
            [
                {"options": {"edition": str(self._random.randint(1, 3))}},
                {"parallel": self._random.randint(1, 4)},
                {"min_replicas": self._random.randint(0, 3), "max_replicas": 3},
            ]
        )
        self._installation.world.note(f"{spec.name} is edited: {changes}")
        current = self._installation.specs.get(spec.name, spec)
        self._declare(replace(current, **changes))  # type: ignore[arg-type]

    def remove_model(self) -> None:
        spec = self._random.choice(MODELS)
        self._installation.world.note(f"{spec.name} is removed")
        self._installation.specs.pop(spec.name, None)
        self._declare()

    def restore_models(self) -> None:
        """Those that were removed come back; edits stay."""
        self._declare(*(spec for spec in MODELS if spec.name not in self._installation.specs))

    def _declare(self, *changed: ModelSpec) -> None:
        self._installation.specs.update({spec.name: spec for spec in changed})
        self._nursery.start_soon(self._installation.declare)

    def retire_replica(self) -> None:
        if replicas := list(self._installation.gateway.shared.views.current.state.replicas.values()):
            replica, desired = self._random.choice(replicas), self._random.choice([Desired.DRAIN, Desired.STOP])
            self._installation.world.note(f"{replica.id} is to {desired}")
            self._nursery.start_soon(self._desire, ControlWrite(set_desired=((replica.id, desired),)))

    async def _desire(self, write: ControlWrite) -> None:
        try:
            await self._installation.registry.apply(self._installation.gateway.shared.election.epoch or 0, write)
        except StaleEpoch:
            self._installation.world.object_to("the only gateway has lost the leadership")

    def drain_node(self) -> None:
        """An admin drains a machine, and thinks better of it later."""
        machine = self._random.choice(self._installation.machines)
        self._nursery.start_soon(self._drain, machine.name, self._fault_seconds())

    async def _drain(self, name: str, seconds: float) -> None:
        self._installation.world.note(f"{name} is drained for {seconds:.3f} s")
        await self._installation.registry.edit_node(NodeId(name), NodeEdit(draining=True))
        await trio.sleep(seconds)
        await self._installation.registry.edit_node(NodeId(name), NodeEdit(draining=False))
        self._installation.world.note(f"{name} is resumed")

    def silence_machine(self) -> None:
        """Its session is as if half open, for as long as it takes to be unhealthy and more."""
        machine = self._random.choice(self._installation.machines)
        machine.lag_seconds = self._random.choice([20.0, 50.0, 70.0])
        self._installation.world.note(f"{machine.name} falls silent for {machine.lag_seconds} s")

    def leave_machine(self) -> None:
        """Its worker is told to end, and started again."""
        machine = self._random.choice(self._installation.machines)
        self._installation.world.note(f"{machine.name} leaves")
        machine.leave()

    def stop_faults(self) -> None:
        """From now on everything is as it should be; what is under way takes its time."""
        self._installation.world.note("the faults end")
        for machine in self._installation.machines:
            machine.lag_seconds, machine.load_failures = 0.0, 0
        for backend in self._installation.backends():
            backend.be(Mood.WELL, 0)
        self._declare(*MODELS)
