"""What only another gateway has: asked of it over real HTTP, passed on as it comes, told when it can't be had."""

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gateway.api.admin import peer_client as peers
from gateway.api.admin.peer_client import RELAYED
from gateway.api.admin.replica_logs import HeldAtPeer
from gateway.api.http.auth import Key, Role, sha256
from gateway.api.http.exchange import Message
from gateway.domain.cluster import ClusterState, Node, NodeStatus
from gateway.domain.ids import BootId, GatewayId, ModelName, NodeId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.model_spec import ModelSpec
from gateway.domain.peers import PeerState
from gateway.domain.routability import build_view
from gateway.domain.session import LogChunk
from gateway.transport.node_credentials import node_credential, session_metadata
from gateway.transport.tls import peer_context, server_context
from tests.fakes.api_harness import ADMIN_KEY, CLUSTER_SECRET, ApiHarness
from tests.fakes.asgi import AsgiRequest
from tests.fakes.certificates import make_authority
from tests.fakes.fetching import sha256_of
from tests.fakes.file_server import FileServer, Turn, open_file_server, redirect_to
from tests.fakes.served_apis import PATIENCE_SECONDS, ServedApi, serving

A, B, C = GatewayId("a"), GatewayId("b"), GatewayId("c")
LOGS: Final = "/api/replicas/r1/logs"
FOLLOW: Final = f"{LOGS}?follow=true&lines=7"
EVENT_STREAM: Final = {"content-type": "text/event-stream; charset=utf-8"}
JSON: Final = {"content-type": "application/json"}
NOBODY_LISTENS: Final = "http://127.0.0.1:1"

FILE: Final = bytes(range(256)) * 4096
DIGEST: Final = sha256_of(FILE)
NODE: Final = Node(NodeId("n1"), "box", BootId("b1"), NodeStatus.HEALTHY)
SPEC: Final = ModelSpec(ModelName("m"), "llama-cpp", "file:weights.gguf", sha256=DIGEST)


def chunk(*lines: str, ended: bool = False) -> LogChunk:
    return LogChunk(1, lines, 0, ended)


def harness(gateway_id: GatewayId, session_at: GatewayId | None = None, **parts: Any) -> ApiHarness:
    """With the session of `r1` at that gateway."""
    made = ApiHarness(gateway_id=gateway_id, **parts)
    if session_at != gateway_id:
        made.tails.refuse = HeldAtPeer(session_at, "The session is not here.")
    return made


@asynccontextmanager
async def open_scripted(*script: Turn, body: bytes = b"") -> AsyncIterator[tuple[ApiHarness, FileServer]]:
    """A gateway whose only peer, which has the session, answers as the script says."""
    asked = harness(A, B)
    with trio.fail_after(PATIENCE_SECONDS):
        async with open_file_server(body, *script, etag=None) as server:
            asked.set_peers(*asked.peers.states.values(), PeerState(B, server.origin))
            yield asked, server


@asynccontextmanager
async def following(a: ApiHarness, b: ServedApi) -> AsyncIterator[AsgiRequest]:
    """A reader at `a` of a tail at `b`."""
    request = a.request("GET", FOLLOW)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.run, a.app)
        await request.answering.wait()
        assert len(b.harness.tails.open) == 1
        yield request


async def wait_tails(b: ServedApi, count: int) -> None:
    while len(b.harness.tails.open) != count:  # noqa: ASYNC110 - the fake has no event for it
        await trio.sleep(0.001)


async def wait_body(request: AsgiRequest, part: bytes) -> None:
    while part not in request.body:  # noqa: ASYNC110 - the fake has no event for it
        await trio.sleep(0.001)


# The output of a replica


async def test_m4_the_last_lines_through_another_gateway() -> None:
    a, b = harness(A, B), harness(B, B)
    b.tails.ready = (chunk("one", "zwei ü"), chunk("three", ended=True))
    async with serving(a, b):
        request = await a.ask("GET", f"{LOGS}?lines=7")
    assert (request.status, request.body.decode()) == (200, "one\nzwei ü\nthree\n")
    assert request.headers["content-type"] == "text/plain; charset=utf-8"
    assert b.tails.asked == [("r1", 7, False)]


