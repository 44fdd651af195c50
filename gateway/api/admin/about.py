"""The public pages that say what this is: for people, for tools, and for those who only ask whether it lives.

None of them needs a key. They tell the names of models only if no keys are configured, and then only to callers whom
the guard for browsers lets in.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any, Final

from gateway import __version__
from gateway.api.admin.openapi import REFERENCE, openapi_document
from gateway.api.http.auth import Authenticator, Caller, Role
from gateway.api.http.browser_guard import BrowserPolicy
from gateway.api.http.exchange import Exchange
from gateway.api.http.http_app import Endpoint, Route
from gateway.domain.errors import Forbidden

HTML: Final = b"text/html; charset=utf-8"
DEFAULT_MODEL: Final = "MODEL"
"""Stands for a model's name in the example, if none may be told."""
PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>gateway {version}</title>
<body style="font-family: system-ui, sans-serif; max-width: 50em; margin: 2em auto; padding: 0 1em">
<h1>gateway {version}</h1>
<p>This is an LLM inference gateway. It serves OpenAI's API below <code>{url}/v1</code>.</p>
<p>{models}</p>
<pre style="overflow-x: auto; padding: 1em; background: #8882">{curl}</pre>
<p><a href="/openapi.json">Every route</a>, <a href="/readyz">whether it can serve</a>.</p>
</body>
</html>
"""


class AboutPages:
    """Serves `/`, `/v1`, `/health`, `/version` and `/openapi.json`."""

    def __init__(
        self,
        models: Callable[[], Sequence[str]],
        endpoints: Callable[[], Sequence[Endpoint]],
        schemas: Callable[[str], Mapping[str, Mapping[str, Any]]],
        *,
        authenticator: Authenticator,
        browsers: BrowserPolicy,
    ) -> None:
        """`schemas` returns those of request bodies by the path that takes them, given the form of references."""
        self._models = models
        self._endpoints = endpoints
        self._schemas = schemas
        self._authenticator = authenticator
        self._browsers = browsers

    def routes(self) -> Sequence[Route]:
        """Returns the routes, which need no key."""
        handlers = {
            "/": self._root,
            "/v1": self._about,
            "/health": self._health,
            "/version": self._version,
            "/openapi.json": self._openapi,
        }
        return tuple(Route("GET", path, Role.PUBLIC, handler) for path, handler in handlers.items())

    async def _root(self, exchange: Exchange, caller: Caller, body: bytes) -> None:
        exchange.response_headers.append((b"vary", b"Accept"))
        if "text/html" in (exchange.header("accept") or ""):
            await exchange.respond(200, self._page(exchange).encode(), HTML)
        else:
            await self._about(exchange, caller, body)

    async def _about(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        names = self._names(exchange)
        document = {
            "name": "gateway",
            "version": __version__,
            "api": f"{_url(exchange)}/v1",
            "openapi": "/openapi.json",
            **({"models": names} if names is not None else {}),
            "try": _curl(exchange, names),
        }
        await exchange.respond(200, json.dumps(document).encode())

    async def _health(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        await exchange.respond(200, b'{"status":"ok"}')

    async def _version(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        await exchange.respond(200, json.dumps({"version": __version__}).encode())

    async def _openapi(self, exchange: Exchange, _caller: Caller, _body: bytes) -> None:
        document = openapi_document(self._endpoints(), self._schemas(REFERENCE), version=__version__)
        await exchange.respond(200, json.dumps(document).encode())

    def _names(self, exchange: Exchange) -> list[str] | None:
        """Returns the names of the models, or None if this caller may not know them."""
        if not self._authenticator.trusts_this_machine:
            return None
        try:
            self._browsers.check_local_request(exchange.header("host"), exchange.header("origin"))
        except Forbidden:
            return None
        return sorted(self._models())

    def _page(self, exchange: Exchange) -> str:
        names = self._names(exchange)
        if names is None:
            models = "The models are listed at <code>/v1/models</code> for those who have an API key."
        elif names:
            models = "Models: " + ", ".join(f"<code>{escape(name)}</code>" for name in names) + "."
        else:
            models = "No model is configured yet."
        curl = escape(_curl(exchange, names))
        return PAGE.format(version=__version__, url=escape(_url(exchange)), models=models, curl=curl)


def _url(exchange: Exchange) -> str:
    """Returns the URL by which the client has reached the gateway, as far as its `Host` says so."""
    host = exchange.header("host") or "localhost"
    return f"{exchange.scheme}://{host}"


def _curl(exchange: Exchange, names: Sequence[str] | None) -> str:
    """Returns a first request to paste into a shell."""
    model = names[0] if names else DEFAULT_MODEL
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "hello"}]}).replace("'", "'\\''")
    key = " -H 'authorization: Bearer KEY'" if names is None else ""
    return f"curl {_url(exchange)}/v1/chat/completions -H 'content-type: application/json'{key} -d '{body}'"
