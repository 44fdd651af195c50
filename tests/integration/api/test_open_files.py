"""The limit of open files: raised at the start, kept in mind, and outlasted."""

import resource
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from gateway.api.http.listener.open_files import connections_of
from tests.integration.harness import RawClient, running_gateway, scripted_config, wait_for

HEALTH: Final = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
LIMIT_OF_64: Final = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (64, 256))\n"
NO_RAISE: Final = (
    "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))\n"
    "import gateway.api.http.listener.open_files as files\nfiles.connections_of = lambda files_max: 4096\n"
)


@pytest.mark.parametrize(("files", "connections"), [(1024, 768), (4096, 3840), (64, 48), (2, 2), (1, 1)])
def test_a_part_of_the_files_is_kept_for_others(files: int, connections: int) -> None:
    assert connections_of(files) == connections


def test_a_gateway_raises_its_limit_to_the_hard_one(tmp_path: Path) -> None:
    with running_gateway(tmp_path, scripted_config({}), patch=LIMIT_OF_64) as gateway:
        assert resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE) == (256, 256)


def test_a_gateway_without_a_descriptor_says_so_once_and_goes_on(tmp_path: Path) -> None:
    with running_gateway(tmp_path, scripted_config({}), patch=NO_RAISE) as gateway:
        with ExitStack() as held:
            clients = [held.enter_context(RawClient(gateway)) for _ in range(120)]
            wait_for(lambda: "http.no_descriptor_left" in gateway.log, "the gateway to notice")
            for client in clients[:60]:
                client.socket.shutdown(socket.SHUT_RDWR)
            clients[-1].send(HEALTH)
            assert clients[-1].read_until(b"\r\n\r\n").startswith(b"HTTP/1.1 200")
            assert gateway.log.count("http.no_descriptor_left") == 1
        assert "Traceback" not in gateway.log