async def test_m4_a_tail_through_another_gateway_comes_as_it_is_written() -> None:
    a, b = harness(A, B), harness(B, B)
    async with serving(a, b) as (_, at_b), following(a, at_b) as request:
        assert request.headers["content-type"].startswith("text/event-stream")
        assert request.headers["x-accel-buffering"] == "no"
        [tail] = b.tails.open
        for line in ("one", "two"):
            tail.send_nowait(chunk(line))
            await wait_body(request, f'data: {{"lines":["{line}"],"skipped":0}}\n\n'.encode())
        tail.send_nowait(chunk("last", ended=True))
    assert request.body.endswith(b'event: end\ndata: {"lines":[],"skipped":0}\n\n')
    assert request.is_complete


async def test_r4_a_client_that_leaves_ends_the_tail_at_the_other_gateway() -> None:
    a, b = harness(A, B), harness(B, B)
    async with serving(a, b) as (_, at_b), following(a, at_b) as request:
        request.hang_up()
        await wait_tails(at_b, 0)
    assert not request.is_complete


async def test_m4_the_other_gateway_dies_in_the_middle_of_a_tail() -> None:
    a, b = harness(A, B), harness(B, B)
    async with serving(a, b) as (_, at_b), following(a, at_b) as request:
        b.tails.open[0].send_nowait(chunk("one"))
        await wait_body(request, b"one")
        await at_b.cut_connections()
    assert request.is_complete
    *_, last, end = request.body.split(b"\n\n")
    assert end == b""
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error["code"] == "unavailable"
    assert "'b'" in error["message"]


async def test_m4_half_an_event_of_a_gateway_that_dies_is_not_passed_on() -> None:
    events = b'data: {"lines":["one"],"skipped":0}\n\ndata: {"lines":["two"],"skipped":0}\n\n'
    turn = Turn(headers=EVENT_STREAM, cut_after=len(events) - 10)
    async with open_scripted(turn, body=events) as (a, _):
        request = await a.ask("GET", FOLLOW)
    assert "content-length" not in request.headers
    first, second, end = request.body.split(b"\n\n")
    assert (first, end) == (b'data: {"lines":["one"],"skipped":0}', b"")
    assert second.startswith(b'data: {"error":')


async def test_m4_half_an_event_before_a_clean_end_is_no_end() -> None:
    async with open_scripted(Turn(headers=EVENT_STREAM), body=b"data: {}\n\ndata:") as (a, _):
        request = await a.ask("GET", FOLLOW)
    assert request.body.startswith(b'data: {}\n\ndata: {"error":')


async def test_what_is_no_event_stream_is_not_kept_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "EVENT_BYTES_MAX", 100)
    async with open_scripted(Turn(headers=EVENT_STREAM), body=bytes(1000)) as (a, _):
        request = await a.ask("GET", FOLLOW)
    assert b"no event stream" in request.body
    assert len(request.body) < 500


async def test_half_of_a_text_is_recognised_by_its_missing_end() -> None:
    async with open_scripted(Turn(headers={"content-type": "text/plain"}, cut_after=3), body=b"one\ntwo\n") as (a, _):
        request = await a.ask("GET", LOGS)
    assert (request.status, request.body, request.is_complete) == (200, b"one", False)


async def test_the_beginning_of_a_drain_ends_a_relayed_tail_with_an_event() -> None:
    a, b = harness(A, B), harness(B, B)
    async with serving(a, b) as (_, at_b), following(a, at_b) as request:
        a.app.drain()
        await wait_tails(at_b, 0)
    assert request.is_complete
    assert b'"code":"shutting_down"' in request.body.split(b"data: ")[-1]


async def test_r4_a_client_that_leaves_before_the_answer_is_not_asked_for_any_more() -> None:
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    a = harness(A, B)
    a.set_peers(PeerState(B, f"http://127.0.0.1:{listening.socket.getsockname()[1]}"))
    request = a.request("GET", FOLLOW)
    with trio.fail_after(PATIENCE_SECONDS):
        async with listening, trio.open_nursery() as nursery:
            nursery.start_soon(request.run, a.app)
            async with await listening.accept() as connection:
                while b"\r\n\r\n" not in await connection.receive_some():
                    pass
                request.hang_up()
                assert await connection.receive_some() == b""
    assert request.sent == []


# Whom it asks, and with what


async def test_m4_the_callers_credentials_and_request_id_go_along() -> None:
    async with open_scripted(Turn(headers={"content-type": "text/plain"}), body=b"one\n") as (a, server):
        headers = {"x-request-id": "mine", "x-gateway-node": "n1", "cookie": "secret", "range": "bytes=0-"}
        request = await a.request("GET", f"{LOGS}?lines=7&x=%2F%23", headers=headers).run(a.app)
    [asked] = server.requests
    assert (asked.method, asked.path) == ("GET", f"{LOGS}?lines=7&x=%2F%23")
    assert asked.headers["authorization"] == f"Bearer {ADMIN_KEY}"
    assert (asked.headers["x-request-id"], asked.headers[RELAYED]) == ("mine", "1")
    assert (asked.headers["x-gateway-node"], asked.headers["range"]) == ("n1", "bytes=0-")
    assert "cookie" not in asked.headers
    assert request.headers["x-request-id"] == "mine"


