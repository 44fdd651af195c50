"""Replicas are taken away by the gateway that leads while another one routes to them, again and again: nobody notices.

A round is a replica that was ready and is drained. TEST_ROUNDS=1000 in the environment makes it a thousand.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.amounts import amounts_to_run
from tests.fakes.postgres_server import PostgresServer
from tests.integration.gateways import (
    Gateways,
    Stopwatch,
    assert_one_leader_at_a_time,
    audit_trail,
    gateways_config,
    model_table,
    running_gateways,
    scripted_backend,
)
from tests.integration.harness import WAIT_SECONDS, GatewayProcess, wait_for
from tests.integration.steady_load import SteadyLoad, sampled

ROUNDS: Final = amounts_to_run(40, quick=10, variable="TEST_ROUNDS")
ROUND_SECONDS_MAX: Final = 12.0
"""Far above what one takes beside a busy neighbour."""
WORKERS: Final = {"one": "ab", "two": "ba"}
SCRIPT: Final = {"echo": True, "tokens": 1000, "token_interval": 0.01, "first_token_delay": 0.01, "slots": 4}
OWN: Final = scripted_backend("own", SCRIPT)
"""Refuses what comes while it drains."""
FOREIGN: Final = scripted_backend("foreign", SCRIPT).replace(" = true\n", " = false\n")
"""Does not know what draining is; nobody may send it anything once it is told to end."""
BACKENDS: Final = ("own", "foreign")
IDLE: Final = tuple(f"idle-{backend}-{number}" for backend in BACKENDS for number in range(2))
"""Asked now and then, and drained when they seem to be idle: just when the next request comes, now and then."""
BUSY: Final = tuple(f"busy-{backend}-{number}" for backend in BACKENDS for number in range(2))
"""Asked all the time, and unloaded again and again."""
MODELS: Final = (*IDLE, *BUSY)
SCALE_DOWN: Final = '\n[reconciler]\nscale_down_delay = "150ms"\n'
PAUSE_SECONDS_MAX: Final = 0.4


@dataclass
class Arena:
    fleet: Gateways
    server: PostgresServer
    url: str

    def rounds(self) -> Counter[str]:
        """How often a replica that was ready was drained, by model."""
        model_of, ready, found = dict[str, str](), set[str](), Counter[str]()
        for event in audit_trail(self.server, self.url):
            replica_id, detail = event["subject"], event["detail"]
            if event["kind"] == "replica.placed":
                model_of[replica_id] = detail.partition(" ")[0]
            elif event["kind"] == "replica.observed" and detail.endswith("-> ready"):
                ready.add(replica_id)
            elif (event["kind"], detail) == ("replica.desired", "run -> drain") and replica_id in ready:
                found[model_of[replica_id]] += 1
        return found

    def has_had(self, number: int) -> bool:
        rounds = self.rounds()
        return rounds.total() >= number and rounds.keys() == set(MODELS)

    def is_idle(self) -> bool:
        return not any(gateway.metric_sum("gateway_in_flight") for gateway in self.fleet.gateways.values())

    def unload_busy(self) -> None:
        """Those that are loaded, at the gateway that nobody asks."""
        with self.fleet.gateways["a"].client() as leader:
            for replica in leader.get("/api/replicas").json()["replicas"]:
                if replica["model"] in BUSY and (replica["state"], replica["desired"]) == ("ready", "run"):
                    leader.post(f"/api/models/{replica['model']}/unload").raise_for_status()


@pytest.fixture
def arena(postgres_server: PostgresServer, postgres_url: str, tmp_path: Path) -> Iterator[Arena]:
    tables = [model_table(name, name.split("-")[1], "parallel = 4") for name in MODELS]
    config = gateways_config(postgres_url, "".join([OWN, FOREIGN, *tables, SCALE_DOWN]), sync="20ms")
    with running_gateways(tmp_path, config, "ab", WORKERS) as fleet:
        yield Arena(fleet, postgres_server, postgres_url)


@pytest.mark.parametrize("number", ROUNDS)
def test_w11_no_request_is_cut_when_another_gateway_takes_its_replica_away(arena: Arena, number: int) -> None:
    """All requests go to the gateway that does not lead."""
    router = arena.fleet.gateways["b"]
    assert arena.fleet.leader() == "a"
    watch = Stopwatch()
    with ExitStack() as held:
        loads = [
            held.enter_context(
                SteadyLoad({"b": router}, name, name, 2 if name in BUSY else 1, (1, 4, 16), pause_seconds_max=pause)
            )
            for names, pause in ((IDLE, PAUSE_SECONDS_MAX), (BUSY, 0.0))
            for name in names
        ]
        held.enter_context(sampled(arena.unload_busy, 0.2))
        seconds = WAIT_SECONDS + number * ROUND_SECONDS_MAX
        wait_for(lambda: arena.has_had(number), f"{number} rounds, of every model", seconds)
    watch.say(f"{arena.rounds().total()} rounds and {sum(len(load.asked) for load in loads)} requests")
    print(dict(arena.rounds()), reroutes(router))  # noqa: T201
    assert [each for load in loads for each in load.unhappy()] == []
    assert arena.rounds().keys() == set(MODELS)
    wait_for(arena.is_idle, "the last request to be over")
    assert_one_leader_at_a_time(audit_trail(arena.server, arena.url))


def reroutes(gateway: GatewayProcess) -> list[str]:
    lines = httpx.get(f"{gateway.url}/metrics", timeout=WAIT_SECONDS).text.splitlines()
    return [line for line in lines if line.startswith("gateway_reroutes_total{")]
