"""HTTP at the socket: what slow, odd and broken clients get, that they block nobody, what every response carries."""

import json
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TypeGuard

import h2.config
import h2.connection
import httpx
import psutil
import pytest
from h2.events import ResponseReceived, StreamEnded
from prometheus_client.parser import text_string_to_metric_families

from tests.integration.harness import WAIT_SECONDS, GatewayProcess, RawClient, running_gateway, together, wait_for

MAX_BODY: Final = 64 * 1024
CONFIG: Final = f"""
[server]
max_body = {MAX_BODY}
"""
IMPATIENT: Final = f'{CONFIG}body_timeout = "2s"\n'
"""Far above the time between the head and the body of a request that comes at once."""
CHAT_BODY: Final = b'{"model":"tiny","messages":[{"role":"user","content":"hello"}],"max_tokens":2}'
HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
MODELS: Final = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"
IDLE_CONNECTIONS: Final = 200


def post(*lines: str, body: bytes = CHAT_BODY, length: int | None = None) -> bytes:
    """A chat request with these header lines; `length` is what it claims, -1 for nothing."""
    claimed = len(body) if length is None else length
    fixed = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    sized = [f"Content-Length: {claimed}"] if claimed >= 0 else []
    return "\r\n".join([*fixed, *sized, *lines, "", ""]).encode() + body


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


@contextmanager
def edge(folder: Path, config: str) -> Iterator[GatewayProcess]:
    """At the end it still serves and holds no connection of those who left."""
    with running_gateway(folder, config) as process:
        assert process.chat(max_tokens=1).status_code == 200
        yield process
        assert process.chat(max_tokens=1).status_code == 200
        wait_for(lambda: held_connections(process) == {"LISTEN": 1}, "the connections of clients that left to end")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """One process for all but those whose body does not come: nobody else is hurried."""
    with edge(tmp_path_factory.mktemp("edge"), CONFIG) as process:
        yield process


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with edge(tmp_path_factory.mktemp("impatient"), IMPATIENT) as process:
        yield process


@pytest.fixture(scope="module")
def client(gateway: GatewayProcess) -> Iterator[httpx.Client]:
    with gateway.client() as made:
        yield made


def held_connections(gateway: GatewayProcess) -> Counter[str]:
    port = httpx.URL(gateway.url).port
    connections = psutil.Process(gateway.process.pid).net_connections("tcp4")
    return Counter(each.status for each in connections if each.laddr.port == port)


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d{3}) ", answer)
    assert found, answer
    return int(found[1])


def talk(gateway: GatewayProcess, request: bytes) -> bytes:
    """All that the gateway says until it closes the connection."""
    with RawClient(gateway) as raw:
        raw.send(request)
        return raw.read_to_end()


def assert_served(gateway: GatewayProcess) -> None:
    assert gateway.chat(max_tokens=1).status_code == 200


# Clients that are slow, or leave


def read_answer_to_end(raw: RawClient) -> bytes:
    """All that the gateway says until it closes the connection. The client says that no more comes once it has the
    answer; how long the gateway waits for the rest of a body otherwise is a matter of test_body_reading.py."""
    answer = raw.read_until(b"}}")
    raw.socket.shutdown(socket.SHUT_WR)
    return answer + raw.read_to_end()


@pytest.mark.parametrize(
    "request_bytes", [post(length=1000), post("Transfer-Encoding: chunked", body=b"5\r\n{", length=-1)]
)
def test_a_body_that_does_not_come_is_given_up_and_blocks_nobody(
    impatient: GatewayProcess, request_bytes: bytes
) -> None:
    with RawClient(impatient) as slow:
        slow.send(request_bytes)
        assert_served(impatient)
        answer = read_answer_to_end(slow)
    assert status_of(answer) == 408
    assert b'"code":"request_timeout"' in answer
    assert b"connection: close" in answer.lower()


@pytest.mark.parametrize("sent", [b"", b"GET", HEALTH[:-2], post(length=1000), post()[:-1]])
def test_a_client_that_leaves_in_the_middle_of_its_request_is_forgotten(gateway: GatewayProcess, sent: bytes) -> None:
    with RawClient(gateway) as leaving:
        leaving.send(sent)
    assert_served(gateway)


