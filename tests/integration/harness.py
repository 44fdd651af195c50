"""Runs real gateways as real processes for the integration tests, and looks at them from outside."""

import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import httpx
import openai
import psutil

from gateway.planner.builder import backoff_seconds
from tests.fakes.ports import free_port
from tests.integration.preloaded import PreloadedProcess, start_preloaded
from tests.process_logs import remember_log

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = ("-m", "gateway")
START_SECONDS: Final = 120.0
WAIT_SECONDS: Final = 120.0
"""Far above what anything takes, beside a busy neighbour too: reaching it means "never"."""

T = TypeVar("T")

SCRIPTED: Final = f"""
[backends.scripted]
command = [{sys.executable!r}, "-m", "tests.fakes.scripted_backend"]
"""
"""The scripted backend as a `[backends]` section; its behaviour is in the section's env (`scripted_config`)."""
FILES_WAIT: Final = """
import os, time
read = os.pread
def read_when_allowed(file, size, position):
    for held_at, gate in {gates!r}.items():
        while position >= held_at and not os.path.exists(gate):
            time.sleep(0.01)
    return read(file, size, position)
os.pread = read_when_allowed
"""
"""Has a gateway hand out a file from a position on only once another file is there, by `gates`; for `patched`."""
LONG_TINY: Final = """
[[models]]
name = "tiny"
backend = "llama-cpp"
artifact = "builtin:tiny"
context_size = 32768
"""
"""`tiny` with room for streams that last."""


def wait_for(look: Callable[[], T], what: str, seconds: float = WAIT_SECONDS) -> T:
    """Looks until the answer is true and returns it. Fails, naming `what`, when it takes too long."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s for {what}")


@dataclass
class GatewayProcess:
    """One `gateway serve` in a folder of its own."""

    folder: Path
    process: "subprocess.Popen[str] | PreloadedProcess"
    url: str = ""
    lines: list[str] = field(default_factory=list)
    """What it wrote to stderr so far."""

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def client(self, api_key: str | None = None, timeout: float = WAIT_SECONDS) -> httpx.Client:
        headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=timeout)

    def openai(self, **options: Any) -> openai.OpenAI:
        settings: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": WAIT_SECONDS, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", **settings)

    def chat(self, model: str = "tiny", **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=WAIT_SECONDS)

    def status(self) -> dict[str, Any]:
        document: dict[str, Any] = httpx.get(f"{self.url}/api/status", timeout=WAIT_SECONDS).json()
        return document

    def model(self, name: str = "tiny") -> dict[str, Any]:
        return next(model for model in self.status()["models"] if model["name"] == name)

    def metrics(self, api_key: str | None = None) -> str:
        with self.client(api_key) as client:
            return client.get("/metrics").raise_for_status().text

    def metric(self, series: str, api_key: str | None = None) -> float:
        """The value of one series such as `gateway_in_flight{model="tiny"}`; 0 if it is not there."""
        for line in self.metrics(api_key).splitlines():
            name, _, value = line.rpartition(" ")
            if name == series:
                return float(value)
        return 0.0

    def metric_sum(self, name: str) -> float:
        """The sum over all label values of one metric."""
        text = self.metrics()
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE))

    def statements(self) -> Counter[str]:
        """Of its registry so far, by method."""
        text = self.metrics()
        found = re.findall(r'^gateway_registry_statements_total{kind="(\w+)"} (\S+)$', text, re.MULTILINE)
        return Counter({kind: int(float(value)) for kind, value in found})

    def backend_pids(self) -> list[int]:
        """Of the backend processes that are children of this gateway and still live."""
        return backend_pids_of(self.process.pid)

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def stop(self, seconds: float = WAIT_SECONDS) -> int:
        """SIGTERM, then its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


def backend_pids_of(pid: int) -> list[int]:
    """Of the living processes below the process `pid`; none if it is gone."""
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child.pid for child in children if is_alive(child.pid)]


