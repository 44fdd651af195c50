"""Backends that die, refuse or are somebody else, and gateways that end: no wrong answer, no silent end, no orphan."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.integration.harness import (
    LONG_TINY,
    WAIT_SECONDS,
    RawClient,
    chat_request,
    events_in,
    is_alive,
    running_gateway,
    scripted_config,
    wait_for,
)

DONE: Final = "data: [DONE]"


def test_m7_a_backend_killed_mid_stream_ends_the_stream_with_an_error_event(tmp_path: Path) -> None:
    with running_gateway(tmp_path, LONG_TINY) as gateway:
        assert gateway.chat().status_code == 200
        (pid,) = gateway.backend_pids()
        with gateway.client() as client, open_chat(client, "tiny", max_tokens=30000, ignore_eos=True) as lines:
            assert next(lines).startswith("data: {")
            os.kill(pid, signal.SIGKILL)
            events = list(lines)
        assert DONE not in events
        assert error_of(events[-1])["code"] == "backend_error"
        assert all("error" not in json.loads(event.removeprefix("data: ")) for event in events[:-1])

        assert gateway.chat().status_code == 200
        (successor,) = gateway.backend_pids()
        assert successor != pid
        assert gateway.metric_sum("gateway_in_flight") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_m7_a_request_that_kills_its_backend_is_run_twice_and_no_more(tmp_path: Path, stream: bool) -> None:
    log = tmp_path / "events"
    with running_gateway(tmp_path, scripted_config({"die_after_tokens": 0}, log=log)) as gateway:
        answer = gateway.chat("scripted", stream=stream)
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "backend_error"
        victims = [event["pid"] for event in events_in(log, "PredictStream" if stream else "Predict")]
        assert len(victims) == len(set(victims)) == 2
        assert gateway.metric_sum("gateway_in_flight") == 0


def test_a_backend_that_fails_mid_stream_keeps_its_process(tmp_path: Path) -> None:
    with running_gateway(tmp_path, scripted_config({"error_after_tokens": 2})) as gateway:
        *_, last = gateway.chat("scripted", stream=True, max_tokens=9).text.strip().split("\n\n")
        assert error_of(last)["code"] == "backend_error"
        pids = gateway.backend_pids()
        assert gateway.chat("scripted", max_tokens=1).status_code == 200
        assert gateway.backend_pids() == pids


def test_a_request_waits_for_a_backend_that_is_full(tmp_path: Path) -> None:
    log = tmp_path / "events"
    with running_gateway(tmp_path, scripted_config({"refuse_first": 3, "tokens": 1}, log=log)) as gateway:
        answer = gateway.chat("scripted")
        assert answer.json()["choices"][0]["message"]["content"] == "tok0 "
        assert len(events_in(log, "Predict")) == 4
        assert gateway.metric('gateway_reroutes_total{cause="full"}') == 3


@pytest.mark.parametrize("stream", [False, True])
def test_h5_a_backend_with_another_model_answers_nothing(tmp_path: Path, stream: bool) -> None:
    more = '[routing]\nload_wait = "1s"\n'
    config = scripted_config({"identity": "somebody else"}, model="min_replicas = 1", more=more)
    with running_gateway(tmp_path, config) as gateway:
        wait_for(lambda: gateway.model("scripted")["ready"] == 1, "it to be ready")
        answer = gateway.chat("scripted", stream=stream)
        assert answer.status_code in (502, 503)
        assert answer.json()["error"]["code"]
        assert "tok0" not in answer.text
        # Each is replaced, and its successor is no better.
        assert gateway.metric('gateway_reroutes_total{cause="stale"}') >= 1


def test_h5_a_process_with_another_token_never_serves(tmp_path: Path) -> None:
    """Somebody else's backend on the port of ours: it refuses our token, so it never becomes ready."""
    command = json.dumps(["env", "LOCALAI_GRPC_AUTH_TOKEN=other", sys.executable, "-m", "tests.fakes.scripted_backend"])
    config = f"""
[backends.other]
command = {command}
ready_timeout = "2s"
[[models]]
name = "scripted"
backend = "other"
artifact = "builtin:tiny"
"""
    with running_gateway(tmp_path, config) as gateway:
        answer = gateway.chat("scripted")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_load_failed"
        assert "token" in answer.json()["error"]["message"]
        wait_for(lambda: not gateway.backend_pids(), "the refused process to be gone")


