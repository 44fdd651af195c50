"""Runs real workers as processes around a real gateway for the integration tests, and looks at them from outside."""

import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

import httpx

from tests.integration.harness import (
    START_SECONDS,
    WAIT_SECONDS,
    GatewayProcess,
    backend_pids_of,
    environment,
    running_gateway,
    scripted_config,
    start_program,
    wait_for,
)
from tests.integration.preloaded import PreloadedProcess
from tests.process_logs import remember_log

T = TypeVar("T")

JOIN_TOKEN: Final = "join-0123456789abcdef"
TINY: Final = """
[[models]]
name = "tiny"
backend = "llama-cpp"
artifact = "builtin:tiny"
context_size = 32768
"""
ONCE: Final = "min_replicas = 1\n"
TWICE: Final = "min_replicas = 2\nmax_replicas = 2\n"
"""One replica on each of two workers."""
TINY_TWICE: Final = TINY + TWICE
TINY_ONCE: Final = TINY + ONCE
HELD_TOKENS: Final = 40
"""Of an answer that a scripted backend holds until a test lets it go on."""
DONE: Final = "data: [DONE]"
HELD: Final = "scripted"
"""The model of `held_fleet_config`."""

_SECTIONS: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The port beside the first one may be anybody's, since all of them are the system's choice.
        "server": 'drain_timeout = "2m"\nworker_port = 0',
        "auth": f'join_token = "{JOIN_TOKEN}"',
        "worker": "embedded = false",
        "routing": "expose_replica_header = true",
        "health": 'heartbeat = "500ms"\nstale_after = "20s"',
    }
)


def fleet_config(models: str = TINY, /, **lines: str) -> str:
    """For gateway and workers alike. `lines` are further lines by the section that they belong to; a key that is there
    already gives way. `models` are further sections."""
    return "\n".join(f"[{name}]\n{_merged(text, lines.get(name, ''))}" for name, text in _SECTIONS.items()) + models


def held_fleet_config(gate: Path, model: str, /, **lines: str) -> str:
    """As `fleet_config`, for the model `HELD`: an answer waits after its first token until the file `gate` is there;
    one of a single token does not. So nothing rests on how long an answer takes. `model`: more lines of its table."""
    script = {"tokens": HELD_TOKENS, "hold_after_tokens": 1, "gate": str(gate)}
    return fleet_config(scripted_config(script, model=model), **lines)


def _merged(text: str, more: str) -> str:
    said = {line.partition(" = ")[0] for line in more.splitlines()}
    kept = [line for line in text.splitlines() if line.partition(" = ")[0] not in said]
    return "\n".join([*kept, more, ""])


@dataclass
class WorkerProcess:
    """One `gateway worker` in a folder of its own."""

    name: str
    folder: Path
    process: "subprocess.Popen[str] | PreloadedProcess"
    lines: list[str] = field(default_factory=list)
    """What it wrote to stderr so far."""

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def joins(self) -> int:
        """How often it has got a session."""
        return self.log.count('"event": "worker.joined"')

    def backend_pids(self) -> list[int]:
        """Of the backend processes that are children of this worker and still live."""
        return backend_pids_of(self.process.pid)

    def backend_pid(self) -> int:
        (pid,) = self.backend_pids()
        return pid

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """As the kernel does it when memory runs out."""
        self.process.kill()
        self.process.wait()

    def ended(self, seconds: float = WAIT_SECONDS) -> int:
        """Waits for its end, and for its last words; its exit code."""
        code = self.process.wait(seconds)
        stream = self.process.stderr
        wait_for(lambda: stream is not None and stream.closed, "the worker's last words")
        return code


