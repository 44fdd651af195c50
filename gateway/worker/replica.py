"""The life of one replica: its artifact, its port, its process, its model, its end.

Theory of operation. A replica lives as long as its process. One task waits for the exit, and everything else (a failed
load, a timeout, a drain or stop) is a reason to signal the process. So there is one way out, through an exit that was
reaped. Only then is the port free (W10), the record deleted and the final report made (L8). The final report depends on
the cause of the end: a process that the worker has asked to end was stopped, any other one broke (H14). This file is
longer than others, because every phase adds to that final report.
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import Final

import structlog
import trio

from gateway.backends.protocol import BackendControl, BackendNotReady, LoadFailed
from gateway.domain.ids import ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import Capabilities, context_warning
from gateway.domain.session import DesiredReplica, Report
from gateway.worker.artifacts.download import DownloadProgress
from gateway.worker.artifacts.reference import ArtifactError
from gateway.worker.artifacts.store import Artifact, ArtifactStore
from gateway.worker.process.command import (
    BackendProgram,
    UnknownBackend,
    command_line,
    environment,
    program_of,
    working_folder,
)
from gateway.worker.process.environment import withheld
from gateway.worker.process.journal import ProcessJournal
from gateway.worker.process.memory_watch import describe_excess, wait_memory_above
from gateway.worker.process.output import OutputLog
from gateway.worker.process.ports import NoFreePort, PortAllocator, address_of, host_to_reach, is_taken, says_taken
from gateway.worker.process.resource_usage import MeasureUsage, measure_usage
from gateway.worker.process.spawn import BackendProcess, SpawnProcess, describe_exit
from gateway.worker.settings import WorkerSettings
from gateway.worker.startup import BackendClient

log = structlog.get_logger(__name__)

PORT_ATTEMPTS_MAX: Final = 4
"""The largest number of starts of one replica's process, each on another port, if other programs take the port
first."""
CRASH_NOTICE_SECONDS: Final = 0.5
"""How long to wait for an exit after a broken connection. A crash breaks the connection just before, and explains it
better."""
NOTICE_SECONDS: Final = 0.5
"""How long a draining replica still takes requests, because gateways send it some until they know."""
LAST_OUTPUT_SECONDS_MAX: Final = 1.0
"""How long to read output after the exit. A process that left the group may hold the pipe open for ever."""
FREE_SECONDS_MAX: Final = 5.0
"""How long Free may take, before the signal."""
REAP_SECONDS_MAX: Final = 5.0
"""How long to wait at shutdown after SIGKILL. A process that the kernel cannot end must not delay the worker."""


class CouldNotStart(Exception):
    """The process could not be started, because this machine lacks what it needs."""


@dataclass(frozen=True)
class ReplicaContext:
    """The parts that all replicas of one worker share."""

    settings: WorkerSettings
    ports: PortAllocator
    journal: ProcessJournal
    artifacts: ArtifactStore
    spawn: SpawnProcess
    control: BackendControl
    wait_memory_above: Callable[[int, int], Awaitable[int]] = wait_memory_above
    """Takes a process group and a number of bytes. Returns the group's memory as soon as it is more."""
    measure_usage: MeasureUsage = measure_usage
    """Takes a process group. Returns the memory that it holds now."""


@dataclass(frozen=True)
class ReplicaStatistics:
    """A snapshot of one replica on this machine; `pid` and `port` are None until they are known."""

    replica_id: ReplicaId
    observed: Observed
    pid: int | None
    port: int | None


