"""Several callers of one model, each with its key."""

from collections import Counter
from pathlib import Path
from typing import Final

import httpx

from tests.integration.fleet import in_background
from tests.integration.harness import (
    WAIT_SECONDS,
    GatewayProcess,
    events_in,
    running_gateway,
    scripted_config,
    together,
    wait_for,
)

KEYS: Final = """
[[auth.api_keys]]
name = "heavy"
key = "sk-heavy"
[[auth.api_keys]]
name = "light"
key = "sk-light"
[[auth.api_keys]]
name = "admin"
key = "sk-admin"
role = "admin"
"""


def test_one_key_that_floods_a_model_does_not_starve_another(tmp_path: Path) -> None:
    """Half of the flood waits before the other key's request and half behind it: neither who came first nor who came
    last is the next by that."""
    log, gate, half = tmp_path / "events", tmp_path / "gate", 12
    script = {"hold_after_tokens": 0, "gate": str(gate), "tokens": 1}
    config = scripted_config(script, log=log, model="parallel = 1", more=KEYS)
    with running_gateway(tmp_path, config) as gateway:
        before = in_background(lambda: together(half, lambda _: chat_as(gateway, "before")))
        wait_for(lambda: queue_length(gateway) == half - 1, "the flood to wait behind the first of it")
        light = in_background(lambda: chat_as(gateway, "light", "sk-light"))
        wait_for(lambda: queue_length(gateway) == half, "the other one to wait, too")
        behind = in_background(lambda: together(half, lambda _: chat_as(gateway, "behind")))
        wait_for(lambda: queue_length(gateway) == 2 * half, "the rest of the flood to wait")
        gate.touch()
        assert light.result(WAIT_SECONDS).status_code == 200
        for flood in (before, behind):
            assert [answer.status_code for answer in flood.result(WAIT_SECONDS)] == [200] * half
        served = [event["correlation_id"] for event in events_in(log, "Predict")]
        assert Counter(served) == {"before": half, "light": 1, "behind": half}
        assert served.index("light") <= 2  # the next but one at the latest


def queue_length(gateway: GatewayProcess) -> float:
    return gateway.metric('gateway_queue_length{model="scripted"}', "sk-admin")


def chat_as(gateway: GatewayProcess, name: str, key: str = "sk-heavy") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "x-request-id": name}
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=WAIT_SECONDS)