async def test_m4_nothing_is_relayed_twice() -> None:
    a, b = harness(A, B), harness(B, A)  # each takes the other for the one that has it
    async with serving(a, b):
        request = await a.ask("GET", LOGS)
    assert (request.status, request.headers["retry-after"]) == (503, "5")
    assert request.error["message"] == "The session is not here."
    assert (len(a.tails.asked), len(b.tails.asked)) == (1, 1)


@pytest.mark.parametrize("others", [{}, {B: PeerState(B, "")}, {C: PeerState(C, NOBODY_LISTENS)}])
async def test_m4_a_gateway_that_is_silent_is_named(others: dict[GatewayId, PeerState]) -> None:
    a = harness(A, B)
    a.set_peers(*others.values())
    request = await a.ask("GET", LOGS)
    assert (request.status, request.headers["retry-after"]) == (503, "5")
    assert "'b'" in request.error["message"]


async def test_a_session_that_is_nowhere_is_asked_of_nobody() -> None:
    a = harness(A, None)
    a.set_peers(PeerState(B, NOBODY_LISTENS))
    request = await a.ask("GET", LOGS)
    assert (request.status, request.error["message"]) == (503, "The session is not here.")


async def test_m4_a_gateway_that_can_not_be_reached_is_named() -> None:
    a = harness(A, B)
    a.set_peers(PeerState(B, NOBODY_LISTENS))
    request = await a.ask("GET", LOGS)
    assert (request.status, request.headers["retry-after"]) == (503, "5")
    assert request.error["message"].startswith(f"The gateway 'b' at {NOBODY_LISTENS} can't be reached: ")


@pytest.mark.parametrize("url", ["ftp://127.0.0.1", "http://host:port", "nonsense"])
async def test_a_gateway_with_a_broken_url_is_named(url: str) -> None:
    a = harness(A, B)
    a.set_peers(PeerState(B, url))
    request = await a.ask("GET", LOGS)
    assert (request.status, "'b'" in request.error["message"]) == (503, True)


