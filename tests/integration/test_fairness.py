"""Several callers of one model, each with its key."""

import threading
from collections import Counter
from pathlib import Path
from typing import Final

import httpx

from tests.integration.harness import GatewayProcess, events_in, running_gateway, scripted_config, together, wait_for

KEYS: Final = """
[[auth.api_keys]]
name = "heavy"
key = "sk-heavy"
[[auth.api_keys]]
name = "light"
key = "sk-light"
"""


def test_one_key_that_floods_a_model_does_not_starve_another(tmp_path: Path) -> None:
    log, flood = tmp_path / "events", 24
    config = scripted_config({"first_token_delay": 0.25, "tokens": 1}, log=log, model="parallel = 1", more=KEYS)
    with running_gateway(tmp_path, config) as gateway:
        heavy = threading.Thread(target=lambda: together(flood, lambda _: chat_as(gateway, "heavy")))
        heavy.start()
        wait_for(lambda: len(events_in(log, "Predict")) >= 2, "the flood to be served")
        assert chat_as(gateway, "light", "sk-light").status_code == 200
        assert len(events_in(log, "Predict")) < flood  # most of the flood still waits
        heavy.join()
        assert Counter(event["correlation_id"] for event in events_in(log, "Predict")) == {"heavy": flood, "light": 1}


def chat_as(gateway: GatewayProcess, name: str, key: str = "sk-heavy") -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "x-request-id": name}
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
    return httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers, timeout=60.0)
