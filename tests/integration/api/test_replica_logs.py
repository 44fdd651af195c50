"""A backend's output over a real listener: what a client reads, and what ends when it leaves or the gateway stops."""

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx
import pytest
import trio

from gateway.api.http.listener.listening_socket import open_socket
from gateway.api.http.listener.server import Listener, ListenerSettings
from gateway.domain.session import LogChunk
from tests.fakes.api_harness import ADMIN_KEY, INFERENCE_KEY, ApiHarness

NEVER: Final = 1000.0
PATIENCE: Final = 20.0
LOGS: Final = "/api/replicas/r1/logs"


@dataclass
class Installation:
    harness: ApiHarness
    client: httpx.AsyncClient
    listener: Listener
    ended: trio.Event

    async def wait_tails(self, count: int) -> None:
        while len(self.harness.tails.open) != count:  # noqa: ASYNC110 - the fake has no event for it
            await trio.sleep(0.01)

    def write(self, *lines: str, ended: bool = False) -> None:
        self.harness.tails.open[0].send_nowait(LogChunk(1, lines, ended=ended))


@asynccontextmanager
async def open_installation() -> AsyncIterator[Installation]:
    harness, ended = ApiHarness(), trio.Event()
    settings = ListenerSettings(drain_seconds=NEVER, write_timeout_seconds=NEVER, connections_max=10)
    listener = Listener(harness.app, settings, on_drain=harness.app.drain, on_drain_end=harness.app.end_streams)

    async def run(*, task_status: trio.TaskStatus[str]) -> None:
        await listener.run(open_socket("127.0.0.1", 0), task_status=task_status)
        ended.set()

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            url = await nursery.start(run)
            headers = {"authorization": f"Bearer {ADMIN_KEY}"}
            async with httpx.AsyncClient(base_url=url, headers=headers, timeout=math.inf) as client:
                yield Installation(harness, client, listener, ended)
            nursery.cancel_scope.cancel()


async def read_until(lines: AsyncIterator[str], wanted: str) -> list[str]:
    """Up to and with the line that is wanted. Fails when the stream ends before it."""
    found: list[str] = []
    async for line in lines:
        found.append(line)
        if line == wanted:
            return found
    raise AssertionError(f"the stream ended: {found}")


async def test_a_reader_gets_each_line_when_it_is_written() -> None:
    async with (
        open_installation() as installation,
        installation.client.stream("GET", f"{LOGS}?follow=true") as response,
    ):
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = response.aiter_lines()
        await read_until(lines, ": nothing new")
        installation.write("one")
        await read_until(lines, 'data: {"lines":["one"],"skipped":0}')
        installation.write("two", ended=True)
        await read_until(lines, "event: end")
        assert [line async for line in lines] == ['data: {"lines":[],"skipped":0}', ""]
        await installation.wait_tails(0)


async def test_text_keeps_the_connection() -> None:
    async with open_installation() as installation:
        installation.harness.tails.ready = (LogChunk(1, ("one", "two"), ended=True),)
        for _ in range(3):
            assert (await installation.client.get(LOGS)).text == "one\ntwo\n"
        assert len(installation.listener._connections) == 1


@pytest.mark.parametrize("query", ["follow=true", "follow=false"])
async def test_r4_a_client_that_leaves_ends_its_tail(query: str) -> None:
    async with open_installation() as installation:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(installation.client.get, f"{LOGS}?{query}")
            await installation.wait_tails(1)
            nursery.cancel_scope.cancel()
        await installation.wait_tails(0)


async def test_a_stop_does_not_wait_for_a_reader_and_tells_it() -> None:
    async with (
        open_installation() as installation,
        installation.client.stream("GET", f"{LOGS}?follow=true") as response,
    ):
        lines = response.aiter_lines()
        await read_until(lines, ": nothing new")
        installation.listener.stop.set()
        rest = [line async for line in lines if line.startswith("data: ")]
        assert len(rest) == 1
        assert '"code":"shutting_down"' in rest[0]
        await installation.ended.wait()


async def test_a11_output_is_for_admins() -> None:
    async with open_installation() as installation:
        for key, status in ((INFERENCE_KEY, 403), ("sk-wrong", 401)):
            response = await installation.client.get(LOGS, headers={"authorization": f"Bearer {key}"})
            assert response.status_code == status
        assert installation.harness.tails.asked == []