def is_alive(pid: int) -> bool:
    """Whether the process exists and is no zombie."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def patched(code: str) -> tuple[str, ...]:
    """What Python is to run for a gateway that runs this code before it begins."""
    return ("-c", f"{code}\nimport sys\nfrom gateway.cli import main\nsys.exit(main())") if code else PROGRAM


@contextmanager
def running_gateway(
    folder: Path,
    config: str = "",
    *,
    args: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    patch: str = "",
) -> Iterator[GatewayProcess]:
    """A gateway on a free port with `config` as its TOML file; killed at the end if it still runs.

    `patch`: code that it runs before it begins.
    """
    gateway = start_gateway(folder, config, args=args, env=env, program=patched(patch))
    try:
        wait_for(lambda: gateway.url or gateway.process.poll() is not None, "the gateway to listen", START_SECONDS)
        assert gateway.url, f"the gateway did not start:\n{gateway.log}"
        yield gateway
    finally:
        gateway.process.kill()
        gateway.process.wait()


def start_gateway(
    folder: Path,
    config: str = "",
    *,
    args: tuple[str, ...] = (),
    env: Mapping[str, str] | None = None,
    program: tuple[str, ...] = PROGRAM,
) -> GatewayProcess:
    """Starts one without waiting for it. `program`: what Python is to run."""
    folder.mkdir(parents=True, exist_ok=True)
    if config:
        (folder / "config.toml").write_text(config)
    arguments = ["serve", "--port", str(free_port()), *args]
    gateway = GatewayProcess(folder, start_program(arguments, folder, environment(env or {}), program=program))
    remember_log(f"gateway {folder.name}", gateway.process, gateway.lines)
    threading.Thread(target=_read_log, args=(gateway,), daemon=True).start()
    return gateway


def start_program(
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    *,
    program: tuple[str, ...] = PROGRAM,
    within: tuple[str, ...] = (),
) -> "subprocess.Popen[str] | PreloadedProcess":
    """Starts `gateway ARGUMENTS`. `within`: a command that becomes the one behind it.

    In a test run this process is a fork of one that has imported the program, unless `program` or `within` is given.
    """
    if program == PROGRAM and not within and "PYTEST_VERSION" in os.environ:
        return start_preloaded(arguments, folder, environment)
    return subprocess.Popen(
        [*within, sys.executable, *program, *arguments],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def environment(more: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), **more}


def _read_log(gateway: GatewayProcess) -> None:
    assert gateway.process.stderr is not None
    with gateway.process.stderr as stream:
        for line in stream:
            gateway.lines.append(line)
            if found := re.search(r"listens on (https?://\S+)", line):
                gateway.url = found[1]


def scripted_config(script: Mapping[str, object], *, log: Path | None = None, model: str = "", more: str = "") -> str:
    """A configuration whose model `scripted` is served by the scripted backend.

    `log` gets its events (`events_in`); `model` is further lines of the model's table, `more` further sections.
    """
    env = {"SCRIPT": json.dumps(script), **({"SCRIPT_LOG": str(log)} if log else {})}
    lines = "\n".join(f"{name} = {json.dumps(value)}" for name, value in env.items())
    artifact = json.dumps(f"file:{ROOT / 'pyproject.toml'}")  # any file: it is never read
    table = f'[[models]]\nname = "scripted"\nbackend = "scripted"\nartifact = {artifact}\n{model}\n'
    return f"{more}\n{SCRIPTED}\n[backends.scripted.env]\n{lines}\n{table}"


def events_in(log: Path, name: str) -> list[dict[str, Any]]:
    """What scripted backends wrote to `log` under that name, oldest first."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [event for event in map(json.loads, lines) if event["event"] == name]


def loads_allowed(seconds: float) -> int:
    """How often a model whose loads fail may have been loaded within so many seconds: each time it is left alone for
    longer."""
    return next(n for n in itertools.count(1) if sum(backoff_seconds(attempt) for attempt in range(1, n + 1)) > seconds)


@contextmanager
def silent_port() -> Iterator[int]:
    """A port at which nobody listens, and that nobody else gets while the context is open."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        yield port


def together(count: int, call: Callable[[int], T]) -> list[T]:
    """Calls `call(0)` ... `call(count - 1)` at the same time, each in its thread; the results in order."""
    barrier = threading.Barrier(count)

    def run(index: int) -> T:
        barrier.wait(WAIT_SECONDS)
        return call(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def chat_request(model: str = "tiny", **fields: Any) -> bytes:
    """A whole chat request as it goes over a socket; a stream unless said otherwise."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True, **fields}
    payload = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(payload)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + payload


class RawClient:
    """A client at the socket's level, which may stop reading or hang up at any byte."""

    def __init__(self, gateway: GatewayProcess, *, receive_buffer_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(WAIT_SECONDS)
        if receive_buffer_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        url = httpx.URL(gateway.url)
        self.socket.connect((url.host, url.port))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read_until(self, mark: bytes) -> bytes:
        """All that came up to `mark` and a little more. Fails when the connection ends before it."""
        received = b""
        while mark not in received:
            data = self.socket.recv(65536)
            assert data, f"the connection ended before {mark!r}: {received!r}"
            received += data
        return received

    def read_to_end(self) -> bytes:
        received = b""
        while data := self.socket.recv(65536):
            received += data
        return received

    def reset(self) -> None:
        """Hangs up the hard way (RST), as a killed client's kernel does when something is unread."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
