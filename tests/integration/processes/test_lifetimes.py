"""Processes of one gateway that are killed, stopped and replaced: whose requests are lost, and who comes back."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final

import httpx
import psutil
import pytest

from tests.integration.fleet import DONE, Stream
from tests.integration.harness import PROGRAM, WAIT_SECONDS, environment, is_alive, running_gateway, wait_for
from tests.integration.processes.processes import (
    HELD_TOKENS,
    MODEL,
    Processes,
    processes_config,
    running_processes,
    serves_model,
)

PAUSE_SECONDS: Final = 0.1
"""Between two requests of a client."""
BODY: Final = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2})


@pytest.fixture
def processes(postgres_url: str, tmp_path: Path) -> Iterator[Processes]:
    with running_processes(tmp_path, processes_config(tmp_path, postgres_url)) as found:
        yield found


class Clients:
    """Clients that keep their connections idle between their requests, and neither look at them nor retry anything."""

    def __init__(self, url: str, count: int) -> None:
        self.answers: list[str] = []
        """The status of each answer, or the error."""
        self._address = url.removeprefix("http://")
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(count)]

    def _ask(self) -> None:
        with closing(HTTPConnection(self._address, timeout=WAIT_SECONDS)) as connection:
            while not self._enough.wait(PAUSE_SECONDS):
                try:
                    connection.request("POST", "/v1/chat/completions", BODY, {"content-type": "application/json"})
                    with connection.getresponse() as answer:
                        answer.read()
                        self.answers.append(str(answer.status))
                except (OSError, HTTPException) as error:
                    self.answers.append(repr(error))
                    connection.close()

    @contextmanager
    def asking(self) -> Iterator[None]:
        for each in self._threads:
            each.start()
        try:
            wait_for(lambda: len(self.answers) >= len(self._threads), "the first answers")
            yield
            before = len(self.answers)
            wait_for(lambda: len(self.answers) >= before + len(self._threads), "the last answers")
        finally:
            self._enough.set()
            for each in self._threads:
                each.join()

    def failures(self) -> list[str]:
        return [answer for answer in self.answers if answer != "200"]


def test_a_killed_process_loses_its_own_requests_only_and_comes_back(processes: Processes) -> None:
    before = processes.pids()
    kept, lost = (Stream(processes.asked(number), MODEL, tokens=HELD_TOKENS) for number in (0, 1))
    os.kill(before[1], signal.SIGKILL)
    for _ in range(10):
        assert processes.gateway.chat(MODEL).status_code == 200
    after = processes.wait_replaced(before, 1)
    assert after[0] == before[0]
    processes.open_gate()
    assert kept.result()[-1] == DONE
    with pytest.raises(httpx.HTTPError):
        lost.result()
    assert [event["how"] for event in processes.events("process.ended")] == ["was killed by SIGKILL"]
    assert processes.asked(1).chat(MODEL).status_code == 200


def test_the_embedded_worker_comes_back_with_its_process(processes: Processes) -> None:
    before = processes.pids()
    os.kill(before[0], signal.SIGKILL)
    after = processes.wait_replaced(before, 0)
    assert after[1] == before[1]
    wait_for(lambda: serves_model(processes.gateway.url), "the model to be loaded again")
    assert processes.gateway.chat(MODEL).status_code == 200
    below = {number: psutil.Process(pid).children(recursive=True) for number, pid in after.items()}
    assert {number: len(found) for number, found in below.items()} == {0: 1, 1: 0}
    assert len(processes.gateway.status()["nodes"]) == 1


def test_sigterm_drains_all_processes(processes: Processes) -> None:
    streams = [Stream(processes.asked(number), MODEL, tokens=HELD_TOKENS) for number in (0, 1)]
    pids = processes.pids()
    processes.gateway.send_signal(signal.SIGTERM)
    wait_for(lambda: len(processes.events("gateway.stopping")) == 2, "both processes to drain")
    with pytest.raises(httpx.ConnectError):
        processes.gateway.chat(MODEL)
    processes.open_gate()
    assert [stream.result()[-1] for stream in streams] == [DONE, DONE]
    assert processes.gateway.process.wait(WAIT_SECONDS) == 0
    assert not [pid for pid in pids.values() if is_alive(pid)]


def test_a_reload_replaces_one_process_after_the_other_and_loses_no_request(processes: Processes) -> None:
    before, clients = processes.pids(), Clients(processes.gateway.url, 4)
    with clients.asking():
        processes.gateway.send_signal(signal.SIGHUP)
        wait_for(lambda: processes.events("reload.done"), "the reload")
    assert clients.failures() == []
    after = processes.pids()
    assert set(after) == {0, 1}
    assert not set(after.values()) & set(before.values())
    events = [(each["event"], each.get("process")) for each in processes.all_events()]
    replaced = [event for event in events if event[0] in ("process.ready", "gateway.retiring")][2:]
    assert [name for name, _ in replaced] == ["gateway.retiring", "process.ready"] * 2
    assert processes.events("process.ended") == []


def test_a_configuration_that_does_not_load_is_not_reloaded(processes: Processes) -> None:
    before = processes.pids()
    path = processes.gateway.folder / "config.toml"
    config = path.read_text()
    reasons = {
        config.replace("gateway_ttl", "gateway_tttl"): "registry.gateway_tttl",
        f'server.data_dir = "elsewhere"\n{config}': "server.data_dir change only at a restart",
    }
    for number, (text, reason) in enumerate(reasons.items()):
        path.write_text(text)
        processes.gateway.send_signal(signal.SIGHUP)
        wait_for(lambda number=number: len(processes.events("reload.refused")) > number, "the refusal")  # type: ignore[misc]
        assert reason in processes.events("reload.refused")[number]["error"]
    assert processes.pids() == before
    assert processes.gateway.chat(MODEL).status_code == 200


def test_no_process_outlives_its_supervisor(processes: Processes) -> None:
    below = [child.pid for child in psutil.Process(processes.gateway.process.pid).children(recursive=True)]
    assert len(below) == 3
    processes.gateway.process.kill()
    wait_for(lambda: not [pid for pid in below if is_alive(pid)], "all processes to end")


def test_a_single_process_keeps_its_clients_waiting_while_it_is_replaced(tmp_path: Path) -> None:
    """The socket is the supervisor's: whoever connects meanwhile is served by the successor."""
    with running_processes(tmp_path, processes_config(tmp_path), 1) as processes:
        clients = Clients(processes.gateway.url, 2)
        with clients.asking():
            processes.gateway.send_signal(signal.SIGHUP)
            wait_for(lambda: processes.events("reload.done"), "the reload")
        assert clients.failures() == []
        assert "process=" not in processes.gateway.metrics()