def test_many_half_sent_requests_block_nobody(impatient: GatewayProcess) -> None:
    with ExitStack() as held:
        slow = [held.enter_context(RawClient(impatient)) for _ in range(50)]
        for raw in slow:
            raw.send(post(length=1000))
        assert_served(impatient)
        assert [status_of(read_answer_to_end(raw)) for raw in slow] == [408] * 50


def test_many_idle_connections_block_nobody(gateway: GatewayProcess) -> None:
    with ExitStack() as held:
        idle = [held.enter_context(RawClient(gateway)) for _ in range(IDLE_CONNECTIONS)]
        wait_for(lambda: held_connections(gateway)["ESTABLISHED"] >= IDLE_CONNECTIONS, "all to be accepted")
        assert_served(gateway)
        idle[-1].send(HEALTH)
        assert status_of(idle[-1].read_until(b"}")) == 200


# What is no HTTP, or hardly


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\xa5" * 100 + b"\r\n\r\n",
        b"\x00" * 1000 + b"\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nbad header\r\n\r\n",
        post("Content-Length: 3"),
        post(length=10**30),
        post("Transfer-Encoding: gzip", length=-1),
        b"a" * 200_000,
    ],
    ids=lambda garbage: repr(garbage[:20]),
)
def test_garbage_is_turned_away(gateway: GatewayProcess, garbage: bytes) -> None:
    assert status_of(talk(gateway, garbage)) in {400, 414, 431, 501}
    assert_served(gateway)


def test_a_broken_chunk_ends_the_connection(gateway: GatewayProcess) -> None:
    talk(gateway, post("Transfer-Encoding: chunked", body=b"zz\r\nhello\r\n", length=-1))
    assert_served(gateway)


@pytest.mark.parametrize("filler", [40_000, 60_000, 100_000])
def test_headers_that_are_too_large(gateway: GatewayProcess, filler: int) -> None:
    request = MODELS[:-2] + b"X-Filler: " + b"a" * filler + b"\r\nConnection: close\r\n\r\n"
    assert status_of(talk(gateway, request)) == 431


def test_many_headers_count_together(client: httpx.Client) -> None:
    response = client.get("/v1/models", headers={f"x-{index}": "a" * 400 for index in range(100)})
    assert (response.status_code, response.json()["error"]["code"]) == (431, "headers_too_large")


# What HTTP/1 allows


