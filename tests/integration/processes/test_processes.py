"""A gateway of two processes at one port: it does not matter which of them is asked."""

import re
from collections.abc import Iterator

import httpx
import psutil
import pytest

from tests.fakes.postgres_server import PostgresServer
from tests.integration.harness import WAIT_SECONDS, wait_for
from tests.integration.processes.processes import MODEL, SAID, Processes, processes_config, running_processes


@pytest.fixture(scope="module")
def processes(_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    folder = tmp_path_factory.mktemp("processes")
    with _postgres.open_database() as url, running_processes(folder, processes_config(folder, url)) as found:
        yield found


def test_both_processes_answer_at_one_port(processes: Processes) -> None:
    """Each request comes over a connection of its own, which goes to whoever accepts it first."""

    def look() -> bool:
        assert processes.gateway.chat(MODEL).status_code == 200
        return set(processes.served()) == {0, 1}

    wait_for(look, "both processes to have answered")


def test_they_are_one_fleet_with_one_leader_and_one_embedded_worker(processes: Processes) -> None:
    for number in (0, 1):
        status = processes.asked(number).status()
        assert len(status["gateways"]) == 2
        assert sum(each["leader"] for each in status["gateways"]) == 1
        assert {each["url"] for each in status["gateways"]} == set(processes.urls())
        assert len(status["nodes"]) == 1
    below = {number: psutil.Process(pid).children(recursive=True) for number, pid in processes.pids().items()}
    assert {number: len(found) for number, found in below.items()} == {0: 1, 1: 0}


@pytest.mark.parametrize("number", [0, 1])
def test_each_process_knows_what_only_another_one_has(processes: Processes, number: int) -> None:
    asked, other = processes.asked(number), processes.asked(1 - number)
    (replica,) = asked.status()["replicas"]
    with asked.client() as client:
        assert SAID in client.get(f"/api/replicas/{replica['id']}/logs").raise_for_status().text
        request = other.chat(MODEL).headers["x-request-id"]
        decision = client.get(f"/api/decisions/{request}").raise_for_status().json()
        assert decision["model"] == MODEL


@pytest.mark.parametrize("number", [0, 1])
def test_a_scrape_shows_the_series_of_all_processes(processes: Processes, number: int) -> None:
    for each in (0, 1):
        assert processes.asked(each).chat(MODEL).status_code == 200
    text = processes.asked(number).metrics()
    series = [line for line in text.splitlines() if not line.startswith("#")]
    assert [line for line in series if not re.match(r'\w+\{process="[01]"[,}]', line)] == []
    found = [set(re.findall(rf'^(\w+)\{{process="{each}"', text, re.MULTILINE)) for each in (0, 1)]
    assert found[0] >= {"gateway_requests_total", "gateway_in_flight", "gateway_is_leader", "gateway_process_up"}
    assert len(re.findall("^gateway_is_leader", text, re.MULTILINE)) == 2
    assert [processes.asked(number).metric(f'gateway_process_up{{process="{each}"}}') for each in (0, 1)] == [1, 1]
    heads = re.findall(r"^# TYPE (\w+)", text, re.MULTILINE)
    assert len(heads) == len(set(heads))


def test_a_scrape_leaves_a_process_out_that_does_not_answer(processes: Processes) -> None:
    stopped = psutil.Process(processes.pids()[1])
    stopped.suspend()
    try:
        text = processes.asked(0).metrics()
    finally:
        stopped.resume()
    assert 'gateway_process_up{process="0"} 1.0' in text
    assert 'gateway_process_up{process="1"} 0.0' in text
    assert re.findall(r'^gateway_is_leader\{process="(\d)"\}', text, re.MULTILINE) == ["0"]


def test_the_private_address_asks_for_the_same_credentials(processes: Processes) -> None:
    """The public one is tested in `tests/integration/api`; on this machine, other hosts are what both refuse."""
    for url in (processes.gateway.url, *processes.urls()):
        answer = httpx.get(f"{url}/api/status", headers={"host": "evil.example"}, timeout=WAIT_SECONDS)
        assert answer.status_code == 403, answer.text
