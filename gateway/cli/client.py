"""How commands talk to a running gateway: over its HTTP API, with a key from the arguments or the environment."""

import argparse
import os
from typing import Any, Final

import httpx

DEFAULT_URL: Final = "http://127.0.0.1:8080"
TIMEOUT_SECONDS: Final = 10.0


class ApiError(Exception):
    """The gateway could not be asked, or said no; the message is for the user."""


def get(arguments: argparse.Namespace, path: str) -> dict[str, Any]:
    """The JSON object at `path`. Raises `ApiError`."""
    url = (arguments.url or os.environ.get("GATEWAY_URL") or DEFAULT_URL).rstrip("/")
    key = arguments.api_key or os.environ.get("GATEWAY_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        response = httpx.get(url + path, headers=headers, timeout=TIMEOUT_SECONDS)
        document: dict[str, Any] = response.json()
    except httpx.HTTPError as error:
        raise ApiError(f"can't reach a gateway at {url}: {error}") from error
    except ValueError as error:
        raise ApiError(f"what answers at {url} is not a gateway (no JSON came back)") from error
    if response.is_success:
        return document
    raise ApiError(document.get("error", {}).get("message") or f"{url} answered {response.status_code}")
