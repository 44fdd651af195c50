"""Runs `gateway serve --processes N` over one PostgreSQL, and looks at its processes from outside."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import psutil

from tests.integration.gateways import model_table, scripted_backend
from tests.integration.harness import WAIT_SECONDS, GatewayProcess, is_alive, running_gateway, wait_for

MODEL: Final = "scripted"
SAID: Final = "good morning"
"""What the backend writes to its standard error."""
HELD_TOKENS: Final = 6
"""Of the longest answers, which wait for `GATE` before the last one; `chat` asks for fewer."""
GATE: Final = "gate"
SCRIPT: Final[dict[str, object]] = {
    "tokens": HELD_TOKENS,
    "hold_after_tokens": HELD_TOKENS - 1,
    "stderr": SAID,
    "slots": 8,
}
PLACE: Final = "--as-process"


def processes_config(folder: Path, registry: str = "") -> str:
    """For processes that run in `folder`; with SQLite unless there is the url of another registry."""
    backend = scripted_backend(MODEL, {**SCRIPT, "gate": str(folder / GATE)})
    table = model_table(MODEL, MODEL, "parallel = 8\nmin_replicas = 1\nmax_replicas = 1")
    url = f'url = "{registry}"\n' if registry else ""
    timing = f'[registry]\n{url}gateway_ttl = "6s"\nlease_sync_interval = "20ms"\n'
    return f"[routing]\nexpose_replica_header = true\n{timing}{backend}{table}"


class Processes:
    """One supervisor with its processes."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.gateway = gateway

    def pids(self) -> dict[int, int]:
        """The living processes: their pids by number."""
        children = psutil.Process(self.gateway.process.pid).children()
        return {place["number"]: child.pid for child in children if (place := _place_of(child)) and is_alive(child.pid)}

    def urls(self) -> list[str]:
        """The private addresses by number."""
        (child, *_) = psutil.Process(self.gateway.process.pid).children()
        place = _place_of(child)
        assert place
        return list(place["urls"])

    def open_gate(self) -> None:
        (self.gateway.folder / GATE).touch()

    def asked(self, number: int) -> GatewayProcess:
        """The gateway as one of its processes shows it."""
        return GatewayProcess(self.gateway.folder, self.gateway.process, self.urls()[number], self.gateway.lines)

    def know_each_other(self) -> bool:
        """Whether each process knows the addresses of all and which one leads."""
        known = [self.asked(number).status()["gateways"] for number in range(len(self.urls()))]
        addresses = [{each["url"] for each in one} for one in known]
        return all(each == set(self.urls()) for each in addresses) and all(
            sum(each["leader"] for each in one) == 1 for one in known
        )

    def served(self, path: str = "/v1/chat/completions") -> dict[int, int]:
        """How many requests each process has answered, by the metrics that any of them shows of all."""
        found: dict[int, int] = {}
        pattern = rf'^gateway_requests_total{{process="(\d+)",.*route="{path}"}} (\S+)$'
        for number, value in re.findall(pattern, self.gateway.metrics(), re.MULTILINE):
            found[int(number)] = found.get(int(number), 0) + int(float(value))
        return found

    def all_events(self) -> list[dict[str, Any]]:
        """What the supervisor and its processes have logged, oldest first."""
        return [json.loads(line) for line in tuple(self.gateway.lines) if line.startswith("{")]

    def events(self, name: str) -> list[dict[str, Any]]:
        """What has been logged under a name, oldest first."""
        return [event for event in self.all_events() if event["event"] == name]

    def wait_replaced(self, old: dict[int, int], *numbers: int) -> dict[int, int]:
        """Until other processes than before serve as these numbers."""
        known = set(old.values())

        def look() -> bool:
            ready = {event["pid"] for event in self.events("process.ready")}
            now = self.pids()
            return all(number in now and now[number] in ready - known for number in numbers)

        wait_for(look, f"the processes {numbers} to be replaced")
        return self.pids()


def _place_of(child: psutil.Process) -> dict[str, Any] | None:
    """None for a process that the launcher has not become yet, and for one that is gone."""
    try:
        command = child.cmdline()
    except psutil.NoSuchProcess:
        return None
    return json.loads(command[command.index(PLACE) + 1]) if PLACE in command else None


@contextmanager
def running_processes(folder: Path, config: str, count: int = 2, *args: str) -> Iterator[Processes]:
    """All serve, and the model is loaded."""
    with running_gateway(folder, config, args=("--processes", str(count), *args)) as gateway:
        processes = Processes(gateway)
        wait_for(lambda: serves_model(gateway.url), "the model to be loaded")
        wait_for(processes.know_each_other, "the processes to know each other")
        yield processes


def serves_model(url: str) -> bool:
    found = httpx.get(f"{url}/api/status", timeout=WAIT_SECONDS).json()["replicas"]
    return [each["state"] for each in found] == ["ready"]