@dataclass
class Fleet:
    """One gateway and its workers, each in a folder of its own below `folder`. All are killed at the end."""

    folder: Path
    config: str
    gateway: GatewayProcess
    held: ExitStack
    workers: dict[str, WorkerProcess] = field(default_factory=dict)
    """By the name of their node; the last one that was started under it."""

    def start_worker(
        self,
        name: str,
        *args: str,
        config: str | None = None,
        join: str | None = None,
        env: Mapping[str, str] | None = None,
        within: tuple[str, ...] = (),
    ) -> WorkerProcess:
        """Starts one without waiting for it. Twice with one name: in the same folder, thus the same node."""
        folder, url = self.folder / name, join or self.gateway.url
        worker = start_worker(folder, name, url, *args, config=config or self.config, env=env, within=within)
        self.held.callback(worker.kill)
        self.workers[name] = worker
        return worker

    def add_worker(self, name: str, *args: str, config: str | None = None, join: str | None = None) -> WorkerProcess:
        """Starts one and waits until the gateway has it."""
        worker = self.start_worker(name, *args, config=config, join=join)
        wait_joined(worker)
        return worker

    def kill_gateway(self) -> None:
        self.gateway.process.kill()
        self.gateway.process.wait()

    def start_gateway_again(self) -> None:
        """At the address of the one that was killed."""
        port = str(httpx.URL(self.gateway.url).port)
        self.gateway = self.held.enter_context(running_gateway(self.gateway.folder, args=("--port", port)))

    def node(self, name: str) -> dict[str, Any]:
        """As `/api/status` shows it."""
        return next(node for node in self.gateway.status()["nodes"] if node["name"] == name)

    def wait_node(self, name: str, status: str, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        def look() -> dict[str, Any] | None:
            node = self.node(name)
            return node if node["status"] == status else None

        found = wait_for(look, f"node {name} to be {status}", seconds)
        assert found is not None
        return found

    def candidates(self, model: str = "tiny") -> dict[str, str]:
        """What the router would choose from: node names by replica id."""
        explained = httpx.post(f"{self.gateway.url}/api/explain", json={"model": model}, timeout=WAIT_SECONDS).json()
        return {each["replica"]: each["node"] for each in explained["candidates"]}

    def wait_serving(self, *names: str, model: str = "tiny", seconds: float = START_SECONDS) -> dict[str, str]:
        """Waits until one replica on each of the nodes is routable and no other; their ids by node."""

        def look() -> dict[str, str] | None:
            found = self.candidates(model)
            return found if sorted(found.values()) == sorted(names) else None

        found = wait_for(look, f"{model} to be served by {names} and nobody else", seconds)
        assert found is not None
        return {node: replica for replica, node in found.items()}

    def replica(self, replica_id: str) -> dict[str, Any] | None:
        """As `/api/status` shows it; None: it is gone."""
        return next((each for each in self.gateway.status()["replicas"] if each["id"] == replica_id), None)

    def start_command(self, *arguments: str) -> "subprocess.Popen[str]":
        """`gateway ARGUMENTS` with this gateway, without waiting for its end. It is killed at the fleet's."""
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=self.folder,
            env=environment({"GATEWAY_URL": self.gateway.url}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.held.enter_context(process)
        self.held.callback(process.kill)
        return process

    def command(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`gateway ARGUMENTS` with this gateway."""
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=self.folder,
            env=environment({"GATEWAY_URL": self.gateway.url}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )


@contextmanager
def running_fleet(folder: Path, config: str, *names: str, patch: str = "") -> Iterator[Fleet]:
    """A gateway and a worker of each name; all have joined. `patch`: code that the gateway runs before it begins."""
    with ExitStack() as held:
        gateway = held.enter_context(running_gateway(folder / "gateway", config, patch=patch))
        fleet = Fleet(folder, config, gateway, held)
        for worker in [fleet.start_worker(name) for name in names]:
            wait_joined(worker)
        yield fleet


def start_worker(
    folder: Path,
    name: str,
    join: str,
    *args: str,
    config: str,
    env: Mapping[str, str] | None = None,
    within: tuple[str, ...] = (),
) -> WorkerProcess:
    """A worker that knows the join token, unless `env` says otherwise. `within`: a command that becomes the one behind
    it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.toml").write_text(config)
    arguments = ["worker", "--join", join, "--name", name, *args]
    its_environment = environment({"GATEWAY_JOIN_TOKEN": JOIN_TOKEN, **(env or {})})
    worker = WorkerProcess(name, folder, start_program(arguments, folder, its_environment, within=within))
    remember_log(f"worker {name}", worker.process, worker.lines)
    threading.Thread(target=_read_log, args=(worker,), daemon=True).start()
    return worker


def _read_log(worker: WorkerProcess) -> None:
    assert worker.process.stderr is not None
    with worker.process.stderr as stream:
        for line in stream:
            worker.lines.append(line)


def wait_joined(worker: WorkerProcess, times: int = 1) -> None:
    wait_for(
        lambda: worker.joins >= times or worker.process.poll() is not None, f"{worker.name} to join", START_SECONDS
    )
    assert worker.joins >= times, f"{worker.name} has ended:\n{worker.log}"


def stays(look: Callable[[], bool], what: str, seconds: float) -> None:
    """Fails as soon as the answer is not true, naming `what`; returns after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert look(), f"for {seconds} s it should stay so: {what}"
        time.sleep(0.05)


def in_background(call: Callable[[], T]) -> "Future[T]":
    """Runs `call` in a thread of its own."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


class Stream:
    """A streamed chat that a thread of its own reads; made once it has begun to answer."""

    def __init__(self, gateway: GatewayProcess, model: str = "tiny", *, tokens: int) -> None:
        self.events: list[str] = []
        """One `data: ...` each."""
        self.node = ""
        """That answers."""
        self._url = f"{gateway.url}/v1/chat/completions"
        self._body = {
            "model": model,
            "messages": [{"role": "user", "content": "hello"}],
            "stream": True,
            "max_tokens": tokens,
            "ignore_eos": True,
        }
        self._read = in_background(self._run)
        wait_for(lambda: len(self.events) > 1 or self._read.done(), "the stream to begin")
        assert not self.ended, self.result()

    @property
    def ended(self) -> bool:
        return self._read.done()

    def result(self, seconds: float = 120.0) -> list[str]:
        """Every event, once it has ended. Raises when the body's framing was broken."""
        self._read.result(seconds)
        return self.events

    def _run(self) -> None:
        with httpx.stream("POST", self._url, json=self._body, timeout=WAIT_SECONDS) as answer:
            assert answer.status_code == 200, answer.read()
            self.node = answer.headers["x-gateway-node"]
            self.events.extend(line for line in answer.iter_lines() if line)


def node_of(answer: httpx.Response) -> str:
    """Which node has served a request. Fails if none has."""
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-gateway-node"])


def error_line(worker: WorkerProcess) -> str:
    """What a worker that has ended says to its user: one line, the last."""
    *logged, last = worker.lines
    assert re.match(r"gateway: \S", last), worker.log
    assert not [line for line in logged if not line.startswith("{")], worker.log
    return last
