"""Starting, starting again, not starting, and what the command line says about it."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest

from tests.integration.harness import (
    ROOT,
    WAIT_SECONDS,
    GatewayProcess,
    RawClient,
    chat_request,
    events_in,
    is_alive,
    running_gateway,
    scripted_config,
    silent_port,
    start_gateway,
    wait_for,
)

ADMIN_KEY: Final = "sk-admin-0123456789abcdef"
APP_KEY: Final = "sk-inference-0123456789abcdef"
KEYS: Final = f"""
[auth]
api_keys = [
  {{ name = "boss", key = "{ADMIN_KEY}", role = "admin" }},
  {{ name = "app", key = "{APP_KEY}" }},
]
"""


def test_h13_a_killed_gateway_starts_again_and_serves(tmp_path: Path) -> None:
    log = tmp_path / "events"
    config = scripted_config({"tokens": 100_000, "token_interval": 0.02}, log=log)
    with running_gateway(tmp_path, config) as first, RawClient(first) as raw:
        raw.send(chat_request("scripted"))
        raw.read_until(b"tok3 ")
        first.send_signal(signal.SIGKILL)
        first.process.wait()
    with running_gateway(tmp_path) as second:
        assert second.status()["replicas"] == []  # a row of the first life would be a lie
        assert second.chat("scripted", max_tokens=2).status_code == 200
        old, new = [event["pid"] for event in events_in(log, "start")]
        assert second.backend_pids() == [new]
        assert not is_alive(old)


def test_h13_a_backend_that_ignores_every_hint_ends_with_its_gateway(tmp_path: Path) -> None:
    log = tmp_path / "events"
    stubborn = {"ignore_stdin": True, "ignore_term": True, "load_delay": 600}
    with running_gateway(tmp_path, scripted_config(stubborn, log=log)) as first, RawClient(first) as raw:
        raw.send(chat_request("scripted"))
        (old,) = wait_for(lambda: events_in(log, "LoadModel"), "the load to begin")
        first.send_signal(signal.SIGKILL)
        first.process.wait()
        wait_for(lambda: not is_alive(old["pid"]), "the backend to be gone")
    with running_gateway(tmp_path, scripted_config({}, log=log)) as second:
        assert second.chat("scripted").status_code == 200
        assert second.backend_pids() == [events_in(log, "start")[1]["pid"]]


def test_a_second_gateway_on_one_registry_says_why_and_ends(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as first:
        second = ended(start_gateway(tmp_path))
        assert second.process.returncode == 1
        (line,) = second.lines
        assert "data/registry.db" in line
        assert f"pid {first.process.pid}" in line
        assert first.chat().status_code == 200


def test_a_taken_port_ends_the_start_with_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        gateway = ended(start_gateway(tmp_path, args=("--port", str(port))))
    assert gateway.process.returncode == 1
    (line,) = gateway.lines
    assert f"127.0.0.1:{port}" in line
    assert "in use" in line


def test_an_unusable_data_folder_ends_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    gateway = ended(start_gateway(tmp_path, '[server]\ndata_dir = "file/data"\n'))
    assert gateway.process.returncode == 1
    (line,) = gateway.lines
    assert "file/data" in line
    assert "server.data_dir" in line


BROKEN: Final = """
[server]
port = "eighty"
colour = "red"
[routing]
load_wait = "soon"
[[models]]
name = "m"
backend = "nobody"
artifact = "builtin:tiny"
"""


def test_a_broken_configuration_ends_the_start_with_every_problem(tmp_path: Path) -> None:
    gateway = ended(start_gateway(tmp_path, BROKEN))
    assert gateway.process.returncode == 2
    problems = ("server.colour", "routing.load_wait", "models[0].backend")
    assert [problem for problem in problems if problem not in gateway.log] == []
    assert "Traceback" not in gateway.log


def test_check_config_prints_ok_or_every_problem_with_its_line(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[server]\nport = 9000\n")
    bad.write_text(BROKEN)
    passed = run_command(tmp_path, "check-config", str(good))
    assert (passed.returncode, passed.stdout, passed.stderr) == (0, "ok\n", "")
    failed = run_command(tmp_path, "check-config", str(bad))
    assert (failed.returncode, failed.stdout) == (2, "")
    lines = failed.stderr.splitlines()
    places = ("bad.toml:3: server.port", "bad.toml:4: server.colour", "bad.toml:6: routing.load_wait")
    assert [place for place in (*places, "bad.toml:9: models[0].backend") if place not in failed.stderr] == []
    assert len(lines) == 4
    missing = run_command(tmp_path, "check-config", "nowhere.toml")
    assert missing.returncode == 2
    assert "nowhere.toml" in missing.stderr


def test_the_environment_sets_keys_of_the_configuration(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        refused = run_command(tmp_path, "serve", env={"GATEWAY_SERVER__PORT": port})
    assert refused.returncode == 1
    assert f"127.0.0.1:{port}" in refused.stderr
    unknown = run_command(tmp_path, "check-config", env={"GATEWAY_SERVER__COLOUR": "red"})
    assert unknown.returncode == 2
    assert "GATEWAY_SERVER__COLOUR" in unknown.stderr


CHANGES_BY_ITSELF: Final = frozenset({"age", "ram_free_bytes", "disk_free_bytes", "vram_free_bytes"})


def _lasting(document: object) -> object:
    """Without what changes by itself between two looks: time passes, and others use the machine."""
    match document:
        case dict():
            return {key: _lasting(value) for key, value in document.items() if key not in CHANGES_BY_ITSELF}
        case list():
            return [_lasting(value) for value in document]
        case _:
            return document


def test_status_shows_the_fleet_as_tables_and_as_json(tmp_path: Path) -> None:
    with running_gateway(tmp_path) as gateway:
        assert gateway.chat().status_code == 200
        table = run_command(tmp_path, "status", "--url", gateway.url)
        assert table.returncode == 0
        (pid,) = gateway.backend_pids()
        gateways, nodes, models, replicas = table.stdout.split("\n\n")
        assert {"ID", "LEADER", "URL", gateway.url} <= set(gateways.split())
        assert {"NAME", "STATUS", "RAM", "healthy"} <= set(nodes.split())
        assert {"NAME", "READY", "QUEUED", "tiny", "ready"} <= set(models.split())
        assert {"MODEL", "STATE", "PID", "tiny", "ready", str(pid)} <= set(replicas.split())
        as_json = run_command(tmp_path, "status", "--json", env={"GATEWAY_URL": gateway.url})
        assert _lasting(json.loads(as_json.stdout)) == _lasting(gateway.status())


def test_status_of_no_gateway_is_one_line(tmp_path: Path) -> None:
    with silent_port() as port:
        url = f"http://127.0.0.1:{port}"
        asked = run_command(tmp_path, "status", "--url", url)
    assert (asked.returncode, asked.stdout) == (1, "")
    (line,) = asked.stderr.splitlines()
    assert url in line


def test_status_of_a_gateway_with_keys_asks_for_one(tmp_path: Path) -> None:
    with running_gateway(tmp_path, KEYS) as gateway:
        for given, said in (("", "key"), ("sk-wrong", "key"), (APP_KEY, "the role 'admin'")):
            refused = run_command(tmp_path, "status", "--url", gateway.url, env={"GATEWAY_API_KEY": given})
            assert (refused.returncode, refused.stdout) == (1, "")
            (line,) = refused.stderr.splitlines()
            assert said in line
            assert not given or given not in line
        assert run_command(tmp_path, "status", "--url", gateway.url, "--api-key", ADMIN_KEY).returncode == 0
        assert ADMIN_KEY not in gateway.log


@pytest.mark.parametrize("arguments", [["status", "--no-such-option"], ["dance"]])
def test_bad_usage_exits_2(tmp_path: Path, arguments: list[str]) -> None:
    asked = run_command(tmp_path, *arguments)
    assert asked.returncode == 2
    assert "usage: gateway" in asked.stderr


def ended(gateway: GatewayProcess) -> GatewayProcess:
    """Waits for a gateway that can't start. What it said is read to its end."""
    gateway.process.wait(WAIT_SECONDS)
    wait_for(lambda: gateway.process.stderr is not None and gateway.process.stderr.closed, "its last words")
    return gateway


def run_command(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
        check=False,
    )