async def test_h8_a_gateway_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "ANSWER_SECONDS", 0.05)
    (listening,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(PATIENCE_SECONDS):
        async with listening:  # the kernel takes the connection, and nobody answers
            a = harness(A, B)
            a.set_peers(PeerState(B, f"http://127.0.0.1:{listening.socket.getsockname()[1]}"))
            request = await a.ask("GET", LOGS)
    assert (request.status, "did not answer within" in request.error["message"]) == (503, True)


async def test_m4_a_refusal_of_the_other_gateway_is_passed_on() -> None:
    a, b = harness(A, B), harness(B, B, keys=(Key("ops", sha256("another key"), Role.ADMIN),))
    async with serving(a, b):
        request = await a.ask("GET", LOGS)
    assert (request.status, request.error["code"]) == (401, "invalid_api_key")
    assert request.headers["www-authenticate"] == "Bearer"
    assert b.tails.asked == []


async def test_no_redirect_is_followed() -> None:
    async with open_file_server(b"secret") as other_server, open_scripted(redirect_to(other_server.url)) as (a, _):
        request = await a.ask("GET", LOGS)
    assert (request.status, other_server.requests) == (503, [])
    assert "answered 302, and not as a gateway does" in request.error["message"]


async def test_what_something_else_says_in_place_of_the_gateway_is_not_passed_on() -> None:
    async with open_scripted(Turn(status=502, headers={"content-type": "text/html"})) as (a, _):
        request = await a.ask("GET", LOGS)
    assert (request.status, request.error["code"]) == (503, "unavailable")


@pytest.mark.parametrize("trusted", ["authority", "the certificate itself"])
async def test_a11_a_gateway_proves_itself(tmp_path: Path, trusted: str) -> None:
    authority = make_authority(tmp_path)
    cert, key = authority.issue("127.0.0.1")
    a = harness(A, B, peer_tls=peer_context([authority.cert if trusted == "authority" else cert]))
    turn, tls = Turn(headers={"content-type": "text/plain"}), server_context(cert, key)
    async with open_file_server(b"one\n", turn, tls=tls) as server:
        a.set_peers(*a.peers.states.values(), PeerState(B, server.origin))
        request = await a.ask("GET", LOGS)
    assert (request.status, request.body) == (200, b"one\n")


async def test_a11_a_gateway_that_can_not_prove_itself_gets_nothing(tmp_path: Path) -> None:
    cert, key = make_authority(tmp_path).issue("127.0.0.1")
    other, _ = make_authority(tmp_path / "other").issue("127.0.0.1")
    a = harness(A, B, peer_tls=peer_context([other]))
    async with open_file_server(b"one\n", tls=server_context(cert, key)) as server:
        a.set_peers(*a.peers.states.values(), PeerState(B, server.origin))
        request = await a.ask("GET", LOGS)
    assert (request.status, server.requests) == (503, [])
    assert "its certificate is not to be trusted" in request.error["message"]


# Decisions


def remember(where: ApiHarness, request_id: str) -> None:
    where.admission.decisions.open(ModelName("m"), Origin(RequestId(request_id)), 0.0)


async def test_m4_a_decision_of_another_gateway() -> None:
    a, b, c = harness(A), harness(B), harness(C)
    remember(c, "mine")
    async with serving(a, b, c):
        request = await a.ask("GET", "/api/decisions/mine")
    assert (request.status, request.json["request_id"]) == (200, "mine")
    assert request.headers["content-type"] == "application/json"


async def test_m4_a_decision_of_this_gateway_is_asked_of_nobody() -> None:
    a = harness(A)
    a.set_peers(*a.peers.states.values(), PeerState(B, NOBODY_LISTENS))
    remember(a, "mine")
    assert (await a.ask("GET", "/api/decisions/mine")).json["request_id"] == "mine"


async def test_m4_a_decision_that_no_gateway_remembers() -> None:
    a, b, c = harness(A), harness(B), harness(C)
    async with serving(a, b, c):
        request = await a.ask("GET", "/api/decisions/mine")
    assert (request.status, request.error["code"]) == (404, "not_found")


async def test_a_gateway_that_nobody_can_reach_keeps_no_answer_open() -> None:
    a = harness(A)
    a.set_peers(*a.peers.states.values(), PeerState(B, ""))
    assert (await a.ask("GET", "/api/decisions/mine")).status == 404


@pytest.mark.parametrize("found", [True, False])
async def test_m4_a_decision_that_a_silent_gateway_may_have(found: bool) -> None:
    a, b = harness(A), harness(B)
    a.set_peers(*a.peers.states.values(), PeerState(C, NOBODY_LISTENS))  # is asked first
    if found:
        remember(b, "mine")
    async with serving(a, b):
        request = await a.ask("GET", "/api/decisions/mine")
    if found:
        assert (request.status, request.json["request_id"]) == (200, "mine")
    else:
        assert (request.status, request.headers["retry-after"], "'c'" in request.error["message"]) == (503, "5", True)


async def test_m4_a_gateway_that_could_not_tell_is_named() -> None:
    async with open_scripted(Turn(status=503, headers=JSON)) as (a, _):
        request = await a.ask("GET", "/api/decisions/mine")
    assert (request.status, "'b'" in request.error["message"]) == (503, True)


async def test_m4_a_decision_is_not_asked_for_twice() -> None:
    a = harness(A)
    a.set_peers(*a.peers.states.values(), PeerState(B, NOBODY_LISTENS))
    request = await a.request("GET", "/api/decisions/mine", headers={RELAYED: "1"}).run(a.app)
    assert request.status == 404


async def test_m4_a_request_id_with_signs_of_a_url() -> None:
    async with open_scripted(Turn(status=404, headers=JSON)) as (a, server):
        await a.ask("GET", "/api/decisions/mine #&%41:@")
    assert server.requests[0].path == "/api/decisions/mine%20%23%26%2541%3A%40"


# Files


@asynccontextmanager
async def file_at_b(tmp_path: Path, file: bytes = FILE) -> AsyncIterator[tuple[ApiHarness, ApiHarness]]:
    """Two gateways that know the model, one of which has its file."""
    a, b = harness(A, models_dir=tmp_path / "a"), harness(B, models_dir=tmp_path / "b")
    for each in (a, b):
        each.models_dir.mkdir()
        each.views.publish(build_view(ClusterState(1, models={SPEC.name: SPEC}, nodes={NODE.id: NODE})))
    (b.models_dir / "weights.gguf").write_bytes(file)
    async with serving(a, b):
        yield a, b


def wanted(a: ApiHarness, digest: str = DIGEST, method: str = "GET", **headers: str) -> AsgiRequest:
    proof = session_metadata(node_credential(CLUSTER_SECRET, NODE.id, NODE.boot_id), NODE.id, NODE.boot_id)
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    return a.request(method, f"/api/artifacts/{digest}", key=None, headers={**proof, **more})


async def test_m1_a_file_that_another_gateway_has(tmp_path: Path) -> None:
    async with file_at_b(tmp_path) as (a, _):
        answer = await wanted(a).run(a.app)
    assert (answer.status, answer.body) == (200, FILE)
    assert answer.headers["content-length"] == str(len(FILE))
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.is_complete


async def test_s6_the_rest_of_a_file_that_another_gateway_has(tmp_path: Path) -> None:
    async with file_at_b(tmp_path) as (a, _):
        answer = await wanted(a, range="bytes=100-", if_range=f'"{DIGEST}"').run(a.app)
        other = await wanted(a, range="bytes=100-", if_range='"another"').run(a.app)
    assert (answer.status, answer.body) == (206, FILE[100:])
    assert answer.headers["content-range"] == f"bytes 100-{len(FILE) - 1}/{len(FILE)}"
    assert (other.status, other.body) == (200, FILE)


async def test_bytes_that_are_not_there_and_a_head_are_the_other_gateways(tmp_path: Path) -> None:
    async with file_at_b(tmp_path) as (a, _):
        answer = await wanted(a, range=f"bytes={len(FILE)}-").run(a.app)
        head = await wanted(a, method="HEAD").run(a.app)
    assert (answer.status, answer.error["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(FILE)}"
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(FILE)))


async def test_a7_what_no_model_names_is_asked_of_nobody(tmp_path: Path) -> None:
    async with file_at_b(tmp_path) as (a, _):
        a.set_peers(*a.peers.states.values(), PeerState(C, NOBODY_LISTENS))
        assert (await wanted(a, "0" * 64).run(a.app)).status == 404


async def test_a_file_that_no_gateway_has(tmp_path: Path) -> None:
    async with file_at_b(tmp_path) as (a, b):
        (b.models_dir / "weights.gguf").unlink()
        assert (await wanted(a).run(a.app)).status == 404
        a.set_peers(*a.peers.states.values(), PeerState(C, NOBODY_LISTENS))
        assert (await wanted(a).run(a.app)).status == 503


async def test_a11_a_node_that_is_not_approved_has_nothing_asked_for_it(tmp_path: Path) -> None:
    async with file_at_b(tmp_path) as (a, _):
        node = replace(NODE, approved=False)
        a.views.publish(build_view(ClusterState(2, models={SPEC.name: SPEC}, nodes={NODE.id: node})))
        assert (await wanted(a).run(a.app)).status == 403


class SlowReader(AsgiRequest):
    """Takes the head and one part of the answer, then nothing more until it may."""

    def __init__(self, request: AsgiRequest) -> None:
        self.__dict__ |= request.__dict__
        self.may_go_on = trio.Event()

    async def send(self, message: Message) -> None:
        await super().send(message)
        if message["type"] == "http.response.body":
            await self.may_go_on.wait()


async def test_a_reader_that_does_not_read_holds_the_other_gateway_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, read = bytes(64 * 1024 * 1024), 0
    pread = os.pread

    def counting(descriptor: int, length: int, position: int) -> bytes:
        nonlocal read
        read = position + length
        return pread(descriptor, length, position)

    monkeypatch.setattr(os, "pread", counting)
    async with file_at_b(tmp_path, file) as (a, _), trio.open_nursery() as nursery:
        reader = SlowReader(wanted(a))
        nursery.start_soon(reader.run, a.app)
        await reader.answering.wait()
        await wait_all_tasks_blocked(0.2)
        assert read < len(file) / 2
        reader.may_go_on.set()
    assert (len(reader.body), reader.is_complete) == (len(file), True)


async def test_r4_a_worker_that_leaves_in_the_middle_of_a_file_is_not_read_for(tmp_path: Path) -> None:
    async with file_at_b(tmp_path, bytes(64 * 1024 * 1024)) as (a, b), trio.open_nursery() as nursery:
        reader = SlowReader(wanted(a))
        nursery.start_soon(reader.run, a.app)
        await reader.answering.wait()
        assert len(b.app._scopes) == 1
        reader.hang_up()
        while b.app._scopes:  # noqa: ASYNC110 - the application has no event for it
            await trio.sleep(0.001)
    assert not reader.is_complete
