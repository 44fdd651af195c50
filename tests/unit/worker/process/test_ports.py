import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.config.units import PortRange
from gateway.worker.process.ports import (
    NoFreePort,
    PortAllocator,
    address_of,
    can_bind,
    host_to_reach,
    is_taken,
    says_taken,
)

HOST = "127.0.0.1"


@pytest.fixture
def free_pair() -> PortRange:
    """Two neighbouring ports that nobody holds."""
    for first in range(22600, 22900, 2):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind((HOST, first))
                two.bind((HOST, first + 1))
            except OSError:
                continue
            return PortRange(first, first + 1)
    raise AssertionError("no two free ports")


def test_two_allocators_never_hand_out_the_same_port(tmp_path: Path, free_pair: PortRange) -> None:
    one, other = PortAllocator(free_pair, HOST, tmp_path), PortAllocator(free_pair, HOST, tmp_path)
    with one.reserve() as first, other.reserve() as second:
        assert {first, second} == {free_pair.first, free_pair.last}


def test_h6_without_a_free_port_the_error_names_the_range(tmp_path: Path, free_pair: PortRange) -> None:
    allocator = PortAllocator(free_pair, HOST, tmp_path)
    with (
        allocator.reserve(),
        allocator.reserve(),
        pytest.raises(NoFreePort, match=f"{free_pair.first}-{free_pair.last}"),
        allocator.reserve(),
    ):
        pass


def test_h6_ports_given_back_are_found_again_the_last_one_last(tmp_path: Path, free_pair: PortRange) -> None:
    allocator = PortAllocator(free_pair, HOST, tmp_path)
    used = []
    for _ in range(4):
        with allocator.reserve() as port:
            used.append(port)
    assert used == [free_pair.first, free_pair.last] * 2


def test_a_port_bound_by_a_program_without_locks_is_skipped_even_if_it_shares(
    tmp_path: Path, free_pair: PortRange
) -> None:
    with socket.socket() as foreign:
        foreign.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # as gRPC servers do (pitfall 33)
        foreign.bind((HOST, free_pair.first))
        with PortAllocator(free_pair, HOST, tmp_path).reserve() as port:
            assert port == free_pair.last


HOLDER = """
import sys
from gateway.config.units import PortRange
from gateway.worker.process.ports import PortAllocator
with PortAllocator(PortRange(int(sys.argv[1]), int(sys.argv[2])), "127.0.0.1").reserve() as port:
    print(port, flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_worker(ports: PortRange, temporary: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that holds one port of the range until its stdin ends, and which one."""
    temporary.mkdir()
    command = [sys.executable, "-c", HOLDER, str(ports.first), str(ports.last)]
    env = {**os.environ, "TMPDIR": str(temporary)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
        process.kill()


linux_only = pytest.mark.skipif(sys.platform != "linux", reason="abstract Unix sockets")


@linux_only
def test_workers_with_temporary_folders_of_their_own_share_the_locks(tmp_path: Path, free_pair: PortRange) -> None:
    with (
        other_worker(free_pair, tmp_path / "one") as (_, first),
        other_worker(free_pair, tmp_path / "other") as (_, second),
    ):
        assert {first, second} == {free_pair.first, free_pair.last}
        with pytest.raises(NoFreePort), PortAllocator(free_pair, HOST).reserve():
            pass


@linux_only
def test_the_kernel_frees_the_locks_of_a_worker_that_was_killed(tmp_path: Path, free_pair: PortRange) -> None:
    with other_worker(free_pair, tmp_path / "one") as (process, first):
        os.kill(process.pid, signal.SIGKILL)
        process.wait(30)
        with PortAllocator(free_pair, HOST).reserve() as port:
            assert port == first


@linux_only
def test_a_lock_is_not_inherited_by_the_backend(free_pair: PortRange) -> None:
    allocator = PortAllocator(free_pair, HOST)
    with allocator.reserve() as port:
        command = [sys.executable, "-c", "print(flush=True); input()"]
        backend = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=False)
        assert backend.stdout is not None
        backend.stdout.readline()  # it runs: until then it may have all that this process has
    with backend, PortAllocator(PortRange(port, port), HOST).reserve() as again:
        assert again == port
        backend.kill()


def test_a_port_is_taken_while_somebody_listens_there(free_pair: PortRange) -> None:
    with socket.create_server((HOST, free_pair.first)) as server:
        assert is_taken(HOST, free_pair.first)
        with socket.create_connection(server.getsockname()) as client:
            accepted, _ = server.accept()
            server.close()
            accepted.close()  # the side that closes first keeps the port for a while
            client.recv(1)
    assert not can_bind(HOST, free_pair.first)
    assert not is_taken(HOST, free_pair.first)
    assert not is_taken("192.0.2.1", free_pair.first)  # none of ours, but nobody else's either


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "OSError: [Errno 98] error while attempting to bind on address ('127.0.0.1', 1): address already in use",
            True,
        ),
        ("listen tcp 127.0.0.1:20100: bind: address already in use", True),
        ("RuntimeError: Failed to bind to address 127.0.0.1:20100; set GRPC_VERBOSITY=debug to see more", True),
        ("gateway backend llama-cpp: can't listen on 127.0.0.1:20100: Address already in use", True),
        ("Error: listen EADDRINUSE: address already in use 127.0.0.1:20100", True),
        ("CUDA error: device in use by another process", False),
        ("can't listen on 10.0.0.9:20100: Cannot assign requested address", False),
    ],
)
def test_what_servers_say_of_a_taken_address(line: str, expected: bool) -> None:
    assert says_taken(["starting", line, "bye"]) is expected


def test_addresses_of_both_families() -> None:
    assert address_of("10.0.0.7", 20100) == "10.0.0.7:20100"
    assert address_of("fd00::7", 20100) == "[fd00::7]:20100"
    assert (host_to_reach("0.0.0.0"), host_to_reach("::"), host_to_reach("10.0.0.7")) == (
        "127.0.0.1",
        "::1",
        "10.0.0.7",
    )
