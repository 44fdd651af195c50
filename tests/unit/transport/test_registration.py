"""Joining a gateway over HTTP: what is sent, what is taken for an answer, and what a worker is told otherwise."""

import json
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from gateway.domain.ids import BootId, NodeId
from gateway.transport import registration
from gateway.transport.registration import (
    ANSWER_BYTES_MAX,
    JoinFailed,
    JoinRefused,
    RegistrationAnswer,
    RegistrationRequest,
    register,
)

URL = "http://gateway:8080"
TOKEN = "join-token"
REQUEST = RegistrationRequest("worker-1", BootId("boot-1"))
ANSWER: dict[str, Any] = {
    "node_id": "node-1",
    "credential": "c" * 64,
    "session_address": "10.0.0.1:8081",
    "approved": True,
    "gateway_id": "gateway-1",
    "tls": False,
}


async def ask(
    answer: Callable[[httpx.Request], httpx.Response],
    *,
    url: str = URL,
    token: str = TOKEN,
    request: RegistrationRequest = REQUEST,
) -> RegistrationAnswer:
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer)) as http:
        return await register(http, url, token, request)


def arriving(status: int, body: bytes) -> httpx.Response:
    """As it comes over a connection: read by nobody so far."""

    async def chunks() -> AsyncIterator[bytes]:
        yield body

    return httpx.Response(status, content=chunks())


def says(status: int, document: object) -> Callable[[httpx.Request], httpx.Response]:
    return lambda _request: arriving(status, json.dumps(document).encode())


def refuses(status: int, message: str = "no", code: str | None = None) -> Callable[[httpx.Request], httpx.Response]:
    return says(status, {"error": {"message": message, "type": "t", "param": None, "code": code}})


async def test_what_is_sent() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return arriving(200, json.dumps(ANSWER).encode())

    await ask(answer, url=f"{URL}/")
    again = RegistrationRequest("worker-1", BootId("boot-2"), NodeId("node-1"), BootId("boot-1"), "credential")
    await ask(answer, request=again)
    assert [(request.method, str(request.url)) for request in seen] == [("POST", f"{URL}/api/node/register")] * 2
    assert seen[0].headers["authorization"] == f"Bearer {TOKEN}"
    assert json.loads(seen[0].content) == {"name": "worker-1", "boot_id": "boot-1"}
    assert json.loads(seen[1].content) == {
        "name": "worker-1",
        "boot_id": "boot-2",
        "node_id": "node-1",
        "previous_boot_id": "boot-1",
        "previous_credential": "credential",
    }


async def test_an_answer() -> None:
    answer = await ask(says(200, ANSWER))
    assert answer.model_dump() == ANSWER


async def test_what_a_newer_gateway_says_besides_is_ignored() -> None:
    assert (await ask(says(200, {**ANSWER, "weather": "fine"}))).node_id == "node-1"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"node_id": ""}, "node_id"),
        ({"node_id": "a\nb"}, "node_id"),
        ({"credential": 5}, "credential"),
        ({"credential": "a b"}, "credential"),
        ({"session_address": "nowhere"}, "session_address"),
        ({"session_address": "host:80\n"}, "session_address"),
        ({"approved": "yes"}, "approved"),
        ({"tls": None}, "tls"),
    ],
)
async def test_an_answer_that_is_none_names_the_field(change: dict[str, object], named: str) -> None:
    with pytest.raises(JoinFailed, match=named):
        await ask(says(200, {**ANSWER, **change}))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"\xff", b"x" * (ANSWER_BYTES_MAX + 1)])
@pytest.mark.parametrize("status", [200, 204, 302, 500])
async def test_garbage_is_tried_again(status: int, body: bytes) -> None:
    with pytest.raises(JoinFailed, match=URL):
        await ask(lambda _request: arriving(status, body))


