"""Sources that came through the API: only public addresses, dialled as they were checked, at every redirect (SSRF)."""

import ssl
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from trio.testing import MockClock

from gateway.domain.special_addresses import is_public
from gateway.worker.artifacts import source as source_module
from gateway.worker.artifacts.cache import Cache
from gateway.worker.artifacts.download import HttpClient
from gateway.worker.artifacts.http_answer import Asked
from gateway.worker.artifacts.reference import ArtifactError
from gateway.worker.artifacts.source import Interrupted, Source, address_for, build_request
from tests.fakes.certificates import Authority, make_authority
from tests.fakes.fetching import patient_clock
from tests.fakes.file_server import open_file_server, redirect_to

UNTRUSTED = Source("https://models.example/a.gguf", public_only=True)
PUBLIC = "93.184.215.14"


class Names:
    """Resolves to one answer after the other; the last one stays."""

    def __init__(self, *answers: Sequence[str] | OSError) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, OSError):
            raise answer
        return answer


@pytest.fixture
def clock() -> MockClock:
    return patient_clock()


@pytest.mark.parametrize("address", [PUBLIC, "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:93.184.215.14"])
def test_a_public_address(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "239.1.1.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12::1",
        "fec0::1",
        "ff02::1",
        "2001:db8::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "2002:a00:1::",
        "2002:7f00:1::1",
        "64:ff9b::a00:1",
        "64:ff9b::7f00:1",
        "64:ff9b:1::a00:1",
        "2001:0:4136:e378:8000:63bf:f5ff:fffe",
        "not an address",
        "",
    ],
)
def test_an_address_that_is_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("addresses", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["169.254.169.254"], ["::1"]])
async def test_a_name_that_leads_inside_is_refused(addresses: list[str]) -> None:
    names = Names(addresses)
    with pytest.raises(ArtifactError, match="an address that is not public"):
        await address_for(UNTRUSTED, httpx.URL(UNTRUSTED.url), names, 0)
    assert names.asked == [("models.example", 443)]


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]", "169.254.169.254", "2130706433", "0x7f.1", "127.1"])
async def test_an_address_in_any_spelling_is_refused(host: str) -> None:
    url = f"https://{host}/a"
    with pytest.raises((ArtifactError, Interrupted), match=r"not public|can't be resolved"):
        await address_for(Source(url, public_only=True), httpx.URL(url), source_module.resolve, 0)


async def test_what_the_operator_names_may_lie_anywhere() -> None:
    names = Names(["127.0.0.1"])
    assert await address_for(Source(UNTRUSTED.url), httpx.URL(UNTRUSTED.url), names, 0) is None
    assert names.asked == []


@pytest.mark.parametrize(
    "host", ["169.254.169.254", "[::ffff:169.254.169.254]", "168.63.129.16", "metadata.google.internal"]
)
async def test_not_even_what_the_operator_names_redirects_to_the_metadata_of_a_cloud(host: str) -> None:
    with pytest.raises(ArtifactError, match="leads to a cloud's metadata"):
        await address_for(Source(UNTRUSTED.url), httpx.URL(f"https://{host}/latest"), Names(["127.0.0.1"]), 0)


async def test_a_trusted_origin_does_not_vouch_for_where_it_redirects_to() -> None:
    hub = Source("https://hub.internal/a", is_trusted=True, public_only=True)
    names = Names(["10.0.0.1"])
    assert await address_for(hub, httpx.URL("https://hub.internal/b"), names, 0) is None
    for other_url in ("https://other.internal/b", "https://hub.internal:8443/b"):
        with pytest.raises(ArtifactError, match="an address that is not public"):
            await address_for(hub, httpx.URL(other_url), names, 0)


async def test_each_attempt_takes_another_address() -> None:
    names = Names([PUBLIC, "93.184.215.15"])
    dialled = [await address_for(UNTRUSTED, httpx.URL(UNTRUSTED.url), names, turn) for turn in range(3)]
    assert dialled == [PUBLIC, "93.184.215.15", PUBLIC]


@pytest.mark.parametrize("answer", [OSError("no such host"), []])
async def test_a_name_without_an_address_is_asked_for_again(answer: Sequence[str] | OSError) -> None:
    with pytest.raises(Interrupted, match=r"models\.example"):
        await address_for(UNTRUSTED, httpx.URL(UNTRUSTED.url), Names(answer), 0)


def test_the_checked_address_is_dialled_and_the_name_is_proved() -> None:
    source = Source("https://models.example:8443/a?b=c", {"authorization": "Bearer x"}, public_only=True)
    request = build_request(source, httpx.URL(source.url), PUBLIC, {"range": "bytes=1-"})
    assert str(request.url) == f"https://{PUBLIC}:8443/a?b=c"
    assert request.headers["host"] == "models.example:8443"
    assert request.headers["authorization"] == "Bearer x"
    assert request.extensions["sni_hostname"] == "models.example"


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return make_authority(tmp_path / "ca")


def contexts(authority: Authority, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*authority.issue(host))
    return server, ssl.create_default_context(cafile=authority.cert)


async def test_a_name_that_is_bound_anew_after_the_check_changes_nothing(
    tmp_path: Path, clock: MockClock, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first answer is taken for a public one, and is where the server is; the second one leads elsewhere."""
    monkeypatch.setattr(source_module, "is_public", lambda address: address == "127.0.0.1")
    server_tls, client_tls = contexts(authority, "models.example")
    names = Names(["127.0.0.1"], ["127.0.0.2"])
    async with open_file_server(b"file", tls=server_tls) as server:
        source = Source(f"https://models.example:{server.port}/a", public_only=True)
        async with HttpClient(client_tls, names).open_response(source, Asked(), 0) as response:
            assert await response.aread() == b"file"
        assert names.asked == [("models.example", server.port)]
        assert server.requests[0].headers["host"] == f"models.example:{server.port}"


async def test_the_server_at_the_checked_address_has_to_be_the_one_of_the_name(
    tmp_path: Path, clock: MockClock, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "is_public", lambda address: True)
    server_tls, client_tls = contexts(authority, "other.example")
    async with open_file_server(b"file", tls=server_tls) as server:
        source = Source(f"https://models.example:{server.port}/a", public_only=True)
        cache = Cache(tmp_path, http_client=HttpClient(client_tls, Names(["127.0.0.1"])))
        with pytest.raises(ArtifactError, match=r"Hostname mismatch, certificate is not valid for 'models\.example'"):
            await cache.fetch("a", lambda: source, None, lambda done, total: None)
        assert server.requests == []


async def test_a_redirect_is_checked_as_its_beginning_was(
    tmp_path: Path, clock: MockClock, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source_module, "is_public", lambda address: address == "127.0.0.1")
    server_tls, client_tls = contexts(authority, "models.example")
    names = Names(["127.0.0.1"], ["169.254.169.254"])
    async with open_file_server(b"", redirect_to("https://metadata.example/latest"), tls=server_tls) as server:
        source = Source(f"https://models.example:{server.port}/a", public_only=True)
        with pytest.raises(ArtifactError, match=r"leads to 169\.254\.169\.254, an address that is not public"):
            async with HttpClient(client_tls, names).open_response(source, Asked(), 0):
                pass
    assert names.asked == [("models.example", server.port), ("metadata.example", 443)]
