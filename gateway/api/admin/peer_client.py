"""Asks another gateway of the fleet for a resource that only that one has, and passes its answer on as it comes.

It asks only addresses that gateways have published, with the caller's own credentials, which all gateways of a fleet
accept. A relayed request is not relayed again, so it cannot go round in circles.
"""

import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

import httpcore  # noqa: F401 - else the first call imports it, which everybody else would feel
import httpx
import trio

from gateway.api.http.event_stream import MEDIA_TYPE, whole_events
from gateway.api.http.exchange import REQUEST_ID, Exchange, Headers
from gateway.domain.causes import cause_words
from gateway.domain.errors import Unavailable
from gateway.domain.ids import GatewayId
from gateway.domain.peers import PeerState
from gateway.transport.node_credentials import AUTHORIZATION, BOOT, NODE

CONNECT_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 15.0
"""How long an answer may take to begin. It is longer than the other gateway's own wait for a worker's output."""
SILENCE_SECONDS: Final = 60.0
"""The longest pause between two parts of an answer. A quiet event stream sends something more often."""
RETRY_AFTER_SECONDS: Final = 5.0
EVENT_BYTES_MAX: Final = 4 * 1024 * 1024

TRUSTS_NOBODY: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)

RELAYED: Final = "x-gateway-relayed"
ASKED_WITH: Final = (AUTHORIZATION, NODE, BOOT, "range", "if-range")
"""The headers of the caller that are passed on."""
ANSWERED_WITH: Final = frozenset(
    {
        b"content-type",
        b"content-length",
        b"content-range",
        b"content-encoding",
        b"accept-ranges",
        b"etag",
        b"cache-control",
        b"x-accel-buffering",
        b"retry-after",
        b"www-authenticate",
    }
)
"""The headers of the answer that are passed back. Each gateway sets the others itself."""


class PeerFailed(Unavailable):
    """Another gateway, which the message names, could not be reached or did not answer as a gateway."""

    def __init__(self, peer: PeerState, because: str) -> None:
        super().__init__(
            f"The gateway '{peer.gateway_id}' at {peer.url} {because}.", retry_after_seconds=RETRY_AFTER_SECONDS
        )


