"""Real processes: 1, 2 and 4 gateways on one PostgreSQL, a worker, and an open load through all gateways alike.

Each number of gateways gets the same requests; the oracle is one queue for the whole fleet, computed for the very same.
Milliseconds are those of a machine that runs everything, clients and database included: `x one` gateway says more.
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
WORK_SECONDS: Final = 0.5
"""Of a mean request."""
IDLE_SECONDS: Final = 3.0
INSIDE_SECONDS: Final = 0.002
"""A shorter wait inside a backend is its own way to a free slot."""
LOAD: Final = Setting(load=0.85, gateways=1, stale_seconds=0.02, seed=4, requests=800, replicas=REPLICAS, spread=1.0)
"""With a seed that draws neither much more nor much less work than the load says."""
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


@dataclass(frozen=True)
class Run:
    """One kind of backends behind one number of gateways."""

    gateways: int
    kind: str
    requests_per_second: float
    mean_seconds: float
    """What requests waited beyond their work."""
    p95_seconds: float
    oracle_seconds: float
    unevenness: float
    """Requests of the busiest replica over those of the least busy."""
    refused: float
    """Calls per request."""
    inside: float
    """The share of the requests that waited inside a backend."""
    statements: float
    """Per second and gateway."""
    cpu_seconds: float
    """Of all gateways, per request."""

    def row(self, alone: "Run") -> list[str]:
        """`alone`: the same with one gateway."""
        return [
            f"{self.gateways}, {KINDS[self.kind]}",
            f"{self.requests_per_second:.0f}",
            f"{self.mean_seconds * 1e3:.1f} / {self.p95_seconds * 1e3:.0f}",
            f"{self.mean_seconds / alone.mean_seconds:.2f} / {self.p95_seconds / alone.p95_seconds:.2f}",
            f"{self.oracle_seconds * 1e3:.1f}",
            f"{self.unevenness:.2f}",
            f"{self.refused:.2f}",
            f"{self.inside:.1%}",
            f"{self.statements:.0f}",
            f"{self.cpu_seconds * 1e6:.0f}",
            f"{self.cpu_seconds / alone.cpu_seconds:.2f}",
        ]


HEADER: Final = ("gateways", "req/s", "mean / p95 ms", "x one", "oracle ms", "uneven", "refused", "inside", "sql/s")


def run_fleet(*, quick: bool) -> None:
    """Prints its tables; `quick` has fewer requests, and asks for the time of a takeover once."""
    base = replace(LOAD, requests=LOAD.requests // 4) if quick else LOAD
    with open_postgres_server() as server:
        runs: list[Run] = []
        idle: list[list[str]] = []
        for names in GATEWAYS:
            with _running(server, names) as fleet:
                idle.append(_idle_row(fleet))
                runs += (_run(fleet, kind, replace(base, gateways=len(names))) for kind in KINDS)
        _print(runs, idle)
        with _running(server, "ab") as fleet:
            measure_staleness(fleet)
        for ttl in TTLS[:1] if quick else TTLS:
            with _running(server, "abc", ttl) as fleet:
                measure_takeover(fleet, ttl, times=1 if quick else 4)


def _print(runs: list[Run], idle: list[list[str]]) -> None:
    print(f"\n{REPLICAS} replicas of 4 slots, {LOAD.load:.0%} load, {WORK_SECONDS * 1e3:.0f} ms of work in the mean.")
    print("uneven: requests of the busiest replica over those of the least busy; refused: calls per request; inside:")
    print("share of requests that waited in a backend; sql/s: of each gateway; us/req: CPU of all gateways.")
    alone = {run.kind: run for run in runs if run.gateways == 1}
    rows = [run.row(alone[kind]) for kind in KINDS for run in runs if run.kind == kind]
    print_table("What requests waited beyond their work", [*HEADER, "us/req", "x one"], rows)
    print_table("Without requests, of each gateway", ["", "sql/s", "CPU"], idle)


@contextmanager
def _running(server: PostgresServer, names: str, ttl_seconds: float = 15.0) -> Iterator[Gateways]:
    with (
        server.open_database() as url,
        tempfile.TemporaryDirectory() as folder,
        running_gateways(Path(folder), _config(url, ttl_seconds), names, {"one": list(names)}) as fleet,
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


def _run(fleet: Gateways, kind: str, setting: Setting) -> Run:
    urls = [httpx.URL(each.url) for each in fleet.living.values()]
    addresses = [Address(url.host, url.port or 0) for url in urls]
    before = _cost(fleet)
    answers = run_open_load(addresses, kind, setting, WORK_SECONDS)
    after = _cost(fleet)
    waits = sorted(answer.waited_seconds for answer in _counted(answers, setting))
    served = by_pid(answers)
    counts = [len(each) for each in served.values()] + [0] * (REPLICAS - len(served))
    refused = sum(max(answer.refused for answer in each) for each in served.values())
    inside = sum(answer.inside_seconds > INSIDE_SECONDS for answer in answers)
    elapsed = after.at - before.at
    return Run(
        gateways=len(addresses),
        kind=kind,
        requests_per_second=len(answers) / elapsed,
        mean_seconds=fmean(waits),
        p95_seconds=waits[int(len(waits) * 0.95)],
        oracle_seconds=fmean(wait for each in run_oracle(setting).waits for wait in each) * WORK_SECONDS,
        unevenness=max(counts) / max(1, min(counts)),
        refused=refused / len(answers),
        inside=inside / len(answers),
        statements=(after.statements - before.statements) / elapsed / len(addresses),
        cpu_seconds=(after.cpu_seconds - before.cpu_seconds) / len(answers),
    )


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
