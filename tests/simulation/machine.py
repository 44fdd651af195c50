"""A machine with the real worker agent on it, whose processes are simulated and whose session may lag."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.backends.metadata import TOKEN_VARIABLE
from gateway.bridge import Bridge
from gateway.composition.parts import Gateway
from gateway.config.units import PortRange
from gateway.domain.ids import Address, BootId, NodeId, new_id
from gateway.domain.resources import UNKNOWN
from gateway.domain.session import FromWorker, Hello, Registration, ToWorker
from gateway.worker.agent import Agent, run_agent
from gateway.worker.process.command import BackendProgram
from gateway.worker.session import WorkerSession
from gateway.worker.settings import WorkerSettings
from tests.fakes.worker_harness import HEARTBEAT_SECONDS, LEAVE_SECONDS, no_usage, nothing_known
from tests.fakes.worker_parts import FakeProcess, FakeSpawn
from tests.simulation.backend import Load, SimBackend
from tests.simulation.call_ledger import CallLedger
from tests.simulation.network import Network
from tests.simulation.world import World

T = TypeVar("T")

OURS: Final = "ours"
FOREIGN: Final = "foreign"
PROGRAMS: Final[Mapping[str, BackendProgram]] = {
    OURS: BackendProgram((OURS,), drains_on_term=True),
    FOREIGN: BackendProgram((FOREIGN,)),
}
PORTS: Final = PortRange(22500, 22999)
MESSAGES_MAX: Final = 64
DRAIN_TIMEOUT_SECONDS: Final = 20.0


class SimProcess(FakeProcess):
    """A process whose body is a `SimBackend`."""

    backend: SimBackend

    def terminate(self) -> None:
        """Ours finish what they have begun, foreign ones drop it."""
        if not self.backend.refuses:
            super().terminate()
            return
        self.backend.drains = True
        self.backend.on_idle = self._end_when_idle
        self._end_when_idle()

    def end(self, code: int) -> None:
        if self.code is None:
            self.backend.lose_calls()
            self.backend._network.close(self.backend.address)
        super().end(code)

    def _end_when_idle(self) -> None:
        if not self.backend.calls:
            self.end(0)


@dataclass
class Machine:
    world: World
    network: Network
    call_ledger: CallLedger
    name: str
    host: str
    """Its address; the ports of two machines, and of two runs at a time, never meet."""
    folder: Path
    replicas_max: int = 1
    """Of one model."""
    callers: int = 1
    """How many gateways there are."""
    lag_seconds: float = 0.0
    """How late its reports and orders arrive."""
    load_failures: int = 0
    """So many of the next loads fail."""
    processes: list[SimProcess] = field(default_factory=list)
    crash: trio.Event = field(default_factory=trio.Event)
    down_until: float = float("-inf")
    """It has no power before this time."""
    agent: Agent | None = None

    def __post_init__(self) -> None:
        self._spawn = FakeSpawn()

    def living(self) -> list[SimProcess]:
        self.processes = [process for process in self.processes if process.code is None]
        return self.processes

    async def run(self, gateway: Gateway) -> None:
        await self._run_boots(partial(self._boot, gateway))

    async def _run_boots(self, boot: Callable[[trio.Nursery], Awaitable[Agent]]) -> None:
        """Boots again and again; each boot ends with a crash, or once the worker has left."""
        while True:
            self.crash = trio.Event()
            async with trio.open_nursery() as nursery:
                self.agent = await boot(nursery)
                await self.crash.wait()
                self.world.note(f"{self.name} crashes")
                for process in self.living():
                    process.end(-9)
                nursery.cancel_scope.cancel()
            await trio.sleep(self.world.random.uniform(0, 5))
            await trio.sleep_until(self.down_until)

    def leave(self) -> None:
        """The worker drains; when it has, it ends. The crash that follows finds nothing any more."""
        if self.agent is not None and not self.agent.leaving.is_set():
            self.agent.leave()

    async def _end_when_left(self, agent: Agent, session: WorkerSession) -> None:
        await agent.leaving.wait()
        await agent.wait_empty()
        with trio.move_on_after(LEAVE_SECONDS):
            await session.finish()
        self.crash.set()

    async def _boot(self, gateway: Gateway, nursery: trio.Nursery) -> Agent:
        """The agent and its session, joined by channels with a delay in between."""
        orders_out, orders_late = trio.open_memory_channel[ToWorker](1)
        orders_in, orders = trio.open_memory_channel[ToWorker](1)
        reports_out, reports_late = trio.open_memory_channel[FromWorker](MESSAGES_MAX)
        reports_in, reports = trio.open_memory_channel[FromWorker](MESSAGES_MAX)
        agent = await self._start_agent(nursery, gateway.shared.bridge)
        nursery.start_soon(self._delay, orders_late, orders_in)
        nursery.start_soon(self._delay, reports_late, reports_in)
        session = WorkerSession(agent, reports_out, orders, HEARTBEAT_SECONDS, nothing_known, UNKNOWN)
        nursery.start_soon(session.run)
        node_id, boot_id = NodeId(self.name), BootId(new_id())
        await gateway.shared.registry.register_node(Registration(self.name, boot_id, node_id))
        hello = Hello(node_id, self.name, boot_id, max_replicas_per_model=self.replicas_max)
        await nursery.start(partial(gateway.control.sessions.run_session, hello, orders_out, reports))
        nursery.start_soon(self._end_when_left, agent, session)
        return agent

    async def _start_agent(self, nursery: trio.Nursery, bridge: Bridge) -> Agent:
        control = GrpcBackendControl(bridge, self.network.dial_locally)
        run = partial(run_agent, self._settings(), spawn=self._start, control=control, measure_usage=no_usage)
        agent: Agent = await nursery.start(run)
        return agent

    async def _delay(self, late: trio.MemoryReceiveChannel[T], onward: trio.MemorySendChannel[T]) -> None:
        async for item in late:
            await trio.sleep(self.lag_seconds)
            await onward.send(item)

    def _settings(self) -> WorkerSettings:
        return WorkerSettings(
            state_folder=self.folder / self.name,
            models_dir=self.folder,
            port_range=PORTS,
            bind_host=self.host,
            advertise_host=self.host,
            drain_timeout_seconds=DRAIN_TIMEOUT_SECONDS,
            backends=PROGRAMS,
            port_lock_folder=self.folder,
        )

    def _start(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> SimProcess:
        program, _, address = command
        fake = self._spawn(command, env=env, cwd=cwd)
        process = self._make_process(fake.pid, fake.command, env, cwd)
        process.backend = SimBackend(
            self.world,
            self.network,
            self.call_ledger,
            Address(address),
            env[TOKEN_VARIABLE],
            refuses=program == OURS,
            load=self._next_load,
            callers=self.callers,
        )
        process.backend.end = process.end
        self.living().append(process)
        self.world.note(f"{self.name} starts {process.backend.token[:6]} at {address}")
        return process

    def _make_process(self, pid: int, command: tuple[str, ...], env: Mapping[str, str], cwd: Path | None) -> SimProcess:
        return SimProcess(pid, command, env, cwd)

    def _next_load(self, model: str) -> Load:
        seconds = self.world.random.choice([0.3, 1.0, 4.0])
        if self.load_failures:
            self.load_failures -= 1
            return Load(seconds, f"{model} does not fit")
        return Load(seconds)
