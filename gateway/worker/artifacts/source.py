"""Decides where a file is fetched from: its URL, its credentials, and the address to connect to.

A URL that came through the API is not trusted: it must not reach what only this machine can reach (SSRF). So its name
is resolved here, every address has to be public, and the connection goes to exactly the address that was checked, at
each redirect again. `domain/special_addresses` says which addresses are public.
"""

import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx
import trio

from gateway.domain.artifact import shown
from gateway.domain.host_port import is_loopback_address
from gateway.domain.model_spec import NOTHING
from gateway.domain.special_addresses import is_metadata, is_public
from gateway.worker.artifacts.reference import ArtifactError

GATEWAY_PATH: Final = "/api/artifacts/"
"""The path below which a gateway serves the files that only it has, by their hash."""
REDIRECTS_MAX: Final = 5
RESOLVE_SECONDS: Final = 30.0

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Resolves a host and port to addresses. Raises `OSError`."""


class Interrupted(Exception):
    """The attempt failed, and another one may succeed. `retry_after_seconds` is the pause that the server asks for,
    or None."""

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


@dataclass(frozen=True)
class Source:
    """A URL from which an artifact is downloaded, with its credentials and with the addresses it may lead to."""

    url: str
    headers: Mapping[str, str] = field(default_factory=lambda: NOTHING, repr=False)
    """The headers with the credentials. They go to the origin of `url` only, wherever it redirects to."""
    is_trusted: bool = False
    """Whether the operator has named its origin (the hub, a gateway). It may then have any address and no TLS."""
    public_only: bool = False
    """Whether addresses of private networks and of this machine are refused, also in redirects."""
    plain_loopback: bool = False
    """Whether `http://` to this machine itself is allowed."""
    redirects_max: int = REDIRECTS_MAX
    context: ssl.SSLContext | None = None
    """The TLS context for its server, if it differs from the downloader's."""


def origin_of(url: httpx.URL) -> tuple[str, str, int]:
    """Returns the origin of `url`: its scheme, host and port, the scheme's default port included (RFC 6454)."""
    return url.scheme, url.host, url.port or {"https": 443, "http": 80}.get(url.scheme, 0)


async def resolve(host: str, port: int) -> Sequence[str]:
    """Returns the addresses of `host` by the system's resolver, each of them once.

    Raises `OSError` if there are none.
    """
    found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(each[4][0]) for each in found))


async def address_for(source: Source, url: httpx.URL, resolve: Resolve, turn: int) -> str | None:
    """Returns the address to connect to for `url`: the `turn`th of its addresses, or None if any address of the name
    will do.

    Raises `ArtifactError` if the URL is not allowed, `Interrupted` if its name cannot be resolved now.
    """
    if source.is_trusted and origin_of(url) == origin_of(httpx.URL(source.url)):
        return None
    plain_is_fine = source.plain_loopback and url.scheme == "http" and is_loopback_address(url.host)
    if url.scheme != "https" and not plain_is_fine:
        raise ArtifactError(f"{shown(source.url)} redirects to {shown(str(url))}: only https:// is fetched")
    if not source.public_only:
        if is_metadata(url.host):
            raise ArtifactError(f"{shown(str(url))} leads to a cloud's metadata, which are no source of models")
        return None
    addresses = await _resolved(url, resolve)
    for address in addresses:
        if not is_public(address):
            raise ArtifactError(
                f"{shown(str(url))} leads to {address}, an address that is not public: only the configuration file "
                "may name such a source"
            )
    return addresses[turn % len(addresses)]


async def _resolved(url: httpx.URL, resolve: Resolve) -> Sequence[str]:
    with trio.move_on_after(RESOLVE_SECONDS):
        try:
            addresses = await resolve(url.host, origin_of(url)[2])
        except (OSError, UnicodeError) as error:
            raise Interrupted(f"the name {url.host} can't be resolved: {error}") from error
        if not addresses:
            raise Interrupted(f"the name {url.host} has no address")
        return addresses
    raise Interrupted(f"the name {url.host} was not resolved within {RESOLVE_SECONDS:g} s")


def build_request(source: Source, url: httpx.URL, address: str | None, headers: Mapping[str, str]) -> httpx.Request:
    """Builds a GET request to `address`, or to `url` if that is None; Host and the TLS name are those of `url`."""
    own = source.headers if origin_of(url) == origin_of(httpx.URL(source.url)) else NOTHING
    if address is None:
        return httpx.Request("GET", url, headers={**headers, **own})
    named = {"host": url.netloc.decode("ascii"), **headers, **own}
    return httpx.Request(
        "GET", url.copy_with(host=address), headers=named, extensions={"sni_hostname": url.raw_host.decode("ascii")}
    )


@dataclass
class GatewaySource:
    """The gateway as a source of files. The membership sets its address at each registration, and downloads read it."""

    context: ssl.SSLContext | None = None
    """The TLS context that checks the gateway's certificate. None means what the system trusts."""
    _url: str | None = field(default=None, init=False)
    _credential: Mapping[str, str] = field(default_factory=lambda: NOTHING, init=False, repr=False)

    def point_at(self, url: str, credential: Mapping[str, str]) -> None:
        """Sets the gateway to fetch from. `credential` are the headers that prove which node this is."""
        self._url, self._credential = url.rstrip("/"), credential

    def source(self, sha256: str) -> Source:
        """Returns the source of the file with this hash. Raises `Interrupted` before the first registration."""
        if self._url is None:
            raise Interrupted("there is no gateway to fetch it from yet")
        url = self._url + GATEWAY_PATH + sha256.lower()
        return Source(url, self._credential, is_trusted=True, redirects_max=0, context=self.context)
