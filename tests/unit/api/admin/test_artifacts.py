"""Files for workers of other machines: who gets them, which ones there are, and how they are cut."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.api.admin import artifacts
from gateway.api.admin.artifacts import paths_of, specs_of
from gateway.domain.cluster import ClusterState, Node, NodeStatus
from gateway.domain.ids import BootId, ModelName, NodeId
from gateway.domain.model_spec import ModelSpec
from gateway.domain.routability import build_view
from gateway.transport.node_credentials import node_credential, session_metadata
from tests.fakes.api_harness import CLUSTER_SECRET, ApiHarness
from tests.fakes.asgi import AsgiRequest
from tests.fakes.fetching import sha256_of

FILE = bytes(range(256)) * 10
DIGEST = sha256_of(FILE)
NODE = Node(NodeId("n1"), "box", BootId("b1"), NodeStatus.HEALTHY)
SPEC = ModelSpec(ModelName("m"), "llama-cpp", "file:weights.gguf", sha256=DIGEST)


def harness_with(folder: Path, *specs: ModelSpec, node: Node = NODE) -> ApiHarness:
    (folder / "weights.gguf").write_bytes(FILE)
    harness = ApiHarness(models_dir=folder)
    models = {ModelName(f"m{number}"): spec for number, spec in enumerate(specs)}
    harness.views.publish(build_view(ClusterState(1, models=models, nodes={node.id: node})))
    return harness


async def ask(harness: ApiHarness, digest: str = DIGEST, method: str = "GET", **headers: str) -> AsgiRequest:
    credential = node_credential(CLUSTER_SECRET, NODE.id, NODE.boot_id)
    named = {**session_metadata(credential, NODE.id, NODE.boot_id)}
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    path = f"/api/artifacts/{digest}"
    return await harness.request(method, path, key=None, headers={**named, **more}).run(harness.app)


async def test_a_file_that_a_model_names(tmp_path: Path) -> None:
    answer = await ask(harness_with(tmp_path, SPEC), DIGEST.upper())
    assert (answer.status, answer.body) == (200, FILE)
    assert answer.headers["content-length"] == str(len(FILE))
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.is_complete


async def test_a_large_file_comes_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "CHUNK_BYTES", 1000)
    answer = await ask(harness_with(tmp_path, SPEC))
    assert answer.body == FILE
    assert max(len(message.get("body", b"")) for message in answer.sent) == 1000


async def test_the_rest_of_a_file(tmp_path: Path) -> None:
    answer = await ask(harness_with(tmp_path, SPEC), range="bytes=100-", if_range=f'"{DIGEST}"')
    assert (answer.status, answer.body) == (206, FILE[100:])
    assert answer.headers["content-range"] == f"bytes 100-{len(FILE) - 1}/{len(FILE)}"
    assert answer.headers["content-length"] == str(len(FILE) - 100)


async def test_the_rest_of_another_file_is_the_whole_of_this_one(tmp_path: Path) -> None:
    for condition in ('"other"', f'W/"{DIGEST}"', "Wed, 21 Oct 2015 07:28:00 GMT"):
        answer = await ask(harness_with(tmp_path, SPEC), range="bytes=100-", if_range=condition)
        assert (answer.status, answer.body) == (200, FILE)


async def test_bytes_that_are_not_there(tmp_path: Path) -> None:
    answer = await ask(harness_with(tmp_path, SPEC), range=f"bytes={len(FILE)}-")
    assert (answer.status, answer.error["code"]) == (416, "range_not_satisfiable")
    assert answer.headers["content-range"] == f"bytes */{len(FILE)}"


async def test_head_tells_without_sending(tmp_path: Path) -> None:
    answer = await ask(harness_with(tmp_path, SPEC), method="HEAD")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", str(len(FILE)))


async def test_an_empty_file(tmp_path: Path) -> None:
    harness = harness_with(tmp_path, SPEC)
    (tmp_path / "weights.gguf").write_bytes(b"")
    answer = await ask(harness)
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    "spec",
    [
        replace(SPEC, sha256=None),
        replace(SPEC, sha256="0" * 64),
        replace(SPEC, artifact="https://host/weights.gguf"),
        replace(SPEC, artifact="file:nowhere"),
        replace(SPEC, artifact="file:."),
        replace(SPEC, artifact="file:/dev/zero"),
    ],
)
async def test_a7_what_no_model_names_is_not_there(tmp_path: Path, spec: ModelSpec) -> None:
    answer = await ask(harness_with(tmp_path, spec))
    assert (answer.status, answer.error["code"]) == (404, "not_found")


@pytest.mark.parametrize("digest", ["..", "..%2Fweights.gguf", "weights.gguf", "%00", "0" * 64, ""])
async def test_a7_a_request_names_no_path(tmp_path: Path, digest: str) -> None:
    answer = await ask(harness_with(tmp_path, SPEC), digest)
    assert answer.status in {401, 403, 404}


async def test_a7_what_the_api_has_set_stays_in_the_models_folder(tmp_path: Path) -> None:
    models, outside = tmp_path / "models", tmp_path / "outside.gguf"
    models.mkdir()
    outside.write_bytes(FILE)
    (models / "link.gguf").symlink_to(outside)
    for artifact in ("file:../outside.gguf", f"file:{outside}", "file:link.gguf"):
        spec = replace(SPEC, artifact=artifact)
        assert list(paths_of([spec], models)) == [outside]
        assert list(paths_of([replace(spec, source="api")], models)) == []


def test_the_hash_says_which_models_are_meant() -> None:
    meant = [SPEC, replace(SPEC, sha256=DIGEST.upper())]
    others = [replace(SPEC, sha256=None), replace(SPEC, sha256="0" * 64), replace(SPEC, artifact="https://host/x")]
    assert list(specs_of(DIGEST, [*others, *meant])) == meant


async def test_the_first_path_that_is_there_is_taken(tmp_path: Path) -> None:
    assert (await ask(harness_with(tmp_path, replace(SPEC, artifact="file:nowhere"), SPEC))).body == FILE


async def test_a_node_that_is_not_approved_gets_nothing(tmp_path: Path) -> None:
    for node in (replace(NODE, approved=False), replace(NODE, id=NodeId("n2"))):
        answer = await ask(harness_with(tmp_path, SPEC, node=node))
        assert (answer.status, answer.error["code"]) == (403, "forbidden")


@pytest.mark.parametrize("header", ["x-gateway-node", "x-gateway-boot"])
async def test_a11_a_credential_is_of_one_node_and_one_start(tmp_path: Path, header: str) -> None:
    for other in ("n2", ""):
        answer = await ask(harness_with(tmp_path, SPEC), **{header: other})
        assert (answer.status, answer.error["code"]) == (401, "invalid_node_credential")


async def test_a11_the_credential_of_an_earlier_start_opens_nothing_once_a_later_one_has_joined(tmp_path: Path) -> None:
    later = BootId("later")
    registered = replace(NODE, boot_id=later, joined_boot_id=NODE.boot_id)
    assert (await ask(harness_with(tmp_path, SPEC, node=registered))).status == 200
    answer = await ask(harness_with(tmp_path, SPEC, node=replace(registered, joined_boot_id=later)))
    assert (answer.status, answer.error["code"]) == (401, "invalid_node_credential")


async def test_a_file_that_becomes_shorter_breaks_the_answer_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    answer = await ask(harness_with(tmp_path, SPEC))
    assert answer.status == 200
    assert not answer.is_complete
