"""One process, from its start to its exit."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from gateway.process_place import ProcessPlace
from gateway.supervisor.readiness import NOTIFY_VARIABLE, ReadinessSocket, open_readiness
from gateway.worker.process import launcher
from gateway.worker.process.spawn import wait_exit

PLACE_OPTION: Final = "--as-process"
RETIRE: Final = signal.SIGHUP
"""The signal on which a process leaves its clients to the others, one by one, before it drains."""


class Child:
    """A process that was started. It has to be waited for until it has ended."""

    def __init__(self, popen: subprocess.Popen[bytes], readiness: ReadinessSocket) -> None:
        self._popen = popen
        self._readiness = readiness

    @property
    def pid(self) -> int:
        """The process id."""
        return self._popen.pid

    async def wait_ready(self) -> None:
        """Waits until it serves."""
        await self._readiness.wait_ready()

    async def wait(self) -> int:
        """Waits until it has ended, and returns its exit code. A negative code is the number of a signal."""
        await wait_exit(self.pid)
        return self._popen.wait()

    def send_signal(self, number: signal.Signals) -> None:
        """Sends a signal. Does nothing if the process has ended."""
        self._popen.send_signal(number)


class ProcessStarter:
    """Starts the processes of one supervisor, each with the same options."""

    def __init__(self, options: Sequence[str], environ: Mapping[str, str], folder: Path) -> None:
        """`options` are those of `gateway serve`. `folder` is for sockets, and its path has to be short."""
        self._options = tuple(options)
        self._environ = dict(environ)
        self._folder = folder
        self._started = 0

    @contextmanager
    def start(self, place: ProcessPlace) -> Iterator[Child]:
        """Starts a process in the calling thread, which has to live as long as the supervisor. Raises `OSError`.

        The kernel kills it when the supervisor ends without having stopped it. It leads a session of its own, so that
        Ctrl-C at a terminal reaches the supervisor alone.
        """
        self._started += 1
        with open_readiness(self._folder / str(self._started)) as readiness:
            command = (sys.executable, "-m", "gateway", "serve", *self._options, PLACE_OPTION, place.encode())
            popen = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-I", "-S", launcher.__file__, str(os.getpid()), "--", *command],
                env={**self._environ, NOTIFY_VARIABLE: str(readiness.path)},
                stdin=subprocess.DEVNULL,
                pass_fds=place.descriptors(),
                start_new_session=True,
            )
            yield Child(popen, readiness)
