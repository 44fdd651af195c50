"""What is measured: each section runs load on one server for some seconds, and returns its figures by name."""

import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.serving.load_result import LoadResult, Percentiles, metric_in
from bench.serving.programs import Programs, wait_load
from bench.serving.servers import MODEL, Measured, Server

Figures = Mapping[str, float | None]
"""None where the server has no such figure."""

UNARY_CONNECTIONS: Final = 32
STREAMS: Final = 64
MANY_STREAMS: Final = 1000
RATE: Final = 50
"""Tokens per second of a paced stream."""
TOKENS: Final = 100
"""Of a stream."""
SPREAD_US: Final = 300
"""Between the first requests of two connections, so that streams do not beat in time."""
MANY_SPREAD_US: Final = 200
KEPT_CONNECTIONS: Final = 500
SETTLE_SECONDS: Final = 2.0
LOOP_LAG: Final = "gateway_loop_lag_seconds"


@dataclass(frozen=True)
class Effort:
    """How much is measured in one round; 1 is what figures are quoted from."""

    share: float = 1.0

    def seconds(self, whole: float) -> float:
        """Returns that share of the time."""
        return whole * self.share

    def count(self, whole: int, least: int) -> int:
        """Returns that share of the number, and no less than `least`."""
        return max(least, int(whole * min(1.0, self.share)))


@dataclass(frozen=True)
class Column:
    """One figure in the table of its section."""

    title: str
    key: str
    digits: int = 2
    above_direct: bool = False
    """Whether the table shows by how much it is above that of `direct` in the same round."""


@dataclass(frozen=True)
class Section:
    """One table."""

    name: str
    title: str
    measure: Callable[[Server, Programs, Effort], Figures]
    columns: Sequence[Column]
    fresh: bool = False
    """Whether each round starts the server anew, and alone."""


def _of(times: Percentiles | None, share: str) -> float | None:
    """Milliseconds."""
    return None if times is None else float(getattr(times, share)) / 1e3


def measure_unary(server: Server, programs: Programs, effort: Effort) -> Figures:
    """One connection for the latency, then several for the cost."""
    one = server.load(programs, connections=1, seconds=effort.seconds(0.5)).result
    many = server.load(programs, connections=UNARY_CONNECTIONS, seconds=effort.seconds(0.8))
    lag = metric_in(server.metrics(), LOOP_LAG) if server.command.is_gateway else None
    return {
        "us_per_request": many.us_per_request,
        "requests_per_second": many.result.done / many.result.seconds,
        "p50": _of(one.latency, "p50"),
        "p99": _of(one.latency, "p99"),
        "silence_p999": _of(many.result.silence, "p999"),
        "silence_max": _of(many.result.silence, "max"),
        "lag": None if lag is None else lag * 1e3,
        "errors": one.errors + many.result.errors,
    }


def _paced(effort: Effort) -> dict[str, float]:
    """One paced stream on each connection."""
    return {"seconds": 0, "tokens": effort.count(TOKENS, 5), "rate": RATE, "spread": SPREAD_US}


def measure_tokens(server: Server, programs: Programs, effort: Effort) -> Figures:
    """Streams at once: bursts one after another, then one paced stream on each connection."""
    burst = server.load(programs, connections=STREAMS, seconds=effort.seconds(0.6), tokens=TOKENS)
    paced = server.load(programs, connections=STREAMS, **_paced(effort))
    return {"us_per_burst_token": burst.us_per_token, **_of_paced(paced), "errors": _errors(burst, paced)}


def _of_paced(paced: Measured) -> Figures:
    return {
        "us_per_paced_token": paced.us_per_token,
        "delay_p50": _of(paced.result.delay, "p50"),
        "delay_p99": _of(paced.result.delay, "p99"),
        "jitter_p99": _of(paced.result.jitter, "p99"),
        "first_p99": _of(paced.result.first_token, "p99"),
    }


def _errors(*runs: Measured) -> int:
    return sum(run.result.errors for run in runs)


def measure_first_token(server: Server, programs: Programs, effort: Effort) -> Figures:
    """Streams on one connection, alone and beside many paced ones."""
    alone = _first_tokens(server, programs, effort.seconds(0.5))
    beside = server.start_load(programs, connections=STREAMS, **_paced(effort))
    time.sleep(effort.seconds(0.4))
    crowded = _first_tokens(server, programs, effort.seconds(1.0))
    others = wait_load(beside)
    return {
        "alone_p50": _of(alone.first_token, "p50"),
        "alone_p99": _of(alone.first_token, "p99"),
        "beside_p50": _of(crowded.first_token, "p50"),
        "beside_p99": _of(crowded.first_token, "p99"),
        "errors": alone.errors + crowded.errors + others.errors,
    }


