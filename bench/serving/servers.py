"""Starts what is measured, and asks it until it answers."""

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench.serving.load_result import LoadResult
from bench.serving.processes import ServerProcess, allowed_cores, started_on
from bench.serving.programs import Programs, wait_load

MODEL: Final = "bench"
START_SECONDS_MAX: Final = 120.0
STOP_SECONDS_MAX: Final = 20.0
LOG_CHARACTERS: Final = 2000


@dataclass(frozen=True)
class Command:
    """How one server is started."""

    name: str
    version: str
    make: Callable[[int, Path], Sequence[str]]
    """Writes what the server needs into the folder, and returns the command with which it listens at the port."""
    environment: Mapping[str, str] = field(default_factory=dict)
    bearer: str = ""
    is_gateway: bool = False
    """Whether it is a gateway of ours, which has our metrics."""
    on_all_cores: bool = False
    """Whether it consists of several processes, which are not kept on one core."""


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    command: Command
    port: int
    process: ServerProcess

    @property
    def name(self) -> str:
        """The name of its row."""
        return self.command.name

    def start_load(self, programs: Programs, **options: float) -> "subprocess.Popen[str]":
        """Starts the load generator on this server."""
        return programs.start_load({"port": self.port, "model": MODEL, "bearer": self.command.bearer, **options})

    def load(self, programs: Programs, **options: float) -> "Measured":
        """Runs the load generator on this server to its end."""
        before = self.process.cpu_seconds()
        result = wait_load(self.start_load(programs, **options))
        return Measured(result, self.process.cpu_seconds() - before)

    def metrics(self) -> str:
        """Returns the metrics of a gateway of ours."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            text: str = answer.read().decode()
            return text


@dataclass(frozen=True)
class Measured:
    """What a run of the load generator has shown, and the CPU time that the server used meanwhile."""

    result: LoadResult
    cpu_seconds: float

    @property
    def us_per_request(self) -> float:
        """CPU time."""
        return self.cpu_seconds / max(1, self.result.done) * 1e6

    @property
    def us_per_token(self) -> float:
        """CPU time."""
        return self.cpu_seconds / max(1, self.result.tokens) * 1e6


@contextmanager
def open_server(command: Command, port: int, core: int, folder: Path) -> Iterator[Server]:
    """Starts the server on the core, and stops it at the end. Raises `RuntimeError` if it does not answer."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log"
    with log.open("wb") as output, started_on(*(allowed_cores() if command.on_all_cores else (core,))):
        process = subprocess.Popen(
            command.make(port, folder),
            cwd=folder,
            env={**os.environ, **command.environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        _wait_answer(command, port, process, log)
        yield Server(command, port, ServerProcess(process.pid))
    finally:
        _stop(process)


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_answer(command: Command, port: int, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline, why = time.monotonic() + START_SECONDS_MAX, ""
    while process.poll() is None and time.monotonic() < deadline:
        try:
            _chat(port, command.bearer)
            return
        except (OSError, ValueError) as error:
            why = str(error)
        time.sleep(0.1)
    tail = log.read_text(errors="replace")[-LOG_CHARACTERS:]
    raise RuntimeError(f"{command.name} does not answer at port {port} ({why}). The end of its log:\n{tail}")


def _chat(port: int, bearer: str) -> None:
    """Raises `OSError` or `ValueError` if the answer is no completion."""
    fields = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
    headers = {"content-type": "application/json", "authorization": f"Bearer {bearer or 'none'}"}
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    request = urllib.request.Request(url, json.dumps(fields).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        if "choices" not in json.loads(answer.read()):
            raise ValueError("an answer without choices")
