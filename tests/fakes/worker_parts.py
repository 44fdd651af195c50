"""Fakes behind the worker's two seams: processes that are no processes, and backends that answer as told."""

import itertools
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import trio
from trio.testing import MemoryReceiveStream

from gateway.backends.metadata import TOKEN_VARIABLE
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.protocol import BackendNotReady
from gateway.domain.ids import Address

NO_SUCH_PID = 2**22 + 1
"""Above the largest process number of Linux."""


@dataclass
class FakeProcess:
    """Ends when it is told to (`end`), killed, or asked politely unless it `ignores_term`."""

    pid: int
    command: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path | None
    ignores_term: bool = False
    output: trio.abc.ReceiveStream = field(default_factory=MemoryReceiveStream)
    signals: list[tuple[float, str]] = field(default_factory=list)
    """When (Trio's clock) which signal came."""
    code: int | None = None
    _ended: trio.Event = field(default_factory=trio.Event)

    async def wait(self) -> int:
        await self._ended.wait()
        assert self.code is not None
        return self.code

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)
        if not self.ignores_term:
            self.end(-signal.SIGTERM)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.end(-signal.SIGKILL)

    def write(self, text: str) -> None:
        assert isinstance(self.output, MemoryReceiveStream)
        self.output.put_data(text.encode())

    def end(self, code: int) -> None:
        if self.code is None:
            assert isinstance(self.output, MemoryReceiveStream)
            self.output.put_eof()
            self.code = code
            self._ended.set()

    def _signal(self, number: signal.Signals) -> None:
        if self.code is None:
            self.signals.append((trio.current_time(), number.name))


class FakeSpawn:
    """Remembers what it has started, in order."""

    def __init__(self, *, ignores_term: bool = False, error: OSError | None = None) -> None:
        self.started: list[FakeProcess] = []
        self._ignores_term = ignores_term
        self._error = error
        self._pids = itertools.count(NO_SUCH_PID)

    def __call__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> FakeProcess:
        if self._error is not None:
            raise self._error
        process = FakeProcess(next(self._pids), tuple(command), env, cwd, self._ignores_term)
        self.started.append(process)
        return process

    def at(self, address: Address) -> FakeProcess:
        return next(process for process in self.started if process.command[-1] == address)


async def succeed(address: Address) -> None:
    await trio.lowlevel.checkpoint()


@dataclass
class FakeControl:
    """Health and LoadModel do what `healthy` and `load` do; both may wait, raise, or reach for a process. Free does
    what `unload` does, which may wait."""

    spawn: FakeSpawn
    healthy: Callable[[Address], Awaitable[None]] = succeed
    load: Callable[[Address], Awaitable[None]] = succeed
    unload: Callable[[Address], Awaitable[None]] = succeed
    metadata: pb.ModelMetadataResponse | None = None
    """What the backend says of its model; None: it can't."""
    loads: list[pb.ModelOptions] = field(default_factory=list)
    freed: list[tuple[float, Address]] = field(default_factory=list)
    """When (Trio's clock) who was asked to let its model go."""

    async def health(self, address: Address, token: str, timeout_seconds: float) -> None:
        self._check_token(address, token)
        if self.spawn.at(address).code is not None:
            raise BackendNotReady("connection refused")
        await self.healthy(address)

    async def load_model(self, address: Address, token: str, options: pb.ModelOptions, timeout_seconds: float) -> None:
        self._check_token(address, token)
        self.loads.append(options)
        await self.load(address)

    async def model_metadata(
        self, address: Address, token: str, options: pb.ModelOptions, timeout_seconds: float
    ) -> pb.ModelMetadataResponse | None:
        self._check_token(address, token)
        return self.metadata

    async def free(self, address: Address, token: str, timeout_seconds: float) -> None:
        self._check_token(address, token)
        self.freed.append((trio.current_time(), address))
        with trio.move_on_after(timeout_seconds):
            await self.unload(address)

    def _check_token(self, address: Address, token: str) -> None:
        assert self.spawn.at(address).env[TOKEN_VARIABLE] == token
