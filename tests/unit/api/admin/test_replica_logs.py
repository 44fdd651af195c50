"""The output of a backend over HTTP, on a virtual clock: text, events, keep-alives, and the ends that there are."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.api.admin.replica_logs import HeldAtPeer, open_replica_tail
from gateway.domain.errors import NotFound
from gateway.domain.ids import GatewayId, NodeId, ReplicaId
from gateway.domain.session import LogChunk
from tests.fakes.api_harness import ApiHarness, FakeTails
from tests.fakes.asgi import AsgiRequest
from tests.fakes.fleet import NODE, node, replica, state

LOGS = "/api/replicas/r1/logs"
REPLICA = ReplicaId("r1")


def chunk(*lines: str, skipped: int = 0, ended: bool = False) -> LogChunk:
    return LogChunk(1, lines, skipped, ended)


@asynccontextmanager
async def following(harness: ApiHarness) -> AsyncIterator[AsgiRequest]:
    """A reader whose tail is open."""
    request = harness.request("GET", f"{LOGS}?follow=true")
    with trio.fail_after(1000):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(request.run, harness.app)
            await wait_all_tasks_blocked()
            assert len(harness.tails.open) == 1
            yield request


# As text


async def test_the_last_lines_are_text() -> None:
    harness = ApiHarness()
    harness.tails.ready = (chunk("one", "zwei ü"), chunk("three", skipped=7, ended=True))
    request = await harness.ask("GET", LOGS)
    assert request.status == 200
    assert request.headers["content-type"] == "text/plain; charset=utf-8"
    assert request.body.decode() == "one\nzwei ü\n... 7 lines left out ...\nthree\n"
    assert harness.tails.asked == [(REPLICA, 100, False)]
    assert harness.tails.open == []


async def test_nothing_written_is_an_empty_text() -> None:
    harness = ApiHarness()
    harness.tails.ready = (chunk(ended=True),)
    request = await harness.ask("GET", f"{LOGS}?lines=1000&follow=false")
    assert (request.status, request.body) == (200, b"")
    assert harness.tails.asked == [(REPLICA, 1000, False)]


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("lines=0", "lines"),
        ("lines=1001", "lines"),
        ("lines=-1", "lines"),
        ("lines=", "lines"),
        ("lines=10.0", "lines"),
        ("lines=%D9%A3", "lines"),
        ("lines=%C2%B2", "lines"),
        ("follow=1", "follow"),
        ("follow=True", "follow"),
        ("follow=", "follow"),
    ],
)
async def test_a_wrong_value_is_named_before_a_tail_is_opened(query: str, param: str) -> None:
    harness = ApiHarness()
    request = await harness.ask("GET", f"{LOGS}?{query}")
    assert (request.status, request.error["param"]) == (400, param)
    assert harness.tails.asked == []


@pytest.mark.parametrize("follow", ["true", "false"])
async def test_what_opening_refuses_is_the_answer(follow: str) -> None:
    harness = ApiHarness()
    harness.tails.refuse = NotFound("No such replica.", code="replica_not_found")
    request = await harness.ask("GET", f"{LOGS}?follow={follow}")
    assert (request.status, request.error["code"]) == (404, "replica_not_found")


async def test_h8_a_worker_that_does_not_answer_is_not_waited_for(autojump_clock: MockClock) -> None:
    harness = ApiHarness()
    request = await harness.ask("GET", LOGS)
    assert (request.status, request.headers["retry-after"]) == (503, "5")
    assert harness.tails.open == []


async def test_half_of_the_lines_of_a_lost_node_is_no_answer(autojump_clock: MockClock) -> None:
    harness = ApiHarness()
    harness.tails.ready = (chunk("one"),)
    request = harness.request("GET", LOGS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.run, harness.app)
        await wait_all_tasks_blocked()
        harness.tails.open[0].close()
    assert (request.status, b"one" in request.body) == (503, False)


# As events


async def test_lines_are_events_as_they_come(autojump_clock: MockClock) -> None:
    harness = ApiHarness()
    async with following(harness) as request:
        assert request.headers["content-type"].startswith("text/event-stream")
        [tail] = harness.tails.open
        tail.send_nowait(chunk("one", "two\u2028three"))
        await wait_all_tasks_blocked()
        assert request.body.endswith(b'data: {"lines":["one","two\\u2028three"],"skipped":0}\n\n')
        tail.send_nowait(chunk(skipped=3))
        tail.send_nowait(chunk("last", ended=True))
    end = b'data: {"lines":["last"],"skipped":0}\n\nevent: end\ndata: {"lines":[],"skipped":0}\n\n'
    assert request.body.endswith(b'data: {"lines":[],"skipped":3}\n\n' + end)
    assert request.is_complete
    assert harness.tails.open == []


async def test_a_quiet_stream_says_now_and_then_that_it_lives(autojump_clock: MockClock) -> None:
    harness = ApiHarness()
    async with following(harness) as request:
        before = len(request.sent)
        await trio.sleep(46)
        assert [message["body"] for message in request.sent[before:]] == [b": nothing new\n\n"] * 3
        harness.tails.open[0].send_nowait(chunk(ended=True))


async def test_r4_a_reader_that_leaves_ends_the_tail_at_once(autojump_clock: MockClock) -> None:
    harness = ApiHarness()
    async with following(harness) as request:
        request.hang_up()
        await wait_all_tasks_blocked()
        assert harness.tails.open == []
    assert not request.is_complete


async def test_the_beginning_of_a_drain_ends_the_tail_with_an_event(autojump_clock: MockClock) -> None:
    harness = ApiHarness()
    async with following(harness) as request:
        harness.app.drain()
        await wait_all_tasks_blocked()
        assert harness.tails.open == []
    assert request.is_complete
    assert b'"code":"shutting_down"' in request.body.split(b"data: ")[-1]
    assert b"event: end" not in request.body


async def test_a_node_that_is_lost_ends_the_stream_with_an_error(autojump_clock: MockClock) -> None:
    harness = ApiHarness()
    async with following(harness) as request:
        harness.tails.open[0].close()
    assert request.is_complete
    assert b'"code":"unavailable"' in request.body.split(b"data: ")[-1]


# Whose tail it is


async def test_the_tail_of_a_replica_is_asked_of_its_node() -> None:
    tails, asked = FakeTails(), list[NodeId]()

    @asynccontextmanager
    async def open_node_tail(
        node_id: NodeId, replica_id: ReplicaId, lines: int, *, follow: bool
    ) -> AsyncIterator[trio.MemoryReceiveChannel[LogChunk] | None]:
        asked.append(node_id)
        async with tails(replica_id, lines, follow=follow) as tail:
            yield tail

    fleet = state([replica("r1")])
    tails.ready = (chunk("x"),)
    async with open_replica_tail(lambda: fleet, open_node_tail, REPLICA, 5, follow=True) as tail:
        assert (await tail.receive()).lines == ("x",)
    assert (asked, tails.asked) == ([NODE], [(REPLICA, 5, True)])
    with pytest.raises(NotFound, match="'r2'"):
        async with open_replica_tail(lambda: fleet, open_node_tail, ReplicaId("r2"), 5, follow=True):
            pass


@pytest.mark.parametrize("holder", [GatewayId("other"), None])
async def test_m4_a_node_without_a_session_here_has_one_at_a_peer_or_none(holder: GatewayId | None) -> None:
    @asynccontextmanager
    async def open_node_tail(
        _node_id: NodeId, _replica_id: ReplicaId, _lines: int, *, follow: bool
    ) -> AsyncIterator[trio.MemoryReceiveChannel[LogChunk] | None]:
        yield None

    fleet = state([replica("r1")], nodes=[node(NODE, gateway_id=holder)])
    with pytest.raises(HeldAtPeer) as caught:
        async with open_replica_tail(lambda: fleet, open_node_tail, REPLICA, 5, follow=False):
            pass
    assert caught.value.gateway_id == holder
