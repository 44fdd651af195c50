"""Backends whose process stands still (SIGSTOP, as a hung call to a GPU does it) while requests wait for them."""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Final

import httpx

from tests.integration.fleet import DONE, Stream, in_background
from tests.integration.harness import is_alive, running_gateway, wait_for
from tests.integration.pool import ready, replica_of, running_pool

QUICK: Final = '[health]\nheartbeat = "300ms"\n[routing]\nprobe_timeout = "400ms"\n'
ENDS_SECONDS: Final = 60.0
"""For a frozen replica to be found out and replaced; ten to fifteen are usual."""
TOKENS: Final = 200
ONE_TINY: Final = """
[[models]]
name = "tiny"
backend = "llama-cpp"
artifact = "builtin:tiny"
parallel = 4
min_replicas = 1
"""


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        if is_alive(pid):
            os.kill(pid, signal.SIGCONT)


def test_overlapping_requests_for_a_replica_that_froze_while_it_was_idle_are_all_answered(tmp_path: Path) -> None:
    """There is no moment in which it has no request, so that nothing of this may depend on one."""
    with running_gateway(tmp_path, QUICK + ONE_TINY) as gateway:
        assert gateway.chat().status_code == 200
        (frozen,) = ready(gateway)
        pid = ready(gateway)[frozen]["pid"]
        answers: list[Future[httpx.Response]] = []

        def replaced() -> bool:
            while sum(not answer.done() for answer in answers) < 4:
                answers.append(in_background(lambda: gateway.chat(stream=bool(next(numbers) % 2))))
            return bool(ready(gateway)) and frozen not in ready(gateway)

        numbers = count()
        with stopped(pid):
            wait_for(replaced, "another replica in its place", ENDS_SECONDS)
            texts = [answer.result(ENDS_SECONDS) for answer in answers]
            assert {answer.status_code for answer in texts} == {200}
            assert {DONE in answer.text for answer in texts if "event-stream" in answer.headers["content-type"]} == {
                True
            }
            wait_for(lambda: not is_alive(pid), "the frozen process to be gone")
        assert "it hangs" in gateway.log
        assert gateway.metric_sum("gateway_in_flight") == 0


def test_requests_go_to_the_busier_replica_while_the_other_is_frozen_with_its_call(tmp_path: Path) -> None:
    """Though it was heard of a moment ago, for which time nobody asks it before a call."""
    script = {"tokens": TOKENS, "token_interval": 0.05}
    with running_pool(tmp_path, script, model="parallel = 8", routing='probe_timeout = "400ms"') as gateway:
        streams = [Stream(gateway, "scripted", tokens=TOKENS) for _ in range(3)]
        frozen, busier = sorted(ready(gateway).values(), key=lambda each: int(each["in_flight"]))
        assert (frozen["in_flight"], busier["in_flight"]) == (1, 2)
        with stopped(frozen["pid"]):
            wait_for(lambda: "calls.replica_suspect" in gateway.log, "its silence to be noticed")
            assert [replica_of(gateway.chat("scripted", max_tokens=1)) for _ in range(4)] == [busier["id"]] * 4
        assert [stream.result()[-1] for stream in streams] == [DONE] * 3  # it is left aside, and loses nothing
        assert set(ready(gateway)) == {frozen["id"], busier["id"]}
