"""Which source an artifact's reference leads to, and what each of them is given."""

from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from gateway.domain.ids import ModelName
from gateway.domain.model_spec import ModelSpec
from gateway.worker.artifacts.download import REPORT_SECONDS, DownloadProgress
from gateway.worker.artifacts.reference import ArtifactError, Hub
from gateway.worker.artifacts.source import GatewaySource
from gateway.worker.artifacts.store import ArtifactStore
from tests.fakes.fetching import patient_clock, sha256_of
from tests.fakes.file_server import Turn, open_file_server

FILE = b"weights" * 100
RIGHT = sha256_of(FILE)
SPEC = ModelSpec(ModelName("m"), "llama-cpp", "file:weights.gguf", sha256=RIGHT)


@pytest.fixture
def clock() -> MockClock:
    return patient_clock()


async def test_a_url_is_kept_in_the_cache_below_the_models_folder(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        store = ArtifactStore(tmp_path, plain_loopback=True)
        artifact = await store.fetch(replace(SPEC, artifact=server.url))
        assert artifact.path is not None
        assert (artifact.path.parent, artifact.path.suffix) == (tmp_path / "cache", ".gguf")
        assert artifact.path.read_bytes() == FILE
        assert artifact.size_bytes == len(FILE)


async def test_the_hub_gets_its_token_and_a_url_does_not(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        store = ArtifactStore(tmp_path, hub=Hub(server.origin, "hf_secret"), plain_loopback=True)
        await store.fetch(replace(SPEC, artifact="hf://o/r/f.gguf@v1"))
        await store.fetch(replace(SPEC, artifact=server.url))
        first, second = server.requests
        assert (first.path, first.headers["authorization"]) == ("/o/r/resolve/v1/f.gguf", "Bearer hf_secret")
        assert "authorization" not in second.headers


async def test_a_url_of_the_api_may_not_lead_to_this_machine(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        store = ArtifactStore(tmp_path, plain_loopback=True)
        with pytest.raises(ArtifactError, match=r"leads to 127\.0\.0\.1, an address that is not public"):
            await store.fetch(replace(SPEC, artifact=server.url, source="api"))
        assert server.requests == []


async def test_what_a_running_model_uses_is_kept(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        store = ArtifactStore(tmp_path, plain_loopback=True, cache_bytes_max=len(FILE))
        first, second = (replace(SPEC, artifact=f"{server.origin}/{name}") for name in ("a", "b"))
        with store.keeping(first):
            path = (await store.fetch(first)).path
            with pytest.raises(ArtifactError, match=r"worker\.cache_size"):
                await store.fetch(second)
        await store.fetch(second)
        assert path is not None
        assert not path.exists()


async def test_keeping_a_reference_that_is_none_is_no_error(tmp_path: Path) -> None:
    for artifact in ("", "nonsense", "builtin:tiny", "file:a"):
        with ArtifactStore(tmp_path).keeping(replace(SPEC, artifact=artifact)):
            pass


async def test_a_file_that_only_the_gateway_has_is_fetched_from_there(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE) as server:
        gateway = GatewaySource()
        gateway.point_at(server.origin + "/", {"authorization": "Bearer c", "x-gateway-node": "n"})
        store = ArtifactStore(tmp_path, gateway=gateway)
        artifact = await store.fetch(replace(SPEC, sha256=RIGHT.upper()))
        assert artifact.path is not None
        assert artifact.path.read_bytes() == FILE
        assert server.requests[0].path == f"/api/artifacts/{RIGHT}"
        assert server.requests[0].headers["x-gateway-node"] == "n"
        assert await store.fetch(SPEC) == artifact
        assert len(server.requests) == 1


async def test_a_file_that_is_here_is_used_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "weights.gguf").write_bytes(FILE)
    artifact = await ArtifactStore(tmp_path, gateway=GatewaySource()).fetch(SPEC)
    assert artifact.path == tmp_path / "weights.gguf"


async def test_l23_without_a_hash_the_error_says_what_would_help(tmp_path: Path) -> None:
    spec = replace(SPEC, sha256=None)
    with pytest.raises(ArtifactError, match="does not exist; with sha256 set, this worker fetches it from its gateway"):
        await ArtifactStore(tmp_path, gateway=GatewaySource()).fetch(spec)
    with pytest.raises(ArtifactError, match=r"does not exist$"):
        await ArtifactStore(tmp_path).fetch(spec)


async def test_a_gateway_redirects_nobody(tmp_path: Path, clock: MockClock) -> None:
    async with open_file_server(FILE, Turn(status=302, headers={"location": "/other"})) as server:
        gateway = GatewaySource()
        gateway.point_at(server.origin, {})
        with pytest.raises(ArtifactError, match="redirects more than 0 times"):
            await ArtifactStore(tmp_path, gateway=gateway).fetch(SPEC)


async def test_the_next_gateway_goes_on_where_the_last_one_ended(tmp_path: Path, clock: MockClock) -> None:
    gateway = GatewaySource()
    async with open_file_server(FILE) as second, open_file_server(FILE, Turn(stall_after=300)) as first:
        gateway.point_at(first.origin, {})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ArtifactStore(tmp_path, gateway=gateway).fetch, SPEC)
            await trio.sleep(1)
            gateway.point_at(second.origin, {})
        assert second.ranges == ["bytes=300-"]


def test_a_credential_is_not_shown() -> None:
    gateway = GatewaySource()
    gateway.point_at("http://g", {"authorization": "Bearer secret"})
    assert "secret" not in repr(gateway) + repr(gateway.source(RIGHT))


async def test_progress_is_reported_at_once_and_then_seldom(autojump_clock: MockClock) -> None:
    reported: list[tuple[int, int | None]] = []
    progress = DownloadProgress(lambda done, total: reported.append((done, total)))
    for done in range(1000):
        progress(done, 1000)
        await trio.sleep(REPORT_SECONDS / 100)
    assert reported[0] == (0, 1000)
    assert 9 <= len(reported) <= 11
