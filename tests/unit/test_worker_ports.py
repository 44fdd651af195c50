import socket
from pathlib import Path

import pytest

from gateway.config.units import PortRange
from gateway.worker.ports import NoFreePort, PortAllocator, address_of, host_to_reach

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


def test_addresses_of_both_families() -> None:
    assert address_of("10.0.0.7", 20100) == "10.0.0.7:20100"
    assert address_of("fd00::7", 20100) == "[fd00::7]:20100"
    assert (host_to_reach("0.0.0.0"), host_to_reach("::"), host_to_reach("10.0.0.7")) == (
        "127.0.0.1",
        "::1",
        "10.0.0.7",
    )
