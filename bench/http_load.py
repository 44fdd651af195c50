"""Load on the gateway's HTTP API: blocking sockets that cost next to nothing, one per connection, in threads."""

import json
import socket
import threading
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

import psutil

from bench.report import Figures
from tests.integration.harness import GatewayProcess


@dataclass(frozen=True)
class Load:
    connections: int
    seconds: float
    stream: bool
    tokens: int
    """Per answer."""

    @property
    def name(self) -> str:
        kind = f"stream of {self.tokens}" if self.stream else "unary"
        return f"{kind}, {self.connections} connections"


def measure_http(gateway: GatewayProcess, load: Load) -> Figures:
    address = urlsplit(gateway.url)
    assert address.hostname is not None
    assert address.port is not None
    request = _request(load)
    latencies: list[float] = []
    firsts: list[float] = []
    process = psutil.Process(gateway.process.pid)
    before, began = _cpu(process), time.perf_counter()
    threads = [
        threading.Thread(target=_run, args=((address.hostname, address.port), request, load, latencies, firsts))
        for _ in range(load.connections)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    elapsed = time.perf_counter() - began
    cpu, memory = _cpu(process) - before, process.memory_info().rss
    return Figures(f"gateway, {load.name}", latencies, elapsed, len(latencies) * load.tokens, firsts, cpu, memory)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _request(load: Load) -> bytes:
    message = {"role": "user", "content": "hello"}
    body = json.dumps({"model": "instant", "messages": [message], "stream": load.stream}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n"
    return head.encode() + b"content-type: application/json\r\n\r\n" + body


def _run(address: tuple[str, int], request: bytes, load: Load, latencies: list[float], firsts: list[float]) -> None:
    end = b"0\r\n\r\n" if load.stream else None
    with socket.create_connection(address) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        until = time.perf_counter() + load.seconds
        while (began := time.perf_counter()) < until:
            connection.sendall(request)
            firsts.append(_read_answer(connection, end) - began)
            latencies.append(time.perf_counter() - began)


FIRST_TEXT = b'"content":"tok'


def _read_answer(connection: socket.socket, end: bytes | None) -> float:
    """Up to `end` for a chunked answer, else as many bytes as it announces. Returns when its first text came."""
    data, first = b"", 0.0
    while True:
        part = connection.recv(65536)
        if not part:
            raise ConnectionError("the gateway closed the connection")
        data += part
        if not first and FIRST_TEXT in data:
            first = time.perf_counter()
        head, separator, body = data.partition(b"\r\n\r\n")
        if not separator:
            continue
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(data.decode(errors="replace"))
        if end is not None and data.endswith(end):
            return first
        if end is None and len(body) >= int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]):
            return first