class ReplicaTask:
    """One replica on this machine. `run` is its life. `desire` may be called at any time, also before and after it.

    `report` is called at each change of state and must not block.
    """

    def __init__(self, desired: DesiredReplica, context: ReplicaContext, report: Callable[[Report], None]) -> None:
        self._desired = desired
        self._context = context
        self._settings = context.settings
        self._send_report = report
        self._log = log.bind(replica_id=desired.replica_id, model=desired.spec.name)
        self._observed = Observed.PLACED
        self._port: int | None = None
        self._pid: int | None = None
        self._exit_code: int | None = None
        self.output = OutputLog()
        self._failure: str | None = None
        self._capabilities: Capabilities | None = None
        self._asked_to_end = False
        self._unwanted = trio.Event()
        self._stop = trio.Event()
        self._fetching = trio.CancelScope()
        self._coming_up = trio.CancelScope()

    @property
    def replica_id(self) -> ReplicaId:
        """The id that the planner gave the replica."""
        return self._desired.replica_id

    def __repr__(self) -> str:
        wanted = "stop" if self._stop.is_set() else "drain" if self._unwanted.is_set() else "run"
        name = f"{self._desired.spec.name} {self.replica_id}"
        return f"<ReplicaTask {name} {self._observed.value} desired={wanted} pid={self._pid}>"

    def statistics(self) -> ReplicaStatistics:
        """Returns a snapshot of the replica."""
        return ReplicaStatistics(self.replica_id, self._observed, self._pid, self._port)

    def desire(self, desired: Desired) -> None:
        """Sets the desired state. A drain or stop is never taken back, and a stop shortens a drain."""
        if desired is Desired.RUN:
            return
        if desired is Desired.STOP:
            self._stop.set()
        self._unwanted.set()
        self._fetching.cancel()
        self._coming_up.cancel()

    async def run(self) -> None:
        """Runs the replica, and returns once its process is gone and reported. It raises nothing but a cancel, after
        the same end."""
        try:
            await self._live()
        except CouldNotStart as error:
            self._failure = str(error)
        except Exception as error:  # noqa: BLE001 - a bug in one replica's task must not end the others'
            self._log.exception("worker.replica_task_failed")
            self._failure = f"internal error of the worker: {error!r}"
        finally:
            self._report_end()

    async def _live(self) -> None:
        try:
            program = program_of(self._desired.spec.backend, self._settings.backends)
        except UnknownBackend as error:
            raise CouldNotStart(str(error)) from error
        with ExitStack() as held:
            held.enter_context(self._context.artifacts.keeping(self._desired.spec))
            artifact = await self._fetch()
            if artifact is None:
                return
            for attempt in range(1, PORT_ATTEMPTS_MAX + 1):
                if self._unwanted.is_set() or not await self._run_process(program, artifact, attempt):
                    return
                self._forget_process()

    async def _run_process(self, program: BackendProgram, artifact: Artifact, attempt: int) -> bool:
        """Runs the process from start to end. Returns whether it has to be started again on another port."""
        with ExitStack() as held:
            process = self._start(program, held)
            self._exit_code = await self._attend(process, program, artifact)
            if not self._lost_its_port():
                return False
        self._failure = f"another program took port {self._port}; this was attempt {attempt} of {PORT_ATTEMPTS_MAX}"
        self._log.warning("worker.port_taken", port=self._port, attempt=attempt, attempts_max=PORT_ATTEMPTS_MAX)
        return attempt < PORT_ATTEMPTS_MAX

    def _lost_its_port(self) -> bool:
        """Returns whether the process ended because its port was taken: it never answered, and its port is still in use
        now that it is gone, or its output says so."""
        assert self._port is not None  # noqa: S101 - the process has been started on it
        if self._observed is not Observed.STARTING or self._asked_to_end or self._failure is not None:
            return False
        return is_taken(self._settings.bind_host, self._port) or says_taken(self.output.last())

    def _forget_process(self) -> None:
        self._port = self._pid = self._exit_code = self._failure = None
        self.output = OutputLog()
        self._coming_up = trio.CancelScope()

    async def _fetch(self) -> Artifact | None:
        """Fetches the artifact. Returns None if the replica was not wanted any more."""
        self._report(Observed.FETCHING)
        with self._fetching:
            try:
                return await self._context.artifacts.fetch(self._desired.spec, DownloadProgress(self._report_fetched))
            except (ArtifactError, OSError) as error:
                raise CouldNotStart(str(error)) from error
        return None

    def _report_fetched(self, done: int, total: int | None) -> None:
        if not self._unwanted.is_set():
            self._report(Observed.FETCHING, done_bytes=done, total_bytes=total)

    def _start(self, program: BackendProgram, held: ExitStack) -> BackendProcess:
        """Starts the process. `held` keeps its port and its record until it was reaped."""
        if secrets := withheld(os.environ, program.pass_env):
            self._log.info("worker.environment_withheld", variables=secrets, backend=self._desired.spec.backend)
        try:
            self._port = held.enter_context(self._context.ports.reserve())
            process = self._context.spawn(
                command_line(program, address_of(self._settings.bind_host, self._port)),
                env=environment(program, self._desired.token, os.environ),
                cwd=working_folder(program),
            )
        except (NoFreePort, OSError) as error:
            raise CouldNotStart(f"the backend process could not be started: {error}") from error
        self._pid = process.pid
        held.enter_context(self._context.journal.recording(process.pid, self.replica_id, self._port))
        self._report(Observed.STARTING)
        return process

    async def _attend(self, process: BackendProcess, program: BackendProgram, artifact: Artifact) -> int:
        """Reads the output of the process until it has ended, also while it is being stopped, because a full pipe would
        keep it from ending."""
        reading = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_output, process, reading)
            try:
                return await self._wait_end(process, program, artifact)
            finally:
                reading.deadline = trio.current_time() + LAST_OUTPUT_SECONDS_MAX

    async def _keep_output(self, process: BackendProcess, reading: trio.CancelScope) -> None:
        try:
            with reading:
                async with process.output:
                    async for chunk in process.output:
                        for line in self.output.feed(bytes(chunk)):
                            self._log.debug("worker.backend_output", line=line)
        finally:
            self.output.end()

    async def _wait_end(self, process: BackendProcess, program: BackendProgram, artifact: Artifact) -> int:
        """Loads the model, signals the process when it is not wanted any more, and returns the exit code."""
        code: int | None = None
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._come_up, program, artifact)
                nursery.start_soon(self._end_when_unwanted, process, program)
                nursery.start_soon(self._watch_memory, process)
                code = await process.wait()
                nursery.cancel_scope.cancel()
            return code
        finally:
            if code is None:
                await self._end_at_shutdown(process, program)

    async def _come_up(self, program: BackendProgram, artifact: Artifact) -> None:
        assert self._port is not None  # noqa: S101 - the process has been started on it
        assert self._pid is not None  # noqa: S101
        listens = address_of(host_to_reach(self._settings.bind_host), self._port)
        backend = BackendClient(self._context.control, listens, self._desired.token)
        with self._coming_up:
            try:
                await backend.wait_healthy(program.ready_timeout_seconds)
                self._report(Observed.LOADING)
                await backend.load(self._desired.spec, artifact)
                self._capabilities = await backend.ask_capabilities(self._desired.spec, artifact)
                usage = await self._context.measure_usage(self._pid)
            except (BackendNotReady, LoadFailed) as error:
                self._failure = str(error)
                await trio.sleep(CRASH_NOTICE_SECONDS)
                self._unwanted.set()
                return
            if not self._unwanted.is_set():
                self._warn_of_context()
                self._report(Observed.READY, ram_bytes=usage.ram_bytes, vram_bytes=usage.vram_bytes)

    def _warn_of_context(self) -> None:
        context_tokens = None if self._capabilities is None else self._capabilities.context_tokens
        if (warning := context_warning(self._desired.spec, context_tokens)) is not None:
            self._log.warning("worker.context_cut", warning=warning)

    async def _end_when_unwanted(self, process: BackendProcess, program: BackendProgram) -> None:
        await self._unwanted.wait()
        if self._observed is Observed.READY and not self._stop.is_set():
            await self._drain(process, program)
        await self._end(process, program)

    async def _end(self, process: BackendProcess, program: BackendProgram) -> None:
        """Ends the process: Free, TERM, wait, KILL. The waits end with the process, which cancels this task."""
        holds_more = self._observed in {Observed.READY, Observed.DRAINING} and not program.drains_on_term
        first_asked, self._asked_to_end = not self._asked_to_end, True
        if holds_more and first_asked:
            await self._free()
        process.terminate()
        await trio.sleep(self._settings.stop_timeout_seconds)
        process.kill()

    async def _drain(self, process: BackendProcess, program: BackendProgram) -> None:
        """Lets open requests finish. TERM would cut the requests of a backend that does not drain, so such a backend is
        left alone until a stop says that nobody uses it any more, or the time for the drain is over.

        A backend that does drain is left alone for a moment. A request that arrives just as it ends is lost and not
        refused, which a request may suffer only once (see `routing.attempt`).
        """
        self._report(Observed.DRAINING)
        with trio.move_on_after(self._settings.drain_timeout_seconds):
            with trio.move_on_after(NOTICE_SECONDS if program.drains_on_term else inf):
                await self._stop.wait()
                return
            self._asked_to_end = True
            process.terminate()
            await self._stop.wait()

    async def _free(self) -> None:
        """Asks a backend to free what it holds outside its process. Backends that drain are not asked: they free it
        themselves, and Free would take the model from their open calls. The signal follows in any case (W8)."""
        assert self._port is not None  # noqa: S101 - the process has been started on it
        listens = address_of(host_to_reach(self._settings.bind_host), self._port)
        with trio.move_on_after(FREE_SECONDS_MAX):
            try:
                await self._context.control.free(listens, self._desired.token, FREE_SECONDS_MAX)
            except Exception:  # noqa: BLE001 - a bug there must not let the process live on
                self._log.exception("worker.free_failed")

    async def _watch_memory(self, process: BackendProcess) -> None:
        """Stops a process that exceeds its memory limit, before the machine runs out of memory."""
        limit = self._settings.memory_limit_bytes
        if limit is None:
            return
        used = await self._context.wait_memory_above(process.pid, limit)
        self._failure = describe_excess(used, limit)
        self.desire(Desired.STOP)  # This ends a load, too, so the broken load is not the cause.

    async def _end_at_shutdown(self, process: BackendProcess, program: BackendProgram) -> None:
        """Ends the process because the worker ends (or has a bug), as at any stop, within a time limit."""
        seconds_max = FREE_SECONDS_MAX + self._settings.stop_timeout_seconds + REAP_SECONDS_MAX
        with trio.move_on_after(seconds_max, shield=True) as bound:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._end, process, program)
                self._exit_code = await process.wait()
                nursery.cancel_scope.cancel()
        if bound.cancelled_caught:
            self._log.error("worker.kill_failed", pid=process.pid)

    def _report_end(self) -> None:
        broke_itself = self._exit_code is not None and not self._asked_to_end
        if self._failure is None and not broke_itself:
            self._log.info("worker.replica_stopped", exit_code=self._exit_code)
            self._report(Observed.GONE)
            return
        error = self._explain_end(broke_itself=broke_itself)
        self._log.warning("worker.replica_broke", exit_code=self._exit_code, error=error)
        was_ready = self._observed in {Observed.READY, Observed.DRAINING}
        self._report(Observed.GONE if was_ready else Observed.FAILED, error)

    def _explain_end(self, *, broke_itself: bool) -> str:
        """Returns one sentence, then the last lines of output (L22)."""
        cause = self._failure or ""
        if broke_itself and self._exit_code is not None:
            exited = f"the backend process {describe_exit(self._exit_code)} while {self._observed}"
            cause = f"{exited} ({cause})" if cause else exited
        lines = self.output.last()
        return "\n".join([f"{cause}; its last output:", *lines]) if lines else cause

    def _report(self, observed: Observed, error: str | None = None, **amounts: int | None) -> None:
        """Makes a report. Every report is complete, so one that was replaced before it was sent is not missed."""
        self._observed = observed
        self._send_report(
            Report(
                self.replica_id,
                observed,
                address=None if self._port is None else address_of(self._settings.advertise_host, self._port),
                pid=self._pid,
                exit_code=self._exit_code,
                error=error,
                capabilities=self._capabilities if observed is Observed.READY else None,
                **amounts,
            )
        )
