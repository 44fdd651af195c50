"""What a gateway tells of its decisions, over HTTP and on the command line, and to whom."""

import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx
import pytest

from tests.integration.harness import ROOT, GatewayProcess, running_gateway, scripted_config
from tests.integration.pool import ready, replica_of, running_pool, unload

KEYS: Final = """
[[auth.api_keys]]
name = "user"
key = "sk-user"
[[auth.api_keys]]
name = "admin"
key = "sk-admin"
role = "admin"
"""


@pytest.mark.parametrize("stream", [False, True])
def test_headers_name_the_replica_only_when_they_are_asked_for(tmp_path: Path, stream: bool) -> None:
    with running_gateway(tmp_path, scripted_config({"tokens": 1})) as gateway:
        answer = gateway.chat("scripted", stream=stream)
        assert answer.status_code == 200
        assert not [name for name in answer.headers if name.startswith("x-gateway")]


def test_what_would_happen_is_explained(tmp_path: Path) -> None:
    with running_pool(tmp_path, {"tokens": 1}) as gateway, gateway.client() as client:
        longest_unused, latest = (replica_of(gateway.chat("scripted")) for _ in range(2))
        explained = client.post("/api/explain", json={"model": "scripted"}).json()
        assert explained["chosen"] == longest_unused
        assert [(each["replica"], each["verdict"]) for each in explained["candidates"]] == [
            (longest_unused, "chosen"),
            (latest, "used more recently"),
        ]
        assert (explained["queued"], explained["not_routable"]) == (0, {})
        first, *table = explain(gateway, "scripted")
        assert first == f"a request for scripted would go to {longest_unused}"
        assert len([line for line in table if longest_unused in line or latest in line]) == 2
        assert replica_of(gateway.chat("scripted")) == longest_unused


def test_what_happened_is_shown_attempt_by_attempt(tmp_path: Path) -> None:
    with running_pool(tmp_path, {"tokens": 1, "check_loaded": True}) as gateway, gateway.client() as client:
        forgetful, other = ready(gateway).values()
        unload(forgetful)
        rerouted = chat_until_rerouted(client)
        decision = client.get(f"/api/decisions/{rerouted}").json()
        assert (decision["request_id"], decision["model"], decision["caller"]) == (rerouted, "scripted", "local")
        first, second = decision["attempts"]
        assert (first["replica"], first["outcome"]) == (forgetful["id"], "stale")
        assert (second["replica"], second["outcome"], second["node"]) == (other["id"], "served", "box")
        assert first["candidates"][0]["verdict"] == "chosen"

        lines = explain(gateway, "--request", rerouted)
        assert lines[0] == f"request {rerouted} of local for scripted"
        attempts = [line for line in lines if line[:2] in ("1.", "2.")]
        assert [word in line for word, line in zip(("stale", "served"), attempts, strict=True)] == [True, True]


def chat_until_rerouted(client: httpx.Client) -> str:
    """The id of the request that met the replica which had unloaded its model; the first or the second."""
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    for name in ("one", "two"):
        headers = {"x-request-id": name}
        assert client.post("/v1/chat/completions", json=body, headers=headers).status_code == 200
        if len(client.get(f"/api/decisions/{name}").json()["attempts"]) > 1:
            return name
    raise AssertionError("no request met it")


def explain(gateway: GatewayProcess, *arguments: str, exit_code: int = 0) -> list[str]:
    """The lines of `gateway explain`."""
    command = [sys.executable, "-m", "gateway", "explain", "--url", gateway.url, *arguments]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == exit_code, ended.stderr
    return (ended.stdout if exit_code == 0 else ended.stderr).splitlines()


def test_what_is_not_known_can_not_be_explained(tmp_path: Path) -> None:
    with running_gateway(tmp_path, scripted_config({"tokens": 1})) as gateway, gateway.client() as client:
        unknown = client.post("/api/explain", json={"model": "nope"})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "model_not_found")
        forgotten = client.get("/api/decisions/nope")
        assert (forgotten.status_code, forgotten.json()["error"]["code"]) == (404, "not_found")
        assert client.post("/api/explain", json={}).status_code == 400
        (line,) = explain(gateway, "nope", exit_code=1)
        assert "nope" in line
        (line,) = explain(gateway, "--request", "nope", exit_code=1)
        assert "nope" in line
        cold = client.post("/api/explain", json={"model": "scripted"}).json()
        assert (cold["chosen"], cold["candidates"]) == (None, [])
        assert gateway.backend_pids() == []  # asking starts nothing


def test_decisions_are_for_admins(tmp_path: Path) -> None:
    with running_gateway(tmp_path, scripted_config({"tokens": 1}, more=KEYS)) as gateway:
        with gateway.client("sk-user") as client:
            body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
            assert client.post("/v1/chat/completions", json=body, headers={"x-request-id": "mine"}).status_code == 200
            assert client.get("/api/decisions/mine").status_code == 403
            assert client.post("/api/explain", json={"model": "scripted"}).status_code == 403
        with gateway.client("sk-admin") as client:
            assert client.get("/api/decisions/mine").json()["caller"] == "user"
