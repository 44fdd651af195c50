"""Real processes: 1, 2 and 4 gateways on one PostgreSQL, a worker, and an open load through all gateways alike.

Each number of gateways gets the same requests. `x oracle` compares with one queue for the whole fleet, computed for the
very same requests. What is measured on one machine for all processes says little by itself; the ratios say more.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from time import perf_counter, sleep
from typing import Final

import httpx
import psutil

from bench.early_binding import run_oracle
from bench.fleet_times import measure_staleness, measure_takeover
from bench.open_load import Address, Answer, by_pid, run_open_load
from bench.report import print_table
from bench.workload import WARM_UP, Setting
from tests.fakes.postgres_server import PostgresServer, open_postgres_server
from tests.integration.fleet import fleet_config
from tests.integration.gateways import SECRET, Gateways, running_gateways
from tests.integration.harness import ROOT

GATEWAYS: Final = ("a", "ab", "abcd")
REPLICAS: Final = 4
WORK_SECONDS: Final = 0.25
"""Of a mean request."""
IDLE_SECONDS: Final = 3.0
LOAD: Final = Setting(load=0.85, gateways=1, stale_seconds=0.02, seed=1, requests=1500, replicas=REPLICAS, spread=1.0)
KINDS: Final = {"refuses": "refuses when full", "queues": "can't refuse"}
TTLS: Final = (3.0, 15.0)

MODEL: Final = """
[backends.{name}]
command = [{python!r}, "-m", "bench.slot_backend"]
refuses_when_full = {refuses}
env = {{ PYTHONPATH = {root!r}, REFUSES = "{flag:d}" }}
[[models]]
name = "{name}"
backend = "{name}"
parallel = 4
min_replicas = {replicas}
max_replicas = {replicas}
"""


@dataclass(frozen=True)
class Cost:
    """What the gateways have used up to now, all together."""

    at: float
    cpu_seconds: float
    statements: float


def run_fleet(*, quick: bool) -> None:
    """Prints its tables; `quick` has fewer requests, and asks for the time of a takeover once."""
    base = replace(LOAD, requests=LOAD.requests // 4) if quick else LOAD
    with open_postgres_server() as server:
        rows: list[list[str]] = []
        costs: list[list[str]] = []
        for names in GATEWAYS:
            with _running(server, names) as fleet:
                costs.append(_idle_row(fleet))
                rows += (_load_row(fleet, kind, replace(base, gateways=len(names))) for kind in KINDS)
        _print(sorted(rows, key=lambda row: row[0].partition(", ")[2], reverse=True), costs)
        with _running(server, "ab") as fleet:
            measure_staleness(fleet)
        for ttl in TTLS[:1] if quick else TTLS:
            with _running(server, "abc", ttl) as fleet:
                measure_takeover(fleet, ttl, times=1 if quick else 4)


def _print(rows: list[list[str]], costs: list[list[str]]) -> None:
    print(f"\n{REPLICAS} replicas of 4 slots, {LOAD.load:.0%} load, {WORK_SECONDS * 1e3:.0f} ms of work in the mean.")
    header = [
        "fleet",
        "req/s",
        "mean ms",
        "p95 ms",
        "x oracle",
        "most/least",
        "refused/req",
        "inside",
        "sql/s",
        "us/req",
    ]
    title = (
        "By gateways: waits, busiest replica over least busy, waits inside a backend, statements and CPU per gateway"
    )
    print_table(title, header, rows)
    print_table("Without requests, of each gateway", ["", "sql/s", "CPU"], costs)


@contextmanager
def _running(server: PostgresServer, names: str, ttl_seconds: float = 15.0) -> Iterator[Gateways]:
    with (
        server.open_database() as url,
        tempfile.TemporaryDirectory() as folder,
        running_gateways(Path(folder), _config(url, ttl_seconds), names, "one") as fleet,
    ):
        for kind in KINDS:
            fleet.wait_serving(*["one"] * REPLICAS, model=kind)
        yield fleet


def _config(url: str, ttl_seconds: float) -> str:
    models = "".join(
        MODEL.format(
            name=name,
            python=sys.executable,
            root=str(ROOT),
            refuses=str(name == "refuses").lower(),
            flag=name == "refuses",
            replicas=REPLICAS,
        )
        for name in KINDS
    )
    registry = f'\n[registry]\nurl = "{url}"\ngateway_ttl = "{ttl_seconds:g}s"\n[log]\nlevel = "info"\n'
    worker = f"max_replicas_per_model = {REPLICAS}"
    return fleet_config(models + registry, auth=f'cluster_secret = "{SECRET}"', worker=worker)


def _load_row(fleet: Gateways, kind: str, setting: Setting) -> list[str]:
    urls = [httpx.URL(each.url) for each in fleet.living.values()]
    addresses = [Address(url.host, url.port or 0) for url in urls]
    before = _cost(fleet)
    answers = run_open_load(addresses, kind, setting, WORK_SECONDS)
    after = _cost(fleet)
    waits = sorted(answer.waited_seconds for answer in _counted(answers, setting))
    oracle = fmean(wait for each in run_oracle(setting).waits for wait in each) * WORK_SECONDS
    served = by_pid(answers)
    counts = [len(each) for each in served.values()] + [0] * (REPLICAS - len(served))
    refused = sum(max(answer.refused for answer in each) for each in served.values())
    inside = [answer for answer in answers if answer.inside_seconds > 1e-3]
    elapsed = after.at - before.at
    return [
        f"{len(addresses)} gateways, {KINDS[kind]}",
        f"{len(answers) / elapsed:.0f}",
        f"{fmean(waits) * 1e3:.1f}",
        f"{waits[int(len(waits) * 0.95)] * 1e3:.0f}",
        f"{fmean(waits) / oracle:.2f}",
        f"{max(counts) / max(1, min(counts)):.2f}",
        f"{refused / len(answers):.2f}",
        f"{len(inside) / len(answers):.1%}",
        f"{(after.statements - before.statements) / elapsed / len(addresses):.0f}",
        f"{(after.cpu_seconds - before.cpu_seconds) / len(answers) * 1e6:.0f}",
    ]


def _counted(answers: Sequence[Answer], setting: Setting) -> list[Answer]:
    return [answer for answer in answers if answer.job.number >= WARM_UP * setting.requests]


def _idle_row(fleet: Gateways) -> list[str]:
    sleep(IDLE_SECONDS)  # what starting up has set going is over
    before = _cost(fleet)
    sleep(IDLE_SECONDS)
    after, several = _cost(fleet), len(fleet.living)
    elapsed = (after.at - before.at) * several
    statements = (after.statements - before.statements) / elapsed
    cpu = (after.cpu_seconds - before.cpu_seconds) / elapsed
    return [f"{several} gateways", f"{statements:.1f}", f"{cpu:.1%}"]


def _cost(fleet: Gateways) -> Cost:
    gateways = list(fleet.living.values())
    times = [psutil.Process(each.process.pid).cpu_times() for each in gateways]
    statements = sum(each.metric_sum("gateway_registry_statements_total") for each in gateways)
    return Cost(perf_counter(), float(sum(each.user + each.system for each in times)), statements)