@dataclass
class PeerClient:
    """Asks other gateways. `context` is the TLS context for them; None means what the system trusts."""

    gateways: Callable[[], Mapping[GatewayId, PeerState]]
    """The newest peer state of each other one that lives."""
    context: ssl.SSLContext | None = None

    async def relay(self, exchange: Exchange, gateway_id: GatewayId) -> None:
        """Answers with the response of that gateway. Raises `Unavailable` if it cannot be reached."""
        peer = next((peer for peer in self._askable(exchange) if peer.gateway_id == gateway_id), None)
        if peer is None:
            raise Unavailable(
                f"This resource is held by gateway '{gateway_id}', which cannot be reached from here.",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        async with self._ask(exchange, peer) as response:
            await _pass_on(exchange, response, peer)

    async def relay_from_any(self, exchange: Exchange) -> bool:
        """Answers with the first response that is not "not found". Returns False, without an answer, if all responses
        are.

        Raises `Unavailable` if a gateway that may have the resource could not be reached or could not tell.
        """
        unsure: PeerFailed | None = None
        for peer in self._askable(exchange):
            try:
                if await self._relay_if_found(exchange, peer):
                    return True
            except PeerFailed as error:
                if exchange.status is not None:
                    raise
                unsure = unsure or error
        if unsure is not None:
            raise unsure
        return False

    async def _relay_if_found(self, exchange: Exchange, peer: PeerState) -> bool:
        async with self._ask(exchange, peer) as response:
            if response.status_code == 404:
                return False
            if response.is_server_error:
                raise PeerFailed(peer, f"could not tell whether it has this: it answered {response.status_code}")
            await _pass_on(exchange, response, peer)
            return True

    def _askable(self, exchange: Exchange) -> Iterator[PeerState]:
        if not was_relayed(exchange):
            yield from (peer for peer in self.gateways().values() if peer.url)

    @asynccontextmanager
    async def _ask(self, exchange: Exchange, peer: PeerState) -> AsyncIterator[httpx.Response]:
        """Yields a gateway's response with an unread body. Raises `PeerFailed`."""
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        verify = await self._trust(peer)
        # A proxy of the environment is for the outside world, and may delay a stream.
        async with httpx.AsyncClient(verify=verify, timeout=timeout, trust_env=False) as http:
            with _naming_peer(peer, "can't be reached"):
                response = await _answer(http, _request(exchange, peer), peer)
            try:
                yield response
            finally:
                await response.aclose()

    async def _trust(self, peer: PeerState) -> ssl.SSLContext:
        """Returns the TLS context. It is made in a thread, because reading the system's certificates takes noticeably
        long."""
        if not peer.url.startswith("https:"):
            return TRUSTS_NOBODY
        if self.context is None:
            self.context = await trio.to_thread.run_sync(ssl.create_default_context)
        return self.context


def was_relayed(exchange: Exchange) -> bool:
    """Returns whether another gateway asks on behalf of the caller."""
    return exchange.header(RELAYED) is not None


def _request(exchange: Exchange, peer: PeerState) -> httpx.Request:
    """Returns the same request for another gateway."""
    headers = {
        "accept-encoding": "identity",
        "user-agent": "gateway",
        REQUEST_ID.decode(): exchange.request_id,
        RELAYED: "1",
    }
    headers |= {name: value for name in ASKED_WITH if (value := exchange.header(name)) is not None}
    url = peer.url.rstrip("/") + quote(exchange.path)
    return httpx.Request(exchange.method, url, params=dict(exchange.query), headers=headers)


async def _answer(http: httpx.AsyncClient, request: httpx.Request, peer: PeerState) -> httpx.Response:
    with trio.move_on_after(ANSWER_SECONDS):
        response = await http.send(request, stream=True, follow_redirects=False)
        if not _is_a_gateways(response):
            await response.aclose()
            raise PeerFailed(peer, f"answered {response.status_code}, and not as a gateway does")
        return response
    raise PeerFailed(peer, f"did not answer within {ANSWER_SECONDS:g} s")


def _is_a_gateways(response: httpx.Response) -> bool:
    """Returns whether the response comes from a gateway: it is no redirect, and its errors are in the API's
    envelope."""
    kind: str = response.headers.get("content-type", "")
    return response.is_success or (response.is_error and kind.startswith("application/json"))


async def _pass_on(exchange: Exchange, response: httpx.Response, peer: PeerState) -> None:
    """Passes the response on. A client that does not read slows down the other gateway, and nothing is kept in
    between."""
    exchange.notes["relayed_from"] = peer.gateway_id
    headers = _headers_to_pass(response)
    await exchange.send_head(response.status_code, headers, is_event_stream=_is_event_stream(response))
    parts = response.aiter_raw()
    try:
        with _naming_peer(peer, "was lost"):
            await _send_parts(exchange, parts, peer)
    except BaseException:
        await _end(parts)
        raise
    await exchange.end_stream()


def _headers_to_pass(response: httpx.Response) -> Headers:
    passed = ANSWERED_WITH - ({b"content-length"} if _is_event_stream(response) else set())
    return [(name.lower(), value) for name, value in response.headers.raw if name.lower() in passed]


def _is_event_stream(response: httpx.Response) -> bool:
    kind: str = response.headers.get("content-type", "")
    return kind.startswith(MEDIA_TYPE)


async def _send_parts(exchange: Exchange, parts: AsyncIterator[bytes], peer: PeerState) -> None:
    """Sends events as a whole, so that an error event can follow at any time, and anything else as it comes."""
    held = b""
    async for part in parts:
        ready = part
        if exchange.is_event_stream:
            ready, held = whole_events(held + part)
        if ready:
            await exchange.send_part(ready)
        if len(held) > EVENT_BYTES_MAX:
            raise PeerFailed(peer, "sends what is no event stream")
    if held:
        raise PeerFailed(peer, "was lost in the middle of an event")


async def _end(parts: AsyncIterator[bytes]) -> None:
    """Ends the iterator. httpx's iterators have to be read to their end or be ended by an exception of theirs, here a
    cancel."""
    with trio.CancelScope() as scope, suppress(httpx.HTTPError):
        scope.cancel()
        async for _ in parts:
            pass


@contextmanager
def _naming_peer(peer: PeerState, what: str) -> Iterator[None]:
    """Translates httpx's errors to `PeerFailed`."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PeerFailed(peer, f"{what}: {cause_words(error)}") from error