def test_http_1_0_is_answered_and_closed(gateway: GatewayProcess) -> None:
    answer = talk(gateway, MODELS.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert status_of(answer) == 200
    assert b'"tiny"' in answer


def test_http_1_0_gets_a_stream_until_the_end_of_the_connection(gateway: GatewayProcess) -> None:
    streaming = CHAT_BODY.replace(b"}]", b'}],"stream":true')
    answer = talk(gateway, post(body=streaming).replace(b"HTTP/1.1", b"HTTP/1.0"))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert body.startswith(b"data: ")
    assert body.endswith(b"data: [DONE]\n\n")


def test_a_connection_is_used_again(gateway: GatewayProcess) -> None:
    with RawClient(gateway) as raw:
        for request, end in [(HEALTH, b'"ok"}'), (post(), b"}}"), (MODELS, b"]}")] * 10:
            raw.send(request)
            assert status_of(raw.read_until(end)) == 200


def test_a_connection_is_used_again_after_an_error(gateway: GatewayProcess) -> None:
    with RawClient(gateway) as raw:
        for request, status in [(post(body=b"{"), 400), (MODELS.replace(b"models", b"no"), 404), (post(), 200)]:
            raw.send(request)
            assert status_of(raw.read_until(b"}}")) == status


def test_requests_in_one_go_are_answered_in_order(gateway: GatewayProcess) -> None:
    last = HEALTH[:-2] + b"Connection: close\r\n\r\n"
    answer = talk(gateway, MODELS + post() + HEALTH + last)
    marks = [answer.index(mark) for mark in (b'"list"', b'"chat.completion"', b'"ok"')]
    assert marks == sorted(marks)
    assert re.findall(rb"HTTP/1\.1 (\d+)", answer) == [b"200"] * 4


def test_a_client_that_expects_100_continue_gets_it(gateway: GatewayProcess) -> None:
    with RawClient(gateway) as raw:
        raw.send(post("Expect: 100-continue", "Connection: close", body=b"", length=len(CHAT_BODY)))
        assert status_of(raw.read_until(b"\r\n\r\n")) == 100
        raw.send(CHAT_BODY)
        assert status_of(raw.read_to_end()) == 200


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_body_may_come_in_chunks_of_any_size(gateway: GatewayProcess, size: int) -> None:
    body = chunked(CHAT_BODY, size)
    answer = talk(gateway, post("Transfer-Encoding: chunked", "Connection: close", body=body, length=-1))
    assert status_of(answer) == 200


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize("line", ["X-Ok: 1", "Content-Type: text/plain", "X-Filler: " + "a" * 40_000])
def test_a_refused_upload_is_answered_and_let_go(gateway: GatewayProcess, size: int, line: str) -> None:
    body = chunked(b"x" * min(3 * MAX_BODY, 2000 * size), size)
    kind = [] if line.startswith("Content-Type") else ["Content-Type: application/json"]
    head = ["POST /v1/chat/completions HTTP/1.1", "Host: localhost", "Transfer-Encoding: chunked", *kind, line, "", ""]
    with RawClient(gateway) as raw:
        try:
            raw.send("\r\n".join(head).encode() + body)
        except ConnectionError:
            pass  # it is answered before it has sent all
        assert status_of(raw.read_until(b"}}")) in {400, 413, 415, 431}


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/api/status"])
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    response = client.head(path)
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["x-request-id"]
    assert client.get(path).content


def test_head_of_a_route_that_has_none_has_no_body_either(client: httpx.Client) -> None:
    response = client.head("/v1/completions")
    assert (response.status_code, response.content, response.headers["allow"]) == (405, b"", "POST")
    assert client.get("/v1/models").status_code == 200


def test_options_tells_what_there_is_and_gives_no_page_a_leave(client: httpx.Client) -> None:
    for path in ("/v1/models", "/v1/chat/completions", "/api/status"):
        assert client.options(path).headers["allow"]
        preflight = {"origin": "http://localhost", "access-control-request-method": "POST"}
        response = client.options(path, headers=preflight)
        assert (response.status_code, response.json()["error"]["code"]) == (403, "bad_origin")
        assert not [name for name in response.headers if name.startswith("access-control")]


# Upgrades


@pytest.mark.parametrize("path", ["/", "/v1/chat/completions", "/api/status", "/healthz"])
@pytest.mark.parametrize("trailing", [b"", b"\x81\x85trailing", HEALTH])
def test_a_websocket_is_refused_without_harm(gateway: GatewayProcess, path: str, trailing: bytes) -> None:
    head = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert status_of(talk(gateway, head.encode() + trailing)) in {400, 403}
    assert_served(gateway)


def test_http_2_is_spoken_with_who_begins_with_it(gateway: GatewayProcess) -> None:
    """As a proxy in front of the gateway may: many requests over one connection."""
    with httpx.Client(base_url=gateway.url, http1=False, http2=True, timeout=WAIT_SECONDS) as client:

        def ask(index: int) -> tuple[str, int, bool]:
            body = {**json.loads(CHAT_BODY), "stream": bool(index % 2)}
            response = client.post("/v1/chat/completions", json=body)
            return response.http_version, response.status_code, response.text.endswith("data: [DONE]\n\n")

        assert sorted(together(10, ask)) == [("HTTP/2", 200, False)] * 5 + [("HTTP/2", 200, True)] * 5
        too_large = client.post(
            "/v1/chat/completions", content=b"x" * (MAX_BODY + 1), headers={"content-type": "application/json"}
        )
        assert (too_large.http_version, too_large.status_code) == ("HTTP/2", 413)
        assert client.get("/nothing").status_code == 404


def test_a_refused_upload_over_http_2_ends_no_other_stream(gateway: GatewayProcess) -> None:
    """What still comes of its body belongs to no request any more."""
    client = h2.connection.H2Connection(h2.config.H2Configuration())
    client.initiate_connection()
    head = [(":authority", "localhost"), (":scheme", "http"), (":method", "POST"), (":path", "/v1/chat/completions")]
    with RawClient(gateway) as raw:
        client.send_headers(1, [*head, ("content-type", "text/plain")])
        raw.send(client.data_to_send())
        assert statuses_until(raw, client, StreamEnded) == [(1, b"415")]
        client.send_data(1, b"late", end_stream=True)
        client.send_headers(3, [*head, ("content-type", "application/json")])
        client.send_data(3, CHAT_BODY, end_stream=True)
        raw.send(client.data_to_send())
        assert statuses_until(raw, client, StreamEnded) == [(3, b"200")]


def statuses_until(raw: RawClient, client: h2.connection.H2Connection, kind: type[object]) -> list[tuple[int, bytes]]:
    """Of the responses that begin until an event of that kind comes. Fails when the connection ends before it."""
    statuses: list[tuple[int, bytes]] = []
    while data := raw.socket.recv(65536):
        events = client.receive_data(data)
        statuses += [(event.stream_id, dict(event.headers)[b":status"]) for event in events if is_response(event)]
        if any(isinstance(event, kind) for event in events):
            return statuses
    raise AssertionError("the connection ended")


def is_response(event: object) -> TypeGuard[ResponseReceived]:
    return isinstance(event, ResponseReceived)


def test_broken_http_2_breaks_nothing(gateway: GatewayProcess) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for rest in (b"", b"\x00" * 500, b"\xff" * 500, HEALTH, b"\x00\x00\x04\x01\x05\x00\x00\x00\x01\xff\xff\xff\xff"):
        with RawClient(gateway) as raw:
            raw.send(preface + rest)
    assert_served(gateway)


# What every response carries


RESPONSES: Final[list[tuple[str, str, dict[str, Any], int]]] = [
    ("GET", "/healthz", {}, 200),
    ("GET", "/readyz", {}, 200),
    ("GET", "/metrics", {}, 200),
    ("GET", "/api/status", {}, 200),
    ("GET", "/v1/models", {}, 200),
    ("POST", "/v1/chat/completions", {"content": CHAT_BODY}, 200),
    ("POST", "/v1/chat/completions", {"content": CHAT_BODY.replace(b"}]", b'}],"stream":true')}, 200),
    ("POST", "/v1/chat/completions", {"content": b"{"}, 400),
    ("POST", "/v1/chat/completions", {"content": CHAT_BODY.replace(b"tiny", b"nobody")}, 404),
    ("POST", "/v1/chat/completions", {"content": b"x" * (MAX_BODY + 1)}, 413),
    ("POST", "/v1/chat/completions", {"headers": {"content-type": "text/plain"}}, 415),
    ("GET", "/v1/chat/completions", {}, 405),
    ("PUT", "/api/status", {}, 405),
    ("GET", "/nothing", {}, 404),
    ("GET", "/api/nothing", {}, 404),
    ("GET", "/v1/models", {"headers": {"host": "evil.example"}}, 403),
    ("GET", "/v1/models", {"headers": {"x-filler": "a" * 40_000}}, 431),
]


@pytest.mark.parametrize(("method", "path", "options", "status"), RESPONSES, ids=lambda value: str(value)[:30])
def test_the_request_id_is_on_every_response(
    client: httpx.Client, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    headers = {"content-type": "application/json", "x-request-id": "me-1!~", **options.get("headers", {})}
    response = client.request(method, path, headers=headers, content=options.get("content"))
    assert (response.status_code, response.headers.get_list("x-request-id")) == (status, ["me-1!~"])
    assert "server" not in response.headers


@pytest.mark.parametrize("given", [b"a" * 129, b"\xc3\xa9", b""])
def test_a_request_id_that_is_not_fit_is_replaced(gateway: GatewayProcess, given: bytes) -> None:
    answer = talk(gateway, MODELS[:-2] + b"X-Request-Id: " + given + b"\r\nConnection: close\r\n\r\n")
    (made,) = re.findall(rb"(?i)x-request-id: (\S+)\r\n", answer)
    assert re.fullmatch(rb"[0-9a-f-]{36}", made)


def test_a_request_without_an_id_gets_one_of_its_own(client: httpx.Client) -> None:
    assert len({client.get("/healthz").headers["x-request-id"] for _ in range(5)}) == 5


def test_the_log_line_of_a_request_has_its_id_and_its_facts(client: httpx.Client, gateway: GatewayProcess) -> None:
    headers = {"content-type": "application/json", "x-request-id": "find-me"}
    client.post("/v1/chat/completions", content=CHAT_BODY, headers=headers)
    (line,) = wait_for(lambda: [line for line in gateway.lines if "find-me" in line], "the line")
    entry = json.loads(line)
    assert entry["event"] == "request"
    assert (entry["level"], entry["status"], entry["model"], entry["completion_tokens"]) == ("info", 200, "tiny", 2)
    assert entry["replica_id"]
    assert entry["node"]


# Forms


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_is_framed_exactly(client: httpx.Client, path: str) -> None:
    prompt = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    body = {"model": "tiny", "max_tokens": 20, "stream": True, "stream_options": {"include_usage": True}, **prompt}
    with client.stream("POST", path, json=body) as response:
        raw = b"".join(response.iter_raw())
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-accel-buffering"] == "no"
    assert "content-length" not in response.headers
    *events, nothing = raw.split(b"\n\n")
    assert nothing == b""
    assert events.pop() == b"data: [DONE]"
    assert all(re.fullmatch(rb"data: \{[^\n\r]*\}", event) for event in events)
    chunks = [json.loads(event.removeprefix(b"data: ")) for event in events]
    assert {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert [bool(chunk["choices"]) for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
    assert [chunk["usage"] is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]


def test_an_error_before_the_stream_is_no_stream(client: httpx.Client) -> None:
    too_long = [{"role": "user", "content": "w " * 5_000}]
    body = {**json.loads(CHAT_BODY), "stream": True, "messages": too_long}
    response = client.post("/v1/chat/completions", json=body)
    assert (response.status_code, response.headers["content-type"]) == (400, "application/json")


def test_metrics_have_their_type_and_their_series(client: httpx.Client, gateway: GatewayProcess) -> None:
    assert_served(gateway)
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert families.keys() >= {
        "gateway_requests",
        "gateway_request_duration_seconds",
        "gateway_time_to_first_token_seconds",
        "gateway_tokens",
        "gateway_in_flight",
        "gateway_queue_length",
        "gateway_picks",
        "gateway_reroutes",
        "gateway_replicas",
        "gateway_nodes",
        "gateway_registry_statements",
        "gateway_is_leader",
    }
    models = {sample.labels["model"] for sample in families["gateway_requests"].samples}
    assert models <= {"tiny", "unknown"}, "what clients made up is no label"


def test_the_status_document_has_its_form(client: httpx.Client) -> None:
    document = client.get("/api/status").json()
    assert set(document) == {"gateways", "nodes", "models", "replicas"}
    assert set(document["gateways"][0]) >= {"id", "leader"}
    assert set(document["nodes"][0]) >= {"id", "name", "status", "labels", "capacity"}
    assert set(document["models"][0]) >= {"name", "revision", "ready", "desired", "in_flight", "queued", "status"}
    replica = {"id", "model", "node", "state", "in_flight", "slots", "address", "pid", "since", "error"}
    assert set(document["replicas"][0]) >= replica
    model = next(model for model in document["models"] if model["name"] == "tiny")
    assert (model["ready"], model["desired"], model["status"]) == (1, 1, "ready")
    assert document["replicas"][0]["state"] == "ready"
    assert document["nodes"][0]["name"] == document["replicas"][0]["node"]
