"""What hostile bodies cost: a wave of large ones stays within the budget and is given back, absurd JSON is refused."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.integration.harness import GatewayProcess, running_gateway, scripted_config, together, wait_for

MIB: Final = 1024 * 1024
BODIES_MAX: Final = 32 * MIB
SLACK_BYTES: Final = 24 * MIB
"""Besides the budget: 50 connections with 200 KiB each of what has not been read yet, threads, and what a process that
has just started still takes for its first requests."""
KEPT_BYTES: Final = 16 * MIB
"""What may be left of a wave: the same without the connections' part."""
CONFIG: Final = """
[server]
max_body = "8MiB"
bodies_max = "32MiB"
"""
CHAT: Final = "/v1/chat/completions"
WAVE: Final = 50
JSON: Final = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    config = scripted_config({"tokens": 1}, model="parallel = 4", more=CONFIG)
    with running_gateway(tmp_path_factory.mktemp("body_memory"), config) as process:
        assert process.chat("scripted").status_code == 200
        yield process
        assert process.process.poll() is None
        assert "Traceback" not in process.log


def memory_bytes(gateway: GatewayProcess, name: str) -> int:
    """`VmRSS` or `VmHWM`, the peak."""
    status = Path(f"/proc/{gateway.process.pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def forget_peak(gateway: GatewayProcess) -> None:
    Path(f"/proc/{gateway.process.pid}/clear_refs").write_text("5")


def chat_body(text: str) -> bytes:
    return json.dumps({"model": "scripted", "messages": [{"role": "user", "content": text}]}).encode()


def send(gateway: GatewayProcess, content: Any) -> httpx.Response:
    return httpx.post(gateway.url + CHAT, content=content, headers=JSON, timeout=60.0)


def in_parts(body: bytes) -> Iterator[bytes]:
    """Sent without saying how much it is."""
    for start in range(0, len(body), MIB):
        yield body[start : start + MIB]


@pytest.mark.parametrize("says_its_size", [True, False])
def test_a_wave_of_large_bodies_stays_within_twice_the_budget_and_is_given_back(
    gateway: GatewayProcess, says_its_size: bool
) -> None:
    body = chat_body("a" * (8 * MIB - 1000))
    before = memory_bytes(gateway, "VmRSS")
    forget_peak(gateway)
    answers = together(WAVE, lambda _: send(gateway, body if says_its_size else in_parts(body)))
    peak = memory_bytes(gateway, "VmHWM")
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}
    for refused in (answer for answer in answers if answer.status_code == 503):
        assert refused.json()["error"]["code"] == "overloaded"
        assert int(refused.headers["retry-after"]) > 0
    assert peak - before <= 2 * BODIES_MAX + SLACK_BYTES
    wait_for(lambda: memory_bytes(gateway, "VmRSS") - before <= KEPT_BYTES, "the memory to be given back")
    assert send(gateway, body).status_code == 200


def test_a_text_that_python_makes_four_times_as_large_stays_within_it_as_well(gateway: GatewayProcess) -> None:
    body = b'{"model":"scripted","messages":[{"role":"user","content":"'
    body += b"a" * (8 * MIB - 1000) + "\N{GRINNING FACE}".encode() + b'"}]}'
    before = memory_bytes(gateway, "VmRSS")
    forget_peak(gateway)
    answers = together(8, lambda _: send(gateway, body))
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert memory_bytes(gateway, "VmHWM") - before <= 2 * BODIES_MAX + SLACK_BYTES


MANY: Final = 150_000
USER: Final = '"messages":[{"role":"user","content":"a"}]'
ABSURD: Final = {
    "keys": ("{" + ",".join(f'"k{i}":1' for i in range(MANY)) + "}", None, "100000 strings"),
    "messages": ('{"messages":[' + ",".join(['{"role":"user","content":"a"}'] * MANY) + "]}", "messages", "100000"),
    "stop": (f'{{{USER},"stop":[' + ",".join(['"a"'] * MANY) + '],"model":"m"}', "stop", "100000 strings"),
    "tools": (f'{{{USER},"tools":[' + ",".join(["{}"] * MANY) + "]}", "tools", "80000 arrays and objects"),
    "bias": (f'{{{USER},"logit_bias":{{' + ",".join(f'"{i}":1' for i in range(MANY)) + "}}", "logit_bias", "100000"),
    "numbers": (f'{{{USER},"stop":[' + ",".join(["1"] * 3 * MANY) + "]}", "stop", "400000 values"),
}


@pytest.mark.parametrize("kind", ABSURD)
def test_absurd_json_is_refused_by_the_field_and_the_bound(gateway: GatewayProcess, kind: str) -> None:
    body, field, bound = ABSURD[kind]
    answer = send(gateway, body.encode())
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "too_many_values", field)
    assert bound in error["message"]


@pytest.mark.parametrize("kind", ["[", '{"a":'])
def test_deep_nesting_is_refused_as_that(gateway: GatewayProcess, kind: str) -> None:
    answer = send(gateway, ('{"model":"m","tools":' + kind * 100_000).encode())
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")
    assert "nested too deeply" in answer.json()["error"]["message"]
