"""Calls the HTTP API of a running gateway, with a key from the arguments or the environment."""

import argparse
import json
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from gateway.domain.host_port import is_loopback

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT_SECONDS: Final = 10.0


class ApiError(Exception):
    """The gateway could not be reached, or refused. The message is for the user."""


class ApiClient:
    """The API of one gateway. Every method raises `ApiError` and nothing else."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.url = (arguments.url or os.environ.get("GATEWAY_URL") or DEFAULT_URL).rstrip("/")
        key = arguments.api_key or os.environ.get("GATEWAY_API_KEY")
        self._uses_proxies = not is_loopback(urlsplit(self.url).hostname or "")
        """Whether the proxies of the environment are used. None of them can reach this machine's own gateway."""
        self._headers = {"authorization": f"Bearer {key}"} if key else {}

    def get(self, path: str) -> dict[str, Any]:
        """Returns the JSON object at `path`."""
        return self._ask("GET", path)

    def post(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """Sends a POST with an optional JSON body and returns the JSON object of the answer."""
        return self._ask("POST", path, body)

    def patch(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Sends a PATCH with a JSON body and returns the JSON object of the answer."""
        return self._ask("PATCH", path, body)

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Sends a PUT with a JSON body and returns the JSON object of the answer."""
        return self._ask("PUT", path, body)

    def delete(self, path: str) -> dict[str, Any]:
        """Sends a DELETE and returns the JSON object of the answer."""
        return self._ask("DELETE", path)

    def get_text(self, path: str) -> str:
        """Returns the plain text at `path`."""
        with self._errors():
            response = self._request("GET", path)
            if not response.is_success:
                self._checked(response)
            return response.text

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        with self._errors():
            return self._checked(self._request(method, path, body))

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        return httpx.request(
            method,
            self.url + path,
            json=body,
            headers=self._headers,
            timeout=TIMEOUT_SECONDS,
            trust_env=self._uses_proxies,
        )

    def stream_events(self, path: str, body: dict[str, Any] | None = None) -> Generator[dict[str, Any], None, None]:
        """Yields the JSON objects of an event stream as they come. It sends a POST if there is a body. A gateway that
        still loads the model may take its time.

        Closing the iterator ends the request.
        """
        method, timeout = "GET" if body is None else "POST", httpx.Timeout(TIMEOUT_SECONDS, read=None)
        with (
            self._errors(),
            httpx.stream(
                method,
                self.url + path,
                json=body,
                headers=self._headers,
                timeout=timeout,
                trust_env=self._uses_proxies,
            ) as response,
        ):
            if not response.is_success:
                response.read()
                self._checked(response)
            for line in response.iter_lines():
                data = line.removeprefix("data: ")
                if data not in {line, "[DONE]"}:
                    yield self._checked_event(json.loads(data))

    def _checked(self, response: httpx.Response) -> dict[str, Any]:
        document: dict[str, Any] = response.json()
        if response.is_success:
            return document
        raise ApiError(document.get("error", {}).get("message") or f"{self.url} answered {response.status_code}")

    def _checked_event(self, document: dict[str, Any]) -> dict[str, Any]:
        if "error" in document:
            raise ApiError(document["error"]["message"])
        return document

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise ApiError(f"can't reach a gateway at {self.url}: {error}") from error
        except ValueError as error:
            raise ApiError(f"what answers at {self.url} is not a gateway (no JSON came back)") from error
