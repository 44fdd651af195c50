"""Where a gateway listens: several hosts, names with two addresses, both families at once."""

import errno
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import httpx
import pytest

from gateway.api.http.listener.listening_socket import open_sockets
from tests.fakes.ports import free_port
from tests.integration.harness import WAIT_SECONDS, running_gateway, scripted_config

KEYS: Final = '[auth]\napi_keys = [{ name = "app", key = "sk-app" }]\n'


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


IPV6: Final = pytest.mark.skipif(not has_ipv6(), reason="needs IPv6")


def reached(sockets: Iterable[socket.socket], host: str) -> bool:
    port = next(iter(sockets)).getsockname()[1]
    try:
        socket.create_connection((host, port), timeout=WAIT_SECONDS).close()
    except OSError:
        return False
    return True


@IPV6
@pytest.mark.parametrize(
    ("hosts", "answers", "silent"),
    [
        (["127.0.0.1"], ["127.0.0.1"], ["::1"]),
        (["::1"], ["::1"], ["127.0.0.1"]),
        (["127.0.0.1", "::1"], ["127.0.0.1", "::1"], []),
        (["0.0.0.0"], ["127.0.0.1"], ["::1"]),
        (["::"], ["127.0.0.1", "::1"], []),
        (["0.0.0.0", "::"], ["127.0.0.1", "::1"], []),
        (["::", "0.0.0.0"], ["127.0.0.1", "::1"], []),
        (["127.0.0.1", "127.0.0.2"], ["127.0.0.1", "127.0.0.2"], ["::1"]),
        (["localhost"], ["127.0.0.1"], []),
        (["localhost", "127.0.0.1"], ["127.0.0.1"], []),
    ],
    ids=" ".join,
)
def test_it_listens_at_all_of_its_hosts_and_nowhere_else(
    hosts: list[str], answers: list[str], silent: list[str]
) -> None:
    sockets = open_sockets(hosts, 0)
    try:
        assert len({each.getsockname()[1] for each in sockets}) == 1
        assert [host for host in answers if not reached(sockets, host)] == []
        assert [host for host in silent if reached(sockets, host)] == []
    finally:
        for each in sockets:
            each.close()


def test_localhost_is_each_of_its_addresses() -> None:
    known = {str(address[4][0]) for address in socket.getaddrinfo("localhost", None, type=socket.SOCK_STREAM)}
    wanted = {host for host in known if ":" not in host or has_ipv6()}
    sockets = open_sockets(["localhost"], 0)
    assert {each.getsockname()[0] for each in sockets} == wanted
    for each in sockets:
        each.close()


def test_one_address_that_is_taken_is_an_error_and_leaves_no_socket_open() -> None:
    with socket.create_server(("127.0.0.2", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use") as caught:
            open_sockets(["127.0.0.1", "127.0.0.2"], port)
        assert caught.value.errno == errno.EADDRINUSE
        socket.create_server(("127.0.0.1", port)).close()


@IPV6
@pytest.mark.parametrize("host", ['["127.0.0.1", "::1"]', '"::"', '"localhost"'])
def test_a_gateway_answers_at_each_address(tmp_path: Path, host: str) -> None:
    server = f"[server]\nhost = {host}\nworker_port = {free_port()}\n"
    token = f'{KEYS}join_token = "join-token"\n'
    with running_gateway(tmp_path, scripted_config({}, more=f"{server}{token}")) as gateway:
        port = httpx.URL(gateway.url).port
        names = ["localhost"] if host == '"localhost"' else ["127.0.0.1", "[::1]"]
        for name in names:
            answer = httpx.get(
                f"http://{name}:{port}/v1/models", headers={"authorization": "Bearer sk-app"}, timeout=WAIT_SECONDS
            )
            assert answer.status_code == 200
