"""Starts gateways and workers as processes of their own that need not import the program first.

`start_preloaded(["serve", ...])` does what `python -m gateway serve ...` does: it starts a process with arguments, a
folder, an environment and a standard error of its own. That process is a fork of one that has imported the program and
has done nothing else. The imports are most of what a start costs, and the tests start hundreds of processes.

A test run has one such process for each of its own (`python -m tests.integration.preloaded DESCRIPTOR`), which takes
orders from a socket. For each it forks a parent that forks the gateway and writes its pid, then its exit code.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, TextIO

ROOT: Final = Path(__file__).resolve().parents[2]
COMMANDS: Final = ("gateway.cli.processes.serve", "gateway.cli.processes.gateway", "gateway.cli.processes.worker")
ORDER_BYTES_MAX: Final = 128 * 1024
"""The kernel takes somewhat more as one message: what `send_fds` sends arrives as a whole."""
END_SECONDS_MAX: Final = 60.0


class PreloadedProcess:
    """What tests use of `subprocess.Popen`. Threads may share it."""

    def __init__(self, life: int, stderr: TextIO) -> None:
        """`life` is where the pid and the exit code come from."""
        self.stderr: TextIO | None = stderr
        self.returncode: int | None = None
        self._life = life
        self._lock = threading.Lock()
        self.pid = _read_number(life)

    def poll(self) -> int | None:
        """Returns None if the process still runs, else its exit code, which is negative after a signal."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises `subprocess.TimeoutExpired`."""
        deadline = time.monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
        while (code := self._look(0.02)) is None:
            if time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired(["gateway"], timeout or 0.0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float) -> int | None:
        with self._lock:
            if self.returncode is None and _is_readable(self._life, seconds):
                self.returncode = _read_number(self._life)
                os.close(self._life)
            return self.returncode


def start_preloaded(arguments: Sequence[str], folder: Path, environment: Mapping[str, str]) -> PreloadedProcess:
    """Starts `gateway ARGUMENTS` in `folder` without waiting for it. Nothing else of this process reaches it."""
    stderr, its_stderr = os.pipe()
    life, its_life = os.pipe()
    order = {"arguments": list(arguments), "folder": str(folder), "environment": dict(environment)}
    socket.send_fds(_preloader(), [json.dumps(order).encode()], [its_stderr, its_life])
    os.close(its_stderr)
    os.close(its_life)
    return PreloadedProcess(life, os.fdopen(stderr, encoding="utf-8"))


@functools.cache
def _preloader() -> socket.socket:
    """The way to the process that has the program imported; it ends with this one."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for each in (ours, its):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * ORDER_BYTES_MAX)
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.integration.preloaded", str(its.fileno())],
        cwd=ROOT,
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    its.close()

    def end() -> None:
        ours.close()
        process.wait(END_SECONDS_MAX)

    atexit.register(end)
    return ours


def _is_readable(descriptor: int, seconds: float) -> bool:
    poll = select.poll()  # `select` takes no descriptors above 1023
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(1000 * seconds))


def _read_number(descriptor: int) -> int:
    """Reads one line and nothing behind it."""
    line = b""
    while not line.endswith(b"\n"):
        read = os.read(descriptor, 1)
        if not read:
            raise RuntimeError("the parent of a preloaded process has died")
        line += read
    return int(line)


def _take_orders(orders: socket.socket) -> list[str] | None:
    """Returns the arguments in each process that is to run the program, and None when there are no more orders."""
    while True:
        message, descriptors, *_ = socket.recv_fds(orders, ORDER_BYTES_MAX, 2)
        if not message:
            return None
        if os.fork() == 0:
            orders.close()
            return _become(json.loads(message), *descriptors)
        for each in descriptors:
            os.close(each)


def _become(order: Mapping[str, object], stderr: int, life: int) -> list[str]:
    """Forks once more: the parent tells of its child and ends here, the child becomes what was ordered."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid:
        os.close(stderr)
        os.write(life, b"%d\n" % pid)
        os.write(life, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.close(life)
    os.dup2(stderr, sys.stderr.fileno())
    os.close(stderr)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(str(order["folder"]))
    environment, arguments = order["environment"], order["arguments"]
    assert isinstance(environment, dict)
    assert isinstance(arguments, list)
    os.environ.clear()
    os.environ.update(environment)
    return arguments


def _run() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests, which end this process then
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel forgets the parents
    main = importlib.import_module("gateway.cli").main
    for command in COMMANDS:
        importlib.import_module(command)
    gc.freeze()  # what is here already is not looked through, and so not copied, in each fork
    arguments = _take_orders(socket.socket(fileno=int(sys.argv[1])))
    if arguments is None:
        return 0
    sys.argv = ["gateway", *arguments]
    code: int = main(arguments)
    return code


if __name__ == "__main__":
    sys.exit(_run())
