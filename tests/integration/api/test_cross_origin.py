"""Web pages of other origins, as a browser asks for them: with and without keys, over HTTP/1 and HTTP/2."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.integration.harness import WAIT_SECONDS, GatewayProcess, running_gateway, scripted_config

ORIGINS: Final = ("https://chat.example", "http://localhost:3000", "app://obsidian.md", "chrome-extension://abc")
CONFIG: Final = f"""
[server]
allowed_origins = {list(ORIGINS)}
allowed_hosts = ["gateway.lan"]
max_body = 4096
"""
KEYED: Final = f"""{CONFIG}
[auth]
api_keys = [{{ name = "app", key = "sk-app" }}]
"""
ASK: Final = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
CHAT: Final = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
VERSIONS: Final = pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/2"])


@pytest.fixture(scope="module")
def open_one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """Without keys."""
    with running_gateway(tmp_path_factory.mktemp("open"), scripted_config({}, more=CONFIG)) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    with running_gateway(tmp_path_factory.mktemp("keyed"), scripted_config({}, more=KEYED)) as gateway:
        yield gateway


def call(gateway: GatewayProcess, version: str, method: str, path: str, **fields: Any) -> httpx.Response:
    is_http2 = version == "HTTP/2"
    with httpx.Client(base_url=gateway.url, timeout=WAIT_SECONDS, http1=not is_http2, http2=is_http2) as client:
        response = client.request(method, path, **fields)
    assert response.http_version == version
    return response


@VERSIONS
@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/api/status", "/api/replicas/x/logs"])
def test_a_browser_may_ask_without_a_key(keyed: GatewayProcess, version: str, path: str, origin: str) -> None:
    response = call(keyed, version, "OPTIONS", path, headers={"origin": origin, **ASK})
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert response.headers["access-control-allow-headers"] == ASK["access-control-request-headers"]
    assert "POST" in response.headers["access-control-allow-methods"].split(", ")
    assert int(response.headers["access-control-max-age"]) > 0
    assert response.headers["vary"] == "Origin"


@VERSIONS
def test_a_page_reads_answers_and_errors(keyed: GatewayProcess, version: str) -> None:
    origin = {"origin": ORIGINS[0]}
    key = {**origin, "authorization": "Bearer sk-app"}
    answers = [
        call(keyed, version, "POST", "/v1/chat/completions", headers=key, json=CHAT),
        call(keyed, version, "POST", "/v1/chat/completions", headers=key, json={**CHAT, "stream": True}),
        call(keyed, version, "POST", "/v1/chat/completions", headers=origin, json=CHAT),
        call(keyed, version, "POST", "/v1/chat/completions", headers=key, json={**CHAT, "user": "x" * 5000}),
        call(keyed, version, "GET", "/v1/nothing", headers=key),
        call(keyed, version, "GET", "/api/status", headers=key),
        call(keyed, version, "GET", "/healthz", headers=origin),
    ]
    assert [each.status_code for each in answers] == [200, 200, 401, 413, 404, 403, 200]
    assert {each.headers["access-control-allow-origin"] for each in answers} == {ORIGINS[0]}
    assert all("x-request-id" in each.headers["access-control-expose-headers"] for each in answers)


@VERSIONS
def test_other_pages_get_no_permission(keyed: GatewayProcess, version: str) -> None:
    """A client with a key is served whatever it says: only its browser would keep the answer from it."""
    other = {"origin": "https://other.example"}
    preflight = call(keyed, version, "OPTIONS", "/v1/models", headers={**other, **ASK})
    assert (preflight.status_code, preflight.json()["error"]["code"]) == (403, "bad_origin")
    assert "server.allowed_origins" in preflight.json()["error"]["message"]
    answer = call(keyed, version, "GET", "/v1/models", headers={**other, "authorization": "Bearer sk-app"})
    assert answer.status_code == 200
    for response in (preflight, answer):
        assert "access-control-allow-origin" not in response.headers
        assert response.headers["vary"] == "Origin"


@VERSIONS
def test_without_keys_the_list_says_who_may_use_the_gateway(open_one: GatewayProcess, version: str) -> None:
    for origin in ORIGINS:
        answer = call(open_one, version, "POST", "/v1/chat/completions", headers={"origin": origin}, json=CHAT)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, origin)
    refused = call(
        open_one, version, "POST", "/v1/chat/completions", headers={"origin": "https://other.example"}, json=CHAT
    )
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "bad_origin")


@pytest.mark.parametrize(("host", "status"), [("gateway.lan", 200), ("gateway.lan:8080", 200), ("other.lan", 403)])
def test_without_keys_it_answers_to_the_names_that_are_allowed(
    open_one: GatewayProcess, host: str, status: int
) -> None:
    answer = call(open_one, "HTTP/1.1", "GET", "/v1/models", headers={"host": host})
    assert answer.status_code == status


@VERSIONS
def test_without_the_list_no_page_gets_a_header(tmp_path: Path, version: str) -> None:
    with running_gateway(tmp_path, scripted_config({})) as gateway:
        origin = {"origin": "http://localhost:3000"}
        answers = [
            call(gateway, version, "GET", "/v1/models", headers=origin),
            call(gateway, version, "OPTIONS", "/v1/models", headers={**origin, **ASK}),
        ]
        assert [each.status_code for each in answers] == [200, 403]
        for each in answers:
            assert not [name for name in each.headers if name.startswith("access-control") or name == "vary"]


@VERSIONS
def test_a_star_is_every_page(tmp_path: Path, version: str) -> None:
    with running_gateway(tmp_path, scripted_config({}, more='[server]\nallowed_origins = ["*"]')) as gateway:
        origin = {"origin": "https://anything.example"}
        answers = [
            call(gateway, version, "GET", "/v1/models", headers=origin),
            call(gateway, version, "OPTIONS", "/v1/models", headers={**origin, **ASK}),
        ]
        assert [(each.status_code, each.headers["access-control-allow-origin"]) for each in answers] == [(200, "*")] * 2
