"""Where a worker may say that its replicas listen."""

import pytest

from gateway.domain.host_port import is_same_host, split_address
from gateway.domain.ids import Address, BootId, NodeId, ReplicaId
from gateway.domain.lifecycle import Observed
from gateway.domain.session import Hello, Report
from gateway.transport.advertised import AdvertisedHost
from gateway.transport.errors import MessageRefused


def hello(advertise: str | None) -> Hello:
    return Hello(NodeId("n"), "n", BootId("b"), advertise=advertise)


def ready(address: str) -> Report:
    return Report(ReplicaId("r"), Observed.READY, Address(address))


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[2001:db8::1]:65535", ("2001:db8::1", 65535)),
        ("gpu-1.example.net:20100", ("gpu-1.example.net", 20100)),
        ("gpu_1:20100", ("gpu_1", 20100)),
    ],
)
def test_an_address_has_a_host_and_a_port(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "",
        ":",
        ":80",
        "host",
        "host:",
        "host:0",
        "host:080",
        "host:99999",
        "127.0.0.1:-1",
        "127.0.0.1:\u0661",
        "unix:/run/x:1",
        "[::1",
        "[::1]",
        "::1:80",
        "[127.0.0.1]:80",
        "x\r\nHost: y:1",
        "a b:1",
        f"{'a' * 70000}:1",
        f"{'.'.join(['a'] * 200)}:1",
        "0.0.0.0:80",
        "[::]:80",
        "224.0.0.1:80",
        "169.254.169.254:80",
        "[::ffff:169.254.169.254]:80",
        "[fe80::1]:80",
    ],
)
def test_what_is_no_address_of_a_replica_fails_it(address: str) -> None:
    report = AdvertisedHost(None, "127.0.0.1").checked(ready(address))
    assert (report.observed, report.address) == (Observed.FAILED, None)
    assert report.error is not None
    assert "address: expected" in report.error
    assert len(report.error) < 400


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("2001:db8:0::1", "2001:db8::1", True),
        ("GPU-1.example.net", "gpu-1.example.net.", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("localhost", "127.0.0.1", False),
    ],
)
def test_hosts_are_compared_by_what_they_name(one: str, other: str, same: bool) -> None:
    assert is_same_host(one, other) is same


def test_a_replica_is_where_its_worker_advertises_to_be() -> None:
    advertised = AdvertisedHost.of_hello(hello("10.0.0.7"), "10.0.0.9")
    assert advertised.checked(ready("10.0.0.7:20100")) == ready("10.0.0.7:20100")
    other_host = advertised.checked(ready("10.0.0.8:20100"))
    assert other_host.observed is Observed.FAILED
    assert other_host.error is not None
    assert "10.0.0.7, which the worker advertises" in other_host.error


@pytest.mark.parametrize(
    ("advertised", "address", "accepted"),
    [
        ("gpu-1.example.net", "gpu-1.example.net:20100", True),
        ("gpu-1.example.net", "GPU-1.Example.NET.:20100", True),
        ("gpu-1.example.net", "10.0.0.7:20100", False),
        ("gpu-1.example.net", "gpu-1:20100", False),
        ("10.0.0.7", "gpu-1.example.net:20100", False),
        ("localhost", "127.0.0.1:20100", False),
    ],
)
def test_another_name_of_the_advertised_host_is_another_host(advertised: str, address: str, accepted: bool) -> None:
    """No name is looked up, since it may lead elsewhere a moment later. An agent makes its addresses of what it
    advertises, so that only one that means harm says another name of its host."""
    report = AdvertisedHost.of_hello(hello(advertised), "127.0.0.1").checked(ready(address))
    assert report.observed is (Observed.READY if accepted else Observed.FAILED)
    assert (report.address is not None) is accepted


def test_an_older_worker_that_does_not_say_what_it_advertises_has_one_host_all_the_same() -> None:
    advertised = AdvertisedHost.of_hello(hello(None), "10.0.0.9")
    assert advertised.checked(ready("10.0.0.7:20100")).observed is Observed.READY
    assert advertised.checked(ready("10.0.0.8:20100")).observed is Observed.FAILED
    assert advertised.checked(ready("10.0.0.7:20101")).observed is Observed.READY


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "localhost", "LOCALHOST.", "::1", "::ffff:127.0.0.1"])
def test_only_a_worker_of_this_machine_is_on_its_loopback(host: str) -> None:
    assert AdvertisedHost.of_hello(hello(host), "127.0.0.1").host == host
    with pytest.raises(MessageRefused, match=r"Hello.advertise.*loopback.*10\.0\.0\.9"):
        AdvertisedHost.of_hello(hello(host), "10.0.0.9")
    address = f"[{host}]:80" if ":" in host else f"{host}:80"
    assert AdvertisedHost(None, "10.0.0.9").checked(ready(address)).observed is Observed.FAILED


@pytest.mark.parametrize("host", ["", "169.254.169.254", "0.0.0.0", "a b", "unix:/x", "127.0.0.1:80"])
def test_what_is_no_host_can_not_be_advertised(host: str) -> None:
    with pytest.raises(MessageRefused, match=r"Hello.advertise: expected"):
        AdvertisedHost.of_hello(hello(host), "127.0.0.1")
