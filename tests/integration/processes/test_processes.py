"""A gateway of two processes at one port: it does not matter which of them is asked."""

from collections.abc import Iterator

import psutil
import pytest

from tests.fakes.postgres_server import PostgresServer
from tests.integration.harness import wait_for
from tests.integration.processes.processes import MODEL, Processes, processes_config, running_processes


@pytest.fixture(scope="module")
def processes(_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Processes]:
    with (
        _postgres.open_database() as url,
        running_processes(tmp_path_factory.mktemp("processes"), processes_config(url)) as found,
    ):
        yield found


def ask_until_both_have_answered(processes: Processes) -> None:
    """Each request comes over a connection of its own, which goes to whoever accepts it first."""

    def look() -> bool:
        assert processes.gateway.chat(MODEL).status_code == 200
        return set(processes.served()) == {0, 1}

    wait_for(look, "both processes to have answered")


def test_both_processes_answer_at_one_port(processes: Processes) -> None:
    ask_until_both_have_answered(processes)
    assert set(processes.pids()) == {0, 1}


def test_they_are_one_fleet_with_one_leader_and_one_embedded_worker(processes: Processes) -> None:
    for number in (0, 1):
        status = processes.asked(number).status()
        assert len(status["gateways"]) == 2
        assert sum(each["leader"] for each in status["gateways"]) == 1
        assert {each["url"] for each in status["gateways"]} == set(processes.urls())
        assert len(status["nodes"]) == 1
    backends = {number: psutil.Process(pid).children(recursive=True) for number, pid in processes.pids().items()}
    assert (len(backends[0]), backends[1]) == (1, [])