def _first_tokens(server: Server, programs: Programs, seconds: float) -> LoadResult:
    return wait_load(server.start_load(programs, connections=1, seconds=seconds, tokens=TOKENS))


def measure_many(server: Server, programs: Programs, effort: Effort) -> Figures:
    """As many paced streams as a fleet of its size may have."""
    options = {**_paced(effort), "spread": MANY_SPREAD_US}
    paced = server.load(programs, connections=effort.count(MANY_STREAMS, 50), **options)
    return {"done": paced.result.done, **_of_paced(paced), "errors": _errors(paced)}


def measure_memory(server: Server, _programs: Programs, effort: Effort) -> Figures:
    """Of a fresh server: idle, with connections that have had one answer each, and after these have closed."""
    time.sleep(effort.seconds(SETTLE_SECONDS))
    idle = server.process.resident_bytes()
    count = effort.count(KEPT_CONNECTIONS, 20)
    connections = [_open_kept(server) for _ in range(count)]
    kept = server.process.resident_bytes()
    for each in connections:
        each.close()
    time.sleep(effort.seconds(SETTLE_SECONDS))
    after = server.process.resident_bytes()
    return {"idle": idle / 1e6, "per_connection": (kept - idle) / count / 1e3, "after": after / 1e6}


def _open_kept(server: Server) -> socket.socket:
    """A connection that has had its answer and stays open."""
    body = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"hello"}}],"max_tokens":1000}}'
    credential = f"authorization: Bearer {server.command.bearer}\r\n" if server.command.bearer else ""
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n{credential}content-type: application/json\r\n"
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=30)
    connection.sendall(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
    answer = connection.recv(65536)
    if not answer.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(f"{server.name} answered {answer[:200]!r}")
    return connection


SECTIONS: Final = (
    Section(
        "unary",
        f"Unary requests: CPU, throughput and stops with {UNARY_CONNECTIONS} connections, latency with one",
        measure_unary,
        (
            Column("CPU us/request", "us_per_request", 0),
            Column("requests/s", "requests_per_second", 0),
            Column("p50 ms", "p50"),
            Column("added p50 ms", "p50", above_direct=True),
            Column("added p99 ms", "p99", above_direct=True),
            Column("silence p99.9 ms", "silence_p999", 1),
            Column("longest ms", "silence_max", 1),
            Column("loop lag ms", "lag", 1),
            Column("errors", "errors", 0),
        ),
    ),
    Section(
        "tokens",
        f"{STREAMS} streams at once, as bursts and paced at {RATE} tokens/s",
        measure_tokens,
        (
            Column("CPU us/token, burst", "us_per_burst_token", 1),
            Column("paced", "us_per_paced_token", 1),
            Column("delay p50 ms", "delay_p50"),
            Column("p99 ms", "delay_p99"),
            Column("jitter p99 ms", "jitter_p99"),
            Column("errors", "errors", 0),
        ),
    ),
    Section(
        "first-token",
        f"Time to first token: alone, and beside {STREAMS} paced streams",
        measure_first_token,
        (
            Column("alone p50 ms", "alone_p50"),
            Column("added p50", "alone_p50", above_direct=True),
            Column("added p99", "alone_p99", above_direct=True),
            Column("beside p50 ms", "beside_p50"),
            Column("added p50", "beside_p50", above_direct=True),
            Column("added p99", "beside_p99", above_direct=True),
            Column("errors", "errors", 0),
        ),
    ),
    Section(
        "many",
        f"{MANY_STREAMS:,} streams at once, paced at {RATE} tokens/s",
        measure_many,
        (
            Column("finished", "done", 0),
            Column("CPU us/token", "us_per_paced_token", 1),
            Column("delay p50 ms", "delay_p50", 0),
            Column("p99 ms", "delay_p99", 0),
            Column("first token p99 ms", "first_p99", 0),
            Column("errors", "errors", 0),
        ),
    ),
    Section(
        "memory",
        f"Memory of a fresh server: idle, for each of {KEPT_CONNECTIONS} connections kept open, after they have closed",
        measure_memory,
        (
            Column("idle MB", "idle", 1),
            Column("kB/connection", "per_connection", 1),
            Column("after MB", "after", 1),
        ),
        fresh=True,
    ),
)
