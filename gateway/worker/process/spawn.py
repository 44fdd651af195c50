"""Starts and ends backend processes. It is the seam behind which a simulation puts its own processes.

Each backend leads a session and a process group of its own. Signals go to the group, so that everything that a start
script has started ends with it. Its stdin is a pipe that the worker keeps open and never writes to; its end tells the
built-in backends that the worker is gone. Stdout and stderr share one pipe, which `gateway.worker.process.output`
reads.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import trio

from gateway.worker.process import launcher as launch


class BackendProcess(Protocol):
    """A started process. It has to be waited for until it has ended, or else it stays a zombie."""

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""

    @property
    def output(self) -> trio.abc.ReceiveStream:
        """Its output on stdout and stderr. It has to be read, or else the process blocks once the pipe is full."""

    async def wait(self) -> int:
        """Waits until the process has ended, its group was killed and it was reaped, and returns the exit code. A
        negative code is the number of a signal.

        One task at a time may wait. It may be cancelled and called again, also after the end.
        """

    def terminate(self) -> None:
        """Asks the whole group to end (SIGTERM). Does nothing if it has ended."""

    def kill(self) -> None:
        """Ends the whole group (SIGKILL). Does nothing if it has ended."""


class SpawnProcess(Protocol):
    """Starts a process. It is synchronous, and raises `OSError` if the machine cannot start one."""

    def __call__(self, command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> BackendProcess: ...


def spawn_process(command: Sequence[str], *, env: Mapping[str, str], cwd: Path | None) -> BackendProcess:
    """Starts a real process in the calling thread, which has to live as long as the worker.

    The launcher asks the kernel to kill the child when its parent *thread* ends, so a thread pool would kill healthy
    backends after its idle time. `trio.open_process` cannot be used for the same reason: it forks in a cached thread
    that ends after 10 s without work (pitfall 29).
    """
    launcher = [sys.executable, "-I", "-S", launch.__file__, str(os.getpid()), "--"]
    return _Process(
        subprocess.Popen(  # noqa: S603 - the operator's own command
            [*launcher, *command],
            env=dict(env),
            cwd=cwd,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    )


class _Process:
    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        assert popen.stdout is not None  # noqa: S101 - asked for above; tells the type checker
        self._popen = popen
        self.pid = popen.pid
        self.output: trio.abc.ReceiveStream = trio.lowlevel.FdStream(os.dup(popen.stdout.fileno()))
        popen.stdout.close()

    async def wait(self) -> int:
        """Waits for the exit, kills what the process has left behind, and returns the exit code."""
        if self._popen.returncode is None:
            await wait_exit(self.pid)
            self._reap()
        else:
            await trio.lowlevel.checkpoint()
        return self._popen.wait()

    def terminate(self) -> None:
        """Sends SIGTERM to the process group."""
        self._signal_group(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL to the process group."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        # This holds only while the leader is not reaped: until then no other process can have its number.
        if self._popen.returncode is None:
            kill_group(self.pid, number)

    def _reap(self) -> None:
        self.kill()  # These are processes that it has started and left behind.
        self._popen.wait()
        if self._popen.stdin is not None:
            self._popen.stdin.close()


def kill_group(pid: int, number: signal.Signals) -> None:
    """Signals the process group that `pid` leads. Does nothing if the group has ended."""
    try:
        os.killpg(pid, number)
    except (ProcessLookupError, PermissionError):  # The latter is raised for a group of zombies on macOS.
        pass


async def wait_exit(pid: int) -> None:
    """Waits until `pid` has ended or does not exist. It does not reap the process, and works for any process, child or
    not."""
    if sys.platform != "linux":
        # Without a pidfd there is one thread each, outside the common limit, since it waits for as long as the process
        # lives.
        await trio.to_thread.run_sync(_block_until_exit, pid, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1))
        return
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await trio.lowlevel.wait_readable(pidfd)
    finally:
        os.close(pidfd)


def _block_until_exit(pid: int) -> None:
    """Blocks until the process has ended. It knows only children of this process; any other one counts as ended."""
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return


def describe_exit(code: int) -> str:
    """Returns how a process ended, in words: "exited with code 3", "was killed by SIGKILL"."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