@pytest.mark.parametrize("loading", [False, True], ids=["ready", "loading"])
@pytest.mark.parametrize(
    ("signals", "exit_code"),
    [([signal.SIGTERM], 0), ([signal.SIGKILL], -signal.SIGKILL), ([signal.SIGINT, signal.SIGTERM], 128 + 15)],
    ids=["term", "kill", "two-signals"],
)
def test_h13_no_backend_outlives_its_gateway(
    tmp_path: Path, loading: bool, signals: Sequence[signal.Signals], exit_code: int
) -> None:
    log = tmp_path / "events"
    script = {"load_delay": 600} if loading else {"tokens": 100_000, "token_interval": 0.02}
    drain = f'[server]\ndrain_timeout = "{1 if len(signals) == 1 else 600}s"\n'
    with running_gateway(tmp_path, scripted_config(script, log=log, more=drain)) as gateway, RawClient(gateway) as raw:
        raw.send(chat_request("scripted"))
        (started,) = wait_for(lambda: events_in(log, "LoadModel" if loading else "PredictStream"), "the backend")
        for index, number in enumerate(signals):
            gateway.send_signal(number)
            if index + 1 < len(signals):
                wait_for(lambda: "gateway.stopping" in gateway.log, "the gateway to begin its end")
        assert gateway.process.wait(WAIT_SECONDS) == exit_code
        wait_for(lambda: not is_alive(started["pid"]), "the backend to be gone")


def test_h13_the_engine_does_not_outlive_a_killed_gateway(tmp_path: Path) -> None:
    with running_gateway(tmp_path, LONG_TINY) as gateway, RawClient(gateway) as raw:
        raw.send(chat_request(max_tokens=30000, ignore_eos=True))
        raw.read_until(b'"content"')
        (pid,) = gateway.backend_pids()
        gateway.send_signal(signal.SIGKILL)
        gateway.process.wait()
        wait_for(lambda: not is_alive(pid), "the engine to be gone")


def test_a_drain_lets_open_streams_finish_and_takes_no_new_requests(tmp_path: Path) -> None:
    log, gate = tmp_path / "events", tmp_path / "gate"
    script = {"tokens": 60, "hold_after_tokens": 1, "gate": str(gate)}
    config = scripted_config(script, log=log, model="parallel = 2")
    with (
        running_gateway(tmp_path, config) as gateway,
        gateway.client() as client,
        RawClient(gateway) as idle,
        RawClient(gateway) as busy,
    ):
        idle.send(chat_request("scripted", max_tokens=1, stream=False))
        idle.read_until(b"}}")
        busy.send(chat_request("scripted", max_tokens=20))
        with open_chat(client, "scripted") as lines:
            next(lines)
            busy.read_until(b"tok0 ")
            gateway.send_signal(signal.SIGTERM)
            wait_for(lambda: "gateway.stopping" in gateway.log, "the drain to begin")
            assert idle.read_to_end() == b""  # closed at once, and the other one with the end of its answer
            with pytest.raises(httpx.ConnectError):
                gateway.chat("scripted")
            assert gateway.process.poll() is None
            gate.touch()
            assert busy.read_to_end().endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
            events = list(lines)
        assert events[-1] == DONE
        assert [event for event in events if "tok59 " in event]
        assert gateway.process.wait(WAIT_SECONDS) == 0
        assert not is_alive(events_in(log, "start")[0]["pid"])


def test_a_stream_longer_than_the_drain_ends_with_an_error_event(tmp_path: Path) -> None:
    script = {"tokens": 100_000, "token_interval": 0.02}
    config = scripted_config(script, more='[server]\ndrain_timeout = "2s"\n')
    with running_gateway(tmp_path, config) as gateway, gateway.client() as client:
        with open_chat(client, "scripted") as lines:
            next(lines)
            gateway.send_signal(signal.SIGTERM)
            events = list(lines)
        assert DONE not in events
        assert error_of(events[-1])["code"] == "shutting_down"
        assert gateway.process.wait(WAIT_SECONDS) == 0


def test_a_client_that_reads_nothing_does_not_hold_the_shutdown(tmp_path: Path) -> None:
    """Pitfalls 5 and 36."""
    log = tmp_path / "events"
    script = {"tokens": 100_000, "flood": True}
    config = scripted_config(script, log=log, more='[server]\ndrain_timeout = "2s"\nwrite_timeout = "10m"\n')
    with (
        running_gateway(tmp_path, config) as gateway,
        RawClient(gateway, receive_buffer_bytes=4096) as stalled,
    ):
        stalled.send(chat_request("scripted"))
        (call,) = wait_for(lambda: events_in(log, "PredictStream"), "the stream to begin")
        wait_for(lambda: events_in(log, "stuck"), "all buffers on the way to be full")
        assert events_in(log, "end") == []
        gateway.send_signal(signal.SIGTERM)
        assert gateway.process.wait(WAIT_SECONDS) == 0
        wait_for(lambda: not is_alive(call["pid"]), "the backend to be gone")


@contextmanager
def open_chat(client: httpx.Client, model: str, **fields: Any) -> Iterator[Iterator[str]]:
    """A streamed chat: its events as they come, one `data: ...` each. Raises when the body's framing is broken."""
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "stream": True, **fields}
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        yield (line for line in answer.iter_lines() if line)


def error_of(event: str) -> dict[str, Any]:
    error: dict[str, Any] = json.loads(event.removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    return error
