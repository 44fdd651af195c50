"""SIGHUP to a real gateway, and to a worker's program: what the file says now holds, and no stream is cut."""

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.integration.fleet import DONE, HELD, Stream, fleet_config, held_fleet_config, running_fleet
from tests.integration.harness import WAIT_SECONDS, GatewayProcess, running_gateway, wait_for

TINY = '[[models]]\nname = "{name}"\nbackend = "llama-cpp"\nartifact = "builtin:tiny"\n'
KEYS = '[auth]\napi_keys = [{{ name = "first", key = "key-first-000000" }}{more}]\n'
SECOND = ', { name = "second", key = "key-second-00000" }'
FIRST_KEY, SECOND_KEY = "key-first-000000", "key-second-00000"


def file_of(*models: str, more_keys: str = "", server: str = "") -> str:
    tables = "".join(TINY.format(name=name) for name in models)
    return f"{server}{KEYS.format(more=more_keys)}{tables}"


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path / "gateway", file_of("a")) as process:
        yield process


def events(gateway: GatewayProcess, name: str) -> list[dict[str, object]]:
    return [line for line in map(json.loads, filter(lambda text: text.startswith("{"), gateway.lines))
            if line["event"] == name]  # fmt: skip


def reload(gateway: GatewayProcess, text: str, *, event: str = "config.reloaded") -> dict[str, object]:
    """Writes the file, asks for a reload, and returns what the log says of it."""
    before = len(events(gateway, event))
    (gateway.folder / "config.toml").write_text(text)
    gateway.send_signal(signal.SIGHUP)
    wait_for(lambda: len(events(gateway, event)) > before, event)
    return events(gateway, event)[-1]


def ask(gateway: GatewayProcess, model: str = "a", key: str = FIRST_KEY) -> int:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
    with gateway.client(key) as client:
        return client.post("/v1/chat/completions", json=body).status_code


def test_a_new_key_and_a_new_model_hold_and_an_old_key_does_not(gateway: GatewayProcess) -> None:
    assert (ask(gateway), ask(gateway, key=SECOND_KEY), ask(gateway, "b")) == (200, 401, 404)
    said = reload(gateway, file_of("a", "b", more_keys=SECOND))
    assert (said["changed"], said["needs_restart"]) == (["auth.api_keys", "models.b"], [])
    assert "key-second" not in gateway.log
    wait_for(lambda: ask(gateway, "b", SECOND_KEY) == 200, "the new model to be served")
    reload(gateway, file_of("a", "b").replace("first", "third"))
    assert (ask(gateway), ask(gateway, key=SECOND_KEY), ask(gateway, key="key-third-000000")) == (401, 401, 200)


def test_a_model_that_is_gone_from_the_file_is_served_no_more(gateway: GatewayProcess) -> None:
    reload(gateway, file_of("a", "b"))
    wait_for(lambda: ask(gateway, "b") == 200, "the new model to be served")
    reload(gateway, file_of("a"))
    wait_for(lambda: ask(gateway, "b") == 404, "the model to be gone")
    assert ask(gateway) == 200


def test_a_stream_that_runs_is_not_cut(gateway: GatewayProcess) -> None:
    body = {"model": "a", "messages": [], "stream": True, "ignore_eos": True, "max_tokens": 300}
    body["messages"] = [{"role": "user", "content": "hello"}]
    lines: list[str] = []
    has_begun = threading.Event()

    def read() -> None:
        with gateway.client(FIRST_KEY) as client, client.stream("POST", "/v1/chat/completions", json=body) as response:
            for line in response.iter_lines():
                lines.append(line)
                has_begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert has_begun.wait(WAIT_SECONDS)
    reload(gateway, file_of("a", "b"))
    reader.join(WAIT_SECONDS)
    assert [line for line in lines if line][-1] == "data: [DONE]"
    assert '"finish_reason":"length"' in "".join(lines)


def test_a_stream_of_a_model_that_is_gone_from_the_file_is_not_cut(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    config = held_fleet_config(gate, "", worker="embedded = true")
    with running_gateway(tmp_path / "gateway", config) as gateway:
        stream = Stream(gateway, HELD, tokens=2)
        reload(gateway, config[: config.index("[[models]]")])
        wait_for(lambda: [each["state"] for each in gateway.status()["replicas"]] == ["draining"], "the drain")
        gate.touch()
        assert stream.result()[-1] == DONE
        wait_for(lambda: not gateway.status()["replicas"], "the replica to end after its stream")


def test_a_worker_says_that_it_reloads_nothing_and_goes_on(tmp_path: Path) -> None:
    with running_fleet(tmp_path, fleet_config(), "far") as fleet:
        worker = fleet.workers["far"]
        worker.send_signal(signal.SIGHUP)
        wait_for(lambda: '"event": "worker.reload_unsupported"' in worker.log, "the worker's answer")
        assert fleet.gateway.chat().status_code == 200
        assert worker.joins == 1


def test_a_bad_file_changes_nothing_and_its_lines_are_in_the_log(gateway: GatewayProcess) -> None:
    bad = file_of("b", more_keys=SECOND) + "max_replicas = -1\nunknown = 1\n"
    said = reload(gateway, bad, event="config.reload_refused")
    assert "config.toml:" in str(said["reason"])
    assert "models[0].max_replicas" in str(said["reason"])
    assert "models[0].unknown" in str(said["reason"])
    assert (ask(gateway), ask(gateway, "b"), ask(gateway, key=SECOND_KEY)) == (200, 404, 401)
    reload(gateway, file_of("a", "b"))
    wait_for(lambda: ask(gateway, "b") == 200, "the new model to be served")


def test_what_needs_a_restart_is_named(gateway: GatewayProcess) -> None:
    said = reload(gateway, file_of("a", server="[routing]\nattempts = 5\n"))
    assert (said["changed"], said["needs_restart"]) == ([], ["routing.attempts"])


def test_a_watched_file_is_read_again_without_a_signal(tmp_path: Path) -> None:
    watched = "[server]\nwatch_config = true\n"
    with running_gateway(tmp_path / "gateway", file_of("a", server=watched)) as gateway:
        (gateway.folder / "config.toml").write_text(file_of("a", more_keys=SECOND, server=watched))
        wait_for(lambda: ask(gateway, key=SECOND_KEY) == 200, "the new key to hold")
        assert httpx.get(f"{gateway.url}/healthz").status_code == 200
