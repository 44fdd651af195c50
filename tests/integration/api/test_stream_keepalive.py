"""Streams that wait get comments: in the queue, during a load, and between two tokens; over HTTP/1 and HTTP/2."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.integration.harness import (
    WAIT_SECONDS,
    GatewayProcess,
    RawClient,
    chat_request,
    running_gateway,
    scripted_config,
    wait_for,
)

COMMENT: Final = ": keep-alive"
SOON: Final = '[server]\nstream_keepalive = "200ms"\n'
NEVER: Final = '[server]\nstream_keepalive = "0s"\n'
ONE_SLOT: Final = {"slots": 1, "tokens": 100_000, "token_interval": 0.01}
VERSIONS: Final = pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])


@contextmanager
def asking(gateway: GatewayProcess, version: str, **fields: Any) -> Iterator[httpx.Response]:
    """A streamed chat with `scripted`, as soon as its head has come."""
    body: dict[str, Any] = {
        "model": "scripted",
        "messages": [{"role": "user", "content": "hello"}],
        "stream": True,
        **fields,
    }
    is_http2 = version == "HTTP/2"
    with (
        httpx.Client(base_url=gateway.url, timeout=WAIT_SECONDS, http1=not is_http2, http2=is_http2) as client,
        client.stream("POST", "/v1/chat/completions", json=body) as response,
    ):
        assert response.http_version == version
        yield response


def next_line(lines: Iterator[str], begin: str) -> str:
    return next(line for line in lines if line.startswith(begin))


@contextmanager
def full_gateway(folder: Path, more: str, **script: Any) -> Iterator[tuple[GatewayProcess, RawClient]]:
    """With a client that has the only slot, until it hangs up."""
    config = scripted_config({**ONE_SLOT, **script}, model="parallel = 1", more=more)
    with running_gateway(folder, config) as gateway, RawClient(gateway) as first:
        first.send(chat_request("scripted"))
        first.read_until(b"tok3 ")
        yield gateway, first


@VERSIONS
def test_a_stream_that_waits_for_a_slot_is_alive_and_gets_its_answer(tmp_path: Path, version: str) -> None:
    with full_gateway(tmp_path, SOON) as (gateway, first), asking(gateway, version) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.iter_lines()
        assert [next_line(lines, ":") for _ in range(3)] == [COMMENT] * 3
        assert gateway.metric('gateway_queue_length{model="scripted"}') == 1
        first.socket.close()
        assert "assistant" in next_line(lines, "data:")
        assert "tok1" in next_line(lines, 'data: {"id"') + next_line(lines, "data:") + next_line(lines, "data:")


@VERSIONS
def test_an_error_before_the_first_comment_has_its_status(tmp_path: Path, version: str) -> None:
    """And the headers of its own."""
    config = '[routing]\nqueue_timeout = "300ms"\n'
    with full_gateway(tmp_path, config) as (gateway, _), asking(gateway, version) as response:
        assert response.status_code == 429
        assert response.headers["retry-after"]
        assert json.loads(response.read())["error"]["code"] == "rate_limit_exceeded"


@VERSIONS
def test_an_error_after_a_comment_is_one_event_with_the_same_envelope(tmp_path: Path, version: str) -> None:
    config = f'{SOON}[routing]\nqueue_timeout = "700ms"\n'
    with full_gateway(tmp_path, config) as (gateway, _), asking(gateway, version) as response:
        assert response.status_code == 200
        *comments, event = [line for line in response.iter_lines() if line]
        assert set(comments) == {COMMENT}
        assert json.loads(event.removeprefix("data: "))["error"]["code"] == "rate_limit_exceeded"
        wait_for(lambda: '"outcome": "error"' in gateway.log, "the log line of the request")


@VERSIONS
def test_without_keepalive_nothing_is_sent_until_the_backend_answers(tmp_path: Path, version: str) -> None:
    config = f'{NEVER}[routing]\nqueue_timeout = "1s"\n'
    with full_gateway(tmp_path, config) as (gateway, _), asking(gateway, version) as response:
        assert response.status_code == 429


@VERSIONS
def test_a_client_that_leaves_while_it_is_kept_alive_frees_its_place(tmp_path: Path, version: str) -> None:
    with full_gateway(tmp_path, SOON) as (gateway, _):
        with asking(gateway, version) as response:
            lines = response.iter_lines()
            next_line(lines, ":")
            assert gateway.metric('gateway_queue_length{model="scripted"}') == 1
        wait_for(lambda: gateway.metric('gateway_queue_length{model="scripted"}') == 0, "the queue to be empty")
        assert "Traceback" not in gateway.log


@VERSIONS
def test_a_stream_is_alive_while_its_model_loads(tmp_path: Path, version: str) -> None:
    gate = tmp_path / "gate"
    config = scripted_config({"hold_load": True, "gate": str(gate)}, more=SOON)
    with running_gateway(tmp_path, config) as gateway, asking(gateway, version) as response:
        lines = response.iter_lines()
        next_line(lines, ":")
        gate.touch()
        assert "tok0" in next_line(lines, "data:") + next_line(lines, "data:")
        assert next_line(lines, "data: [")


@VERSIONS
@pytest.mark.parametrize("choices", [1, 2])
def test_a_running_stream_is_alive_between_two_tokens(tmp_path: Path, version: str, choices: int) -> None:
    gate = tmp_path / "gate"
    config = scripted_config({"hold_after_tokens": 1, "tokens": 3, "gate": str(gate)}, more=SOON)
    with running_gateway(tmp_path, config) as gateway, asking(gateway, version, n=choices) as response:
        lines = response.iter_lines()
        next_line(lines, "data:")
        assert [next_line(lines, ":") for _ in range(2)] == [COMMENT] * 2
        gate.touch()
        assert "data: [DONE]" in list(lines)


def test_the_official_client_reads_over_the_comments(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    config = scripted_config({"hold_after_tokens": 1, "tokens": 3, "gate": str(gate)}, more=SOON)
    with running_gateway(tmp_path, config) as gateway, RawClient(gateway) as watcher:
        watcher.send(chat_request("scripted"))
        with gateway.openai() as client:
            messages: Any = [{"role": "user", "content": "hello"}]
            stream = client.chat.completions.create(model="scripted", messages=messages, stream=True)
            watcher.read_until(b": keep-alive\n\n")
            watcher.read_until(b": keep-alive\n\n")  # It began first, so the other one had a comment by now, too.
            gate.touch()
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        assert text.split() == ["tok0", "tok1", "tok2"]