@pytest.mark.parametrize(
    ("status", "code", "todo"),
    [
        (400, "invalid_value", "configuration"),
        (401, "invalid_join_token", "join token"),
        (401, "invalid_node_credential", "new node"),
        (403, "join_disabled", "auth.join_token"),
        (404, "not_found", "URL"),
        (409, "node_name_taken", "another name"),
        (418, None, "configuration"),
    ],
)
async def test_a11_a_refusal_says_why_and_what_to_do(status: int, code: str | None, todo: str) -> None:
    with pytest.raises(JoinRefused, match=f"the gateway's words.*{todo}") as caught:
        await ask(refuses(status, "the gateway's words", code))
    assert caught.value.code == code


async def test_a_refusal_in_other_words_is_one_all_the_same() -> None:
    with pytest.raises(JoinRefused, match="404") as caught:
        await ask(lambda _request: arriving(404, b"<h1>not here</h1>"))
    assert caught.value.code is None


async def test_a_refusal_is_passed_on_but_not_without_end() -> None:
    with pytest.raises(JoinRefused) as caught:
        await ask(refuses(400, "x" * 10_000))
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503])
async def test_what_passes_is_tried_again(status: int) -> None:
    with pytest.raises(JoinFailed, match="the gateway's words"):
        await ask(refuses(status, "the gateway's words"))


async def test_nobody_there_is_tried_again() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    with pytest.raises(JoinFailed, match="connection refused"):
        await ask(answer)


async def test_a_certificate_that_is_not_trusted_is_named_as_the_cause() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        found = ssl.SSLCertVerificationError("certificate verify failed")
        found.verify_message = "self-signed certificate"
        broken = trio.BrokenResourceError()
        broken.__cause__ = found
        raise httpx.ConnectError("", request=request) from broken

    with pytest.raises(JoinFailed, match=r"self-signed certificate; worker\.tls_ca"):
        await ask(answer)


async def test_a_gateway_that_hangs_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    class Hanging(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            await trio.sleep_forever()
            raise AssertionError

    async with httpx.AsyncClient(transport=Hanging()) as http:
        with pytest.raises(JoinFailed, match="did not answer"):
            await register(http, URL, TOKEN, REQUEST)


async def test_too_long_an_answer_is_none_and_is_not_kept() -> None:
    padded = json.dumps(ANSWER).encode() + b" " * (2 * ANSWER_BYTES_MAX)
    with pytest.raises(JoinFailed):
        await ask(lambda _request: arriving(200, padded))
    async with httpx.AsyncClient(transport=httpx.MockTransport(lambda _request: arriving(200, padded))) as http:
        _, kept = await registration._post(http, URL, TOKEN, REQUEST)
    assert len(kept) == ANSWER_BYTES_MAX + 1


async def test_an_answer_without_end_is_given_up(autojump_clock: trio.testing.MockClock) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            await trio.sleep(0.1)
            yield b" " * ANSWER_BYTES_MAX

    with pytest.raises(JoinFailed, match="did not answer"):
        await ask(lambda _request: httpx.Response(200, content=endless()))


@pytest.mark.parametrize("url", ["gateway:8080", "ftp://gateway", "http://[::1"])
async def test_no_url_is_refused(url: str) -> None:
    async with httpx.AsyncClient() as http:
        with pytest.raises(JoinRefused, match="no URL of a gateway"):
            await register(http, url, TOKEN, REQUEST)


@pytest.mark.parametrize("token", ["", "secret\n", "geheim\u00e9", "two words"])
async def test_a_token_that_can_not_be_sent_is_named_and_not_shown(token: str) -> None:
    with pytest.raises(JoinRefused, match="join token") as caught:
        await ask(says(200, ANSWER), token=token)
    assert not token or token not in str(caught.value)


async def test_secrets_are_not_shown() -> None:
    request = RegistrationRequest("n", BootId("b"), previous_credential="hush")
    answer = await ask(says(200, {**ANSWER, "credential": "hush"}), request=request)
    assert "hush" not in repr(request) + repr(answer)
    with pytest.raises(JoinFailed) as caught:
        await ask(says(200, {**ANSWER, "credential": ["hush"]}))
    assert "hush" not in str(caught.value)
