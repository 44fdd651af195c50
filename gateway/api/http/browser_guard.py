"""Protects a gateway without keys from web pages in a browser on the same machine (CSRF, DNS rebinding). Pure.

A gateway without keys listens on the loopback only, but a web page can make the browser send requests there. So `Host`
has to be a loopback name (a rebound DNS name is not), and an `Origin` has to be a loopback one, too. All bodies have to
be JSON: a page can send a form across origins, but not `application/json` without asking first.
"""

from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from gateway.domain.errors import Forbidden, UnsupportedMediaType
from gateway.domain.host_port import is_loopback

HEADERS_CACHED: Final = 64
"""The number of header values that are not checked anew, because a client sends the same ones with each request."""


@lru_cache(HEADERS_CACHED)
def check_local_request(host: str | None, origin: str | None) -> None:
    """Raises `Forbidden` unless both name this machine. A client without an `Origin` is no browser."""
    if host is None or not is_loopback(host_name(host)):
        raise Forbidden(
            "A gateway without API keys answers only to a loopback Host, such as localhost.", code="bad_host"
        )
    if origin is not None and not is_loopback(_host_of(origin)):
        raise Forbidden(
            "A gateway without API keys takes no requests from web pages of other origins.", code="bad_origin"
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


def _host_of(origin: str) -> str:
    """Returns the host of an origin. It is empty for `null`, which a page without an origin sends, and for a text that
    is no URL."""
    try:
        return urlsplit(origin).hostname or ""
    except ValueError:
        return ""
