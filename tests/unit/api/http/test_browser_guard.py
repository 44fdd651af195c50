"""What keeps browsers away from a keyless gateway: the table of hosts, origins and content types."""

import pytest

from gateway.api.http.browser_guard import BrowserPolicy, check_json
from gateway.domain.errors import Forbidden, UnsupportedMediaType

check_local_request = BrowserPolicy().check_local_request

LOOPBACK_HOSTS = [
    "localhost",
    "localhost:8080",
    "LocalHost:8080",
    "localhost.:8080",
    "127.0.0.1",
    "127.0.0.1:8080",
    "127.8.9.10:1",
    "[::1]",
    "[::1]:8080",
]
FOREIGN_HOSTS = [
    None,
    "",
    ":8080",
    "evil.example",
    "evil.example:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "notlocalhost",
    "0.0.0.0:8080",
    "192.168.1.7:8080",
    "[fe80::1]:8080",
    "[]",
    "2130706433",
]


@pytest.mark.parametrize("host", LOOPBACK_HOSTS)
def test_a_loopback_host_passes(host: str) -> None:
    check_local_request(host, None)


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_any_other_host_is_a_rebound_name(host: str | None) -> None:
    with pytest.raises(Forbidden) as caught:
        check_local_request(host, None)
    assert caught.value.code == "bad_host"


@pytest.mark.parametrize("origin", ["http://localhost", "http://localhost:3000", "https://127.0.0.1", "http://[::1]:1"])
def test_a_page_of_this_machine_passes(origin: str) -> None:
    check_local_request("localhost", origin)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "http://evil.example",
        "https://localhost.evil.example",
        "http://localhost@evil.example",
        "http://0.0.0.0",
        "localhost",
        "file://",
        "http://[::1",
        "http://[localhost]",
    ],
)
def test_any_other_page_is_refused_also_one_without_an_origin(origin: str) -> None:
    with pytest.raises(Forbidden) as caught:
        check_local_request("localhost", origin)
    assert caught.value.code == "bad_origin"


@pytest.mark.parametrize(
    "content_type", ["application/json", "Application/JSON; charset=utf-8", " application/json ;x"]
)
def test_json_passes(content_type: str) -> None:
    check_json(content_type)


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "text/json",
        "x;application/json",
    ],
)
def test_what_a_form_can_send_without_asking_is_refused(content_type: str | None) -> None:
    with pytest.raises(UnsupportedMediaType):
        check_json(content_type)


ALLOWING = BrowserPolicy(
    origins=("https://chat.example", "app://obsidian.md", "vscode-webview://x", "null"),
    hosts=("Gateway.lan", "10.0.0.7"),
)


@pytest.mark.parametrize("host", ["gateway.lan", "GATEWAY.LAN:8080", "gateway.lan.:80", "10.0.0.7:1", "localhost"])
def test_an_allowed_host_passes(host: str) -> None:
    ALLOWING.check_local_request(host, None)
    ALLOWING.check_local_request(host, f"http://{host.lower().rstrip('.')}")


@pytest.mark.parametrize("host", ["other.lan", "gateway.lan.evil.example", "10.0.0.70"])
def test_hosts_that_only_look_like_an_allowed_one_are_refused(host: str) -> None:
    with pytest.raises(Forbidden):
        ALLOWING.check_local_request(host, None)


@pytest.mark.parametrize("origin", ["https://chat.example", "app://obsidian.md", "vscode-webview://x", "null"])
def test_an_allowed_origin_passes_and_may_read(origin: str) -> None:
    ALLOWING.check_local_request("localhost", origin)
    headers = dict(ALLOWING.answer_headers(origin))
    assert headers[b"access-control-allow-origin"] == origin.encode()
    assert headers[b"vary"] == b"Origin"


@pytest.mark.parametrize(
    "origin",
    [
        "http://chat.example",
        "https://chat.example:8443",
        "https://chat.example.evil.example",
        "https://chat.example@evil.example",
        "HTTPS://CHAT.EXAMPLE",
        "app://localhost",
        "chrome-extension://localhost",
        "*",
        "",
    ],
)
def test_no_other_origin_passes(origin: str) -> None:
    with pytest.raises(Forbidden) as caught:
        ALLOWING.check_local_request("localhost", origin)
    assert caught.value.code == "bad_origin"
    assert ALLOWING.answer_headers(origin) == [(b"vary", b"Origin")]
    with pytest.raises(Forbidden):
        ALLOWING.preflight_headers(origin, None, asks_for_local_network=False)


def test_pages_of_this_machine_are_served_but_do_not_read_unless_they_are_allowed() -> None:
    ALLOWING.check_local_request("localhost", "http://localhost:3000")
    assert ALLOWING.answer_headers("http://localhost:3000") == [(b"vary", b"Origin")]


def test_a_star_is_every_origin() -> None:
    policy = BrowserPolicy(origins=("*",))
    policy.check_local_request("localhost", "https://anything.example")
    assert dict(policy.answer_headers(None))[b"access-control-allow-origin"] == b"*"


def test_a_browser_is_allowed_the_headers_that_it_asks_for() -> None:
    asked = "authorization,content-type, x-stainless-os"
    headers = dict(ALLOWING.preflight_headers("https://chat.example", asked, asks_for_local_network=True))
    assert headers[b"access-control-allow-headers"] == asked.encode()
    assert headers[b"access-control-allow-private-network"] == b"true"
    assert b"DELETE" in headers[b"access-control-allow-methods"]


@pytest.mark.parametrize("asked", ["", "a,,b", "a b", "a;b", "\u00e9"])
def test_names_that_are_no_names_of_headers_are_not_repeated(asked: str) -> None:
    headers = dict(ALLOWING.preflight_headers("https://chat.example", asked, asks_for_local_network=False))
    assert b"access-control-allow-headers" not in headers
