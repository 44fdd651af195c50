"""How soon gateways of one fleet know what another one has written, and how soon another one leads."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Final

import httpx

from bench.report import print_table
from tests.integration.gateways import Gateways, wait_listening

WRITES: Final = 200
PAUSE_SECONDS: Final = 0.013
"""Between writes, so that they fall on all phases of whatever beats."""
WAIT_SECONDS_MAX: Final = 60.0


def measure_staleness(fleet: Gateways) -> None:
    """A model put at A: until A has answered, and from then on until B knows it. The same for taking it away."""
    one, other = (httpx.Client(base_url=each.url, timeout=10.0) for each in fleet.living.values())
    body = {"backend": "refuses", "max_replicas": 1}
    rows: dict[str, list[tuple[float, float]]] = {"put": [], "removed": []}
    with one, other:
        for name in (f"extra{number}" for number in range(WRITES // 2)):
            put, remove = partial(one.put, json=body), one.delete
            rows["put"].append(_time_write(partial(put, f"/api/models/{name}"), partial(_knows, other, name)))
            rows["removed"].append(_time_write(partial(remove, f"/api/models/{name}"), partial(_misses, other, name)))
    table = [[f"a model {what}", *_cells(each)] for what, each in rows.items()]
    print_table("A write at one gateway, ms", ["", "answer p50", "p99", "seen by the other p50", "p99"], table)


def _knows(client: httpx.Client, name: str) -> bool:
    return client.get(f"/v1/models/{name}").status_code == 200


def _misses(client: httpx.Client, name: str) -> bool:
    return not _knows(client, name)


def _time_write(write: Callable[[], httpx.Response], is_seen: Callable[[], bool]) -> tuple[float, float]:
    time.sleep(PAUSE_SECONDS)
    began = time.perf_counter()
    answer = write()
    assert answer.is_success, answer.text
    answered = time.perf_counter()
    _spin(is_seen)
    return answered - began, time.perf_counter() - answered


def _spin(look: Callable[[], object], pause_seconds: float = 0.0) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not look():
        assert time.monotonic() < deadline
        time.sleep(pause_seconds)


def _cells(times: list[tuple[float, float]]) -> list[str]:
    found = []
    for column in zip(*times, strict=True):
        ordered = sorted(column)
        found += [f"{median(ordered) * 1e3:.1f}", f"{ordered[int(len(ordered) * 0.99)] * 1e3:.1f}"]
    return found


def measure_takeover(fleet: Gateways, ttl_seconds: float, times: int) -> None:
    """From the death of the leader until another one says that it leads: killed, and told to end."""
    killed = [_time_takeover(fleet, fleet.kill_gateway) for _ in range(times)]
    terminated = [_time_takeover(fleet, lambda name: fleet.gateways[name].stop()) for _ in range(times)]
    rows = [
        [what, f"{min(each):.2f}", f"{median(each):.2f}", f"{max(each):.2f}"]
        for what, each in (("killed", killed), ("told to end", terminated))
    ]
    header = ["the leader was", "least", "median", "most"]
    print_table(f"Another one leads after, seconds; gateway_ttl = {ttl_seconds:g} s", header, rows)


def _time_takeover(fleet: Gateways, end: Callable[[str], object]) -> float:
    """Whoever ended is started again afterwards."""
    leader = fleet.wait_leader()
    time.sleep(1.0)
    began = time.perf_counter()
    end(leader)
    _spin(fleet.leader, 0.01)
    took = time.perf_counter() - began
    wait_listening(fleet.start_gateway(leader))
    fleet.wait_whole(WAIT_SECONDS_MAX)
    return took