@pytest.mark.parametrize("args", [(), ("--processes", "1")])
def test_systemd_hears_when_the_gateway_serves_and_when_it_stops(tmp_path: Path, args: tuple[str, ...]) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(WAIT_SECONDS)
        with running_gateway(tmp_path, args=args, env={"NOTIFY_SOCKET": str(tmp_path / "notify")}) as gateway:
            assert systemd.recv(100) == b"READY=1"
            assert httpx.get(f"{gateway.url}/readyz", timeout=WAIT_SECONDS).status_code == 200
            assert gateway.stop() == 0
        assert systemd.recv(100) == b"STOPPING=1"


def run(folder: Path, config: str, count: int) -> "subprocess.CompletedProcess[str]":
    folder.mkdir(exist_ok=True)
    (folder / "config.toml").write_text(config)
    command = [sys.executable, *PROGRAM, "serve", "--port", "0", "--processes", str(count)]
    return subprocess.run(
        command, cwd=folder, env=environment({}), capture_output=True, text=True, timeout=WAIT_SECONDS, check=False
    )


@pytest.mark.parametrize(("url", "kind"), [("", "sqlite"), ('[registry]\nurl = "memory:"\n', "memory")])
def test_a_registry_for_one_gateway_is_refused_for_several_processes(tmp_path: Path, url: str, kind: str) -> None:
    done = run(tmp_path, url, 2)
    assert done.returncode == 2
    assert done.stderr == (
        f"gateway: 2 processes need a registry that several gateways can share, and the {kind} registry serves one; "
        'set registry.url to "postgresql://..." or run one process\n'
    )
    assert not (tmp_path / "data").exists()


def test_a_process_that_does_not_start_ends_all_of_them(postgres_url: str, tmp_path: Path) -> None:
    with ExitStack() as held:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "process-1").touch()
        held.callback((tmp_path / "data" / "process-1").unlink)
        done = run(tmp_path, f'[registry]\nurl = "{postgres_url}"\n', 2)
    assert done.returncode == 1
    assert "the data folder data/process-1 can't be written" in done.stderr
    assert done.stderr.endswith("gateway: process 1 exited with code 1 before it was ready; see its lines above\n")
