"""What keeps browsers away from a keyless gateway: the table of hosts, origins and content types."""

import pytest

from gateway.api.http.browser_guard import check_json, check_local_request
from gateway.domain.errors import Forbidden, UnsupportedMediaType

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
