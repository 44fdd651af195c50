"""Decides which web pages may use the gateway: CORS for those that may, and a guard against all others. Pure.

A gateway without keys listens on the loopback only, but a web page can make the browser send requests there (CSRF, DNS
rebinding). So `Host` has to be a loopback name (a rebound DNS name is not) or an allowed one, and likewise an `Origin`.
All bodies have to be JSON: a page can send a form across origins, but not `application/json` without asking first.

A browser shows a script an answer of another origin only if its headers allow that (Fetch Standard, "CORS protocol").
"""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from gateway.domain.errors import Forbidden, UnsupportedMediaType
from gateway.domain.host_port import is_loopback
from gateway.domain.texts import quoted

HEADERS_CACHED: Final = 64
"""The number of header values that are not checked anew, because a client sends the same ones with each request."""
ANY: Final = "*"
"""Stands for every origin, if the configuration says so."""
PREFLIGHT_SECONDS: Final = 7200
"""How long a browser need not ask again. Chromium takes no longer time."""
EXPOSED: Final = (
    b"x-request-id, retry-after, x-gateway-replica, x-gateway-node, x-gateway-fallback, x-gateway-continued, "
    b"x-gateway-ignored-parameters"
)
"""The headers that a script may read, besides the few that it always may."""
METHODS: Final = b"GET, HEAD, POST, PUT, PATCH, DELETE"
_HEADER_NAMES: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]+(?:[ \t]*,[ \t]*[-!#$%&'*+.^_`|~0-9A-Za-z]+)*")

Headers = list[tuple[bytes, bytes]]


class BrowserPolicy:
    """The origins whose pages may use this gateway, and the names by which a gateway without keys is reached."""

    def __init__(self, *, origins: Collection[str] = (), hosts: Collection[str] = ()) -> None:
        """`origins` are in small letters and without the default port, as browsers send them. `hosts` come besides the
        loopback names."""
        self._origins = frozenset(origins)
        self._hosts = frozenset(_normal(host) for host in hosts)
        self._allows_all = ANY in self._origins
        self.has_origins = bool(self._origins)
        """Whether answers carry headers for browsers."""
        self.check_local_request = lru_cache(HEADERS_CACHED)(self._check_local_request)
        """Raises `Forbidden` unless `host` and `origin` are this machine's, or allowed. A client without an `Origin` is
        no browser."""

    def allows(self, origin: str) -> bool:
        """Returns whether pages of `origin` may read answers."""
        return self._allows_all or origin in self._origins

    def answer_headers(self, origin: str | None) -> Headers:
        """Returns the headers of every answer to a request with this `Origin`."""
        if self._allows_all:
            return [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED)]
        varies = (b"vary", b"Origin")
        if origin is None or origin not in self._origins:
            return [varies]
        allowed = (b"access-control-allow-origin", origin.encode("latin-1"))
        return [varies, allowed, (b"access-control-expose-headers", EXPOSED)]

    def preflight_headers(self, origin: str, asked_headers: str | None, *, asks_for_local_network: bool) -> Headers:
        """Returns what a browser is allowed that asks before it sends a request. `asked_headers` are the names that it
        would send, and `asks_for_local_network` means that the page comes from a public network. Raises `Forbidden`."""
        if not self.allows(origin):
            raise _bad_origin(origin)
        headers = [(b"access-control-allow-methods", METHODS)]
        if asked_headers is not None and _HEADER_NAMES.fullmatch(asked_headers):
            headers.append((b"access-control-allow-headers", asked_headers.encode("latin-1")))
        if asks_for_local_network:
            headers.append((b"access-control-allow-private-network", b"true"))
        return [*headers, (b"access-control-max-age", str(PREFLIGHT_SECONDS).encode())]

    def _check_local_request(self, host: str | None, origin: str | None) -> None:
        if host is None or not self._is_local(host_name(host)):
            raise Forbidden(
                "A gateway without API keys answers only to a loopback Host, such as localhost, and to those in "
                "server.allowed_hosts.",
                code="bad_host",
            )
        if origin is not None and not self._is_local(_host_of(origin)) and not self.allows(origin):
            raise _bad_origin(origin)

    def _is_local(self, host: str) -> bool:
        return is_loopback(host) or _normal(host) in self._hosts


def _bad_origin(origin: str) -> Forbidden:
    return Forbidden(
        f"Web pages of the origin '{quoted(origin)}' may not use this gateway. To allow them, add it to "
        "server.allowed_origins.",
        code="bad_origin",
    )


@lru_cache(HEADERS_CACHED)
def check_json(content_type: str | None) -> None:
    """Raises `UnsupportedMediaType` unless the body is declared as JSON."""
    kind = (content_type or "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise UnsupportedMediaType("The body has to be JSON: send 'Content-Type: application/json'.")


def host_name(host: str) -> str:
    """Returns the name or address of a `Host` header, without its port and brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _normal(host: str) -> str:
    return host.lower().rstrip(".")


def _host_of(origin: str) -> str:
    """Returns the host of an origin. It is empty for `null`, which a page without an origin sends, and for a text that
    is no URL. A page of the web has a host that may be local; any other one (an extension, a desktop application) is
    allowed by its whole origin only."""
    try:
        parts = urlsplit(origin)
    except ValueError:
        return ""
    return parts.hostname or "" if parts.scheme in {"http", "https"} else ""
