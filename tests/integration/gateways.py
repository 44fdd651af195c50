"""Runs several real gateways over one PostgreSQL database, with real workers, and looks at them from outside."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import httpx

from tests.fakes.postgres_server import PostgresServer
from tests.integration.fleet import WorkerProcess, fleet_config, start_worker, wait_joined
from tests.integration.harness import (
    ROOT,
    START_SECONDS,
    WAIT_SECONDS,
    GatewayProcess,
    environment,
    patched,
    start_gateway,
    wait_for,
)

NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})
TTL_SECONDS: Final = 6.0
"""After which a gateway that says nothing counts as dead: a busy machine leaves one without a processor for seconds."""
SECRET: Final = "the-secret-of-the-fleet-of-gateways"
ANOTHER_CLOCK: Final = """
import time
now, now_ns = time.time, time.time_ns
time.time = lambda: now() + {seconds}
time.time_ns = lambda: now_ns() + {seconds} * 10**9
"""
"""What makes the clock of a machine wrong, as far as Python code can tell; for `patched`."""


def gateways_config(registry: str, models: str, /, sync: str = "50ms", **lines: str) -> str:
    """For gateways and workers alike; `lines` as those of `fleet_config`, `sync` is how often gateways tell each other
    of their requests."""
    auth = f'cluster_secret = "{SECRET}"\n{lines.pop("auth", "")}'
    common = fleet_config(models, auth=auth, **lines)
    return (
        f'{common}\n[registry]\nurl = "{registry}"\ngateway_ttl = "{TTL_SECONDS:g}s"\nlease_sync_interval = "{sync}"\n'
    )


def scripted_backend(name: str, script: Mapping[str, object], log: Path | None = None) -> str:
    """A `[backends]` section; it refuses what it has no slot for and drains on SIGTERM, as ours do. `log` gets its
    events (`events_in`)."""
    env = {"SCRIPT": json.dumps(script), **({"SCRIPT_LOG": str(log)} if log else {})}
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in env.items())
    command = json.dumps([sys.executable, "-m", "tests.fakes.scripted_backend"])
    flags = "refuses_when_full = true\ndrains_on_term = true"
    return f"\n[backends.{name}]\ncommand = {command}\n{flags}\n[backends.{name}.env]\n{lines}\n"


def model_table(name: str, backend: str, lines: str = "", artifact: str = "") -> str:
    """A `[[models]]` entry; a scripted backend never reads the artifact."""
    file = json.dumps(artifact or f"file:{ROOT / 'pyproject.toml'}")
    return f'\n[[models]]\nname = "{name}"\nbackend = "{backend}"\nartifact = {file}\n{lines}\n'


@dataclass
class Gateways:
    """Gateways and workers of one fleet by their names, each in a folder of its own. All are killed at the end."""

    folder: Path
    config: str
    held: ExitStack
    registries: Mapping[str, str] = field(default_factory=dict)
    """Urls of the registry, of those gateways that have one of their own."""
    patches: Mapping[str, str] = field(default_factory=dict)
    """Code that those gateways run before they begin."""
    gateways: dict[str, GatewayProcess] = field(default_factory=dict)
    """Also those that were killed."""
    workers: dict[str, WorkerProcess] = field(default_factory=dict)

    # Processes

    def start_gateway(self, name: str, *, config: str = "") -> GatewayProcess:
        """Without waiting for it. One whose name was there before is at its old address. `config`: one of its own."""
        known, registry = self.gateways.get(name), self.registries.get(name)
        gateway = start_gateway(
            self.folder / f"gateway-{name}",
            config or self.config,
            args=("--port", str(httpx.URL(known.url).port)) if known else (),
            env={"GATEWAY_REGISTRY__URL": registry} if registry else None,
            program=patched(self.patches.get(name, "")),
        )
        self.held.callback(_end, gateway)
        self.gateways[name] = gateway
        return gateway

    def add_gateway(self, name: str) -> GatewayProcess:
        gateway = self.start_gateway(name)
        wait_listening(gateway)
        return gateway

    def kill_gateway(self, name: str) -> None:
        self.gateways[name].process.kill()
        self.gateways[name].process.wait()

    def start_worker(self, name: str, *join: str) -> WorkerProcess:
        """Without waiting for it. It knows the gateways named `join` in this order; all of them unless told."""
        urls = ",".join(self.gateways[each].url for each in join or self.gateways)
        worker = start_worker(self.folder / name, name, urls, config=self.config)
        self.held.callback(worker.kill)
        self.workers[name] = worker
        return worker

    def add_worker(self, name: str, *join: str) -> WorkerProcess:
        worker = self.start_worker(name, *join)
        wait_joined(worker)
        return worker

    @property
    def living(self) -> dict[str, GatewayProcess]:
        return {name: each for name, each in self.gateways.items() if each.process.poll() is None}

    # What they say

    def id_of(self, name: str) -> str:
        """Of a gateway that lives."""
        own, *_ = self.gateways[name].status()["gateways"]
        return str(own["id"])

    def leader(self) -> str:
        """The name of the one that leads, by what each says of itself; empty if there is none. Fails on two."""
        leading = [name for name, gateway in self.living.items() if gateway.metric("gateway_is_leader")]
        assert len(leading) <= 1, leading
        return leading[0] if leading else ""

    def wait_leader(self, seconds: float = WAIT_SECONDS) -> str:
        return wait_for(self.leader, "a gateway to lead", seconds)

    def wait_whole(self, seconds: float = WAIT_SECONDS) -> None:
        wait_for(self.is_whole, "the gateways to know each other", seconds)

    def is_whole(self) -> bool:
        """Every gateway that lives knows those that live and no other, one of which leads."""
        known = [gateway.status()["gateways"] for gateway in self.living.values()]
        ids = {each[0]["id"] for each in known}
        return all({one["id"] for one in each} == ids and sum(one["leader"] for one in each) == 1 for each in known)

    def holders(self) -> dict[str, str]:
        """Which gateway has let a worker in last, by the worker's own words: names by the worker's name."""
        names = {gateway.url: name for name, gateway in self.gateways.items()}
        return {name: names[_joined_at(worker)] for name, worker in self.workers.items() if worker.joins}

    def candidates(self, gateway: str, model: str) -> dict[str, str]:
        """What that gateway would choose from: node names by replica id."""
        explained = httpx.post(
            f"{self.gateways[gateway].url}/api/explain", json={"model": model}, timeout=WAIT_SECONDS
        ).json()
        return {each["replica"]: each["node"] for each in explained["candidates"]}

    def wait_serving(self, *nodes: str, model: str, seconds: float = START_SECONDS) -> dict[str, str]:
        """Until every gateway that lives would choose from one replica on each node and no other; their nodes by id."""

        def look() -> dict[str, str] | None:
            found = [self.candidates(name, model) for name in self.living]
            same = all(each == found[0] and sorted(each.values()) == sorted(nodes) for each in found)
            return found[0] if same else None

        found = wait_for(look, f"{model} to be served by {nodes} and nobody else", seconds)
        assert found is not None
        return found

    def wait_idle(self, model: str, seconds: float = WAIT_SECONDS) -> None:
        """Until no gateway that lives has, or knows of, an open request."""

        def look() -> bool:
            return all(
                gateway.metric_sum("gateway_in_flight") == 0 and gateway.model(model)["in_flight"] == 0
                for gateway in self.living.values()
            )

        wait_for(look, "the last request to be over", seconds)

    def command(self, gateway: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """`gateway ARGUMENTS` with that gateway."""
        return subprocess.run(
            [sys.executable, "-m", "gateway", *arguments],
            cwd=self.folder,
            env=environment({"GATEWAY_URL": self.gateways[gateway].url}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
            check=False,
        )


@contextmanager
def running_gateways(
    folder: Path,
    config: str,
    names: Sequence[str],
    workers: Mapping[str, Sequence[str]],
    *,
    registries: Mapping[str, str] = NOTHING,
    patches: Mapping[str, str] = NOTHING,
) -> Iterator[Gateways]:
    """Gateways of those names, the first of which leads, and workers that know those gateways, in that order. All have
    joined."""
    with ExitStack() as held:
        fleet = Gateways(folder, config, held, registries, patches)
        fleet.add_gateway(names[0])
        for gateway in [fleet.start_gateway(name) for name in names[1:]]:
            wait_listening(gateway)
        for worker in [fleet.start_worker(name, *join) for name, join in workers.items()]:
            wait_joined(worker)
        fleet.wait_whole()
        yield fleet


def wait_listening(gateway: GatewayProcess) -> None:
    wait_for(lambda: gateway.url or gateway.process.poll() is not None, "the gateway to listen", START_SECONDS)
    assert gateway.url, f"the gateway did not start:\n{gateway.log}"


def _end(gateway: GatewayProcess) -> None:
    gateway.process.kill()
    gateway.process.wait()


def _joined_at(worker: WorkerProcess) -> str:
    joined = [line for line in worker.lines if '"event": "worker.joined"' in line]
    return str(json.loads(joined[-1])["url"])


def audit_trail(server: PostgresServer, url: str) -> list[dict[str, Any]]:
    """In the order of the commits."""
    fields = ", ".join(f"'{each}', {each}" for each in ("at", "kind", "subject", "detail", "epoch"))
    return [json.loads(line) for line in server.ask(url, f"SELECT json_build_object({fields}) FROM events ORDER BY id")]


def assert_one_leader_at_a_time(events: list[dict[str, Any]]) -> list[int]:
    """By the audit trail: terms follow each other, and what was planned was
    planned in the term that was. The epochs of the terms that it tells of.

    It has to begin with the first term.
    """
    epochs = [0]
    for event in events:
        if event["kind"] == "gateway.leads":
            assert event["detail"] == f"epoch {epochs[-1] + 1}", event
            epochs.append(epochs[-1] + 1)
        elif event["epoch"] is not None:
            assert event["epoch"] == epochs[-1], event
    return epochs[1:]


class Stopwatch:
    """What took how long, for those who run the tests with `-s`; nothing is asserted of it."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def say(self, what: str) -> None:
        print(f"{what} after {self.seconds:.2f} s")  # noqa: T201

    def wait(self, look: Callable[[], object], what: str, seconds: float = WAIT_SECONDS) -> None:
        wait_for(look, what, seconds)
        self.say(what)
