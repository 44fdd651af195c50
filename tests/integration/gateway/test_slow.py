"""What only shows after minutes: idle backends that die, streams that are cut at a minute."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.integration.harness import GatewayProcess, running_gateway, scripted_config

IDLE_SECONDS: Final = 180.0
TOKENS: Final = 15
TOKEN_INTERVAL_SECONDS: Final = 5.0


@pytest.mark.slow
def test_h13_an_idle_backend_lives_and_a_slow_stream_is_not_cut(tmp_path: Path) -> None:
    """Pitfalls 29 (a child dies with the thread that forked it) and 1 (responses end silently after 60 s)."""
    slow = scripted_config({"tokens": TOKENS, "token_interval": TOKEN_INTERVAL_SECONDS})
    with (
        running_gateway(tmp_path / "idle") as idle,
        running_gateway(tmp_path / "slow", slow) as streaming,
        ThreadPoolExecutor(1) as pool,
    ):
        stream = pool.submit(read_slow_stream, streaming)
        assert idle.chat().status_code == 200
        pids = idle.backend_pids()
        time.sleep(IDLE_SECONDS)  # the subject of the test, not a way to wait for something
        assert idle.backend_pids() == pids
        assert idle.chat().status_code == 200
        assert idle.backend_pids() == pids

        events, seconds = stream.result()
        assert seconds > 60.0
        assert [event for event in events if '"content":"tok' in event] == events[1 : TOKENS + 1]
        assert f"tok{TOKENS - 1} " in events[TOKENS]
        assert events[-1] == "data: [DONE]"


def read_slow_stream(gateway: GatewayProcess) -> tuple[list[str], float]:
    """All events of one stream, and how long it took (seconds)."""
    started = time.monotonic()
    body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "stream": True}
    with gateway.client() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        events = [line for line in answer.iter_lines() if line]
    return events, time.monotonic() - started
