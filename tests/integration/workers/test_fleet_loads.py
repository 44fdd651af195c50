"""Many models on a few machines, with real workers: loads happen once, and every request gets its answer."""

from collections import Counter
from pathlib import Path

import httpx
import pytest
import trio

from tests.amounts import amounts_to_run
from tests.integration.fleet import Fleet, fleet_config, running_fleet
from tests.integration.harness import WAIT_SECONDS

MODELS = 10
SCRIPTED = "\n".join(
    f"""
[[models]]
name = "m{number}"
backend = "llama-cpp"
artifact = "builtin:tiny"
context_size = 1024
"""
    for number in range(MODELS)
)


async def ask_all(fleet: Fleet, requests: int) -> Counter[int]:
    """All requests at once, in turn for each of the models."""
    statuses: Counter[int] = Counter()
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=fleet.gateway.url, timeout=WAIT_SECONDS, limits=limits) as client:

        async def ask(number: int) -> None:
            body = {"model": f"m{number % MODELS}", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
            statuses[(await client.post("/v1/chat/completions", json=body)).status_code] += 1

        async with trio.open_nursery() as nursery:
            for number in range(requests):
                nursery.start_soon(ask, number)
    return statuses


@pytest.mark.parametrize("requests", amounts_to_run(1000, quick=200, variable="FIRST_REQUESTS"))
def test_l14_first_requests_for_ten_models_on_three_workers_are_ten_loads(tmp_path: Path, requests: int) -> None:
    with running_fleet(tmp_path, fleet_config(SCRIPTED), "one", "two", "three") as fleet:
        assert trio.run(ask_all, fleet, requests) == {200: requests}
        events = httpx.get(f"{fleet.gateway.url}/api/events?limit=1000", timeout=WAIT_SECONDS).json()["events"]
        assert sum(event["kind"] == "replica.placed" for event in events) == MODELS
        assert fleet.gateway.metric_sum("gateway_loads_total") == MODELS
        assert fleet.gateway.metric_sum("gateway_in_flight") == 0


def test_l17_a_minimum_is_restored_without_traffic_after_a_restart_of_everything(tmp_path: Path) -> None:
    floor = SCRIPTED.split("[[models]]")[1]
    config = fleet_config(f"[[models]]{floor}min_replicas = 2\nmax_replicas = 2\n")
    with running_fleet(tmp_path, config, "one", "two") as fleet:
        fleet.wait_serving("one", "two", model="m0")
        for worker in fleet.workers.values():
            worker.kill()
        fleet.kill_gateway()
        fleet.start_gateway_again()
        for name in ("one", "two"):
            fleet.add_worker(name)
        fleet.wait_serving("one", "two", model="m0")
