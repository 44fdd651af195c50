"""The admin API over models: what is shown, put, removed, loaded and unloaded, and what is refused by which name."""

import json
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.domain.cluster import LoadFailure, Progress, Replica
from gateway.domain.ids import Address, ModelName, ReplicaId
from gateway.domain.lifecycle import Observed
from gateway.domain.model_spec import Capabilities
from gateway.domain.peers import PendingReason
from gateway.domain.plan_write import ControlWrite
from gateway.domain.resources import Requirement
from gateway.domain.routability import build_view
from gateway.registry.snapshot import run_snapshot_watcher
from tests.contract.samples import join, lead, place, replica, spec
from tests.fakes.api_harness import NOW, ApiHarness
from tests.fakes.asgi import AsgiRequest
from tests.fakes.fleet import at_once

TINY: Final = ModelName("org/tiny")
BODY: Final[dict[str, Any]] = {"backend": "llama-cpp", "artifact": "builtin:tiny"}
FAILURE: Final = LoadFailure("exit code 3", 1, NOW + 70)


@pytest.fixture
async def harness(nursery: trio.Nursery) -> ApiHarness:
    """Its view follows the registry."""
    harness = ApiHarness()
    await nursery.start(run_snapshot_watcher, harness.registry, harness.views, at_once(build_view))
    return harness


async def put(harness: ApiHarness, body: object, name: str = TINY) -> AsgiRequest:
    return await harness.ask("PUT", f"/api/models/{name}", json.dumps(body).encode())


async def declare(harness: ApiHarness, **fields: object) -> None:
    await harness.registry.declare_models([spec(TINY, **fields)])
    await harness.update_view()


async def run_replica(harness: ApiHarness, observed: Observed) -> Replica:
    await join(harness.registry)
    model = (await harness.registry.read_state()).models[TINY]
    placed = replica(model=TINY, revision=model.revision, observed=observed, address=Address("127.0.0.1:9"))
    await place(harness.registry, placed)
    await harness.update_view()
    return placed


async def fail(harness: ApiHarness) -> None:
    epoch = await lead(harness.registry)
    await harness.registry.apply(epoch, ControlWrite(set_failures=((TINY, FAILURE),)))
    await harness.update_view()


async def load_status(harness: ApiHarness) -> dict[str, Any]:
    request = await harness.ask("GET", f"/api/models/{TINY}/load-status")
    assert request.status == 200
    status: dict[str, Any] = request.json
    return status


# What is shown


async def test_a_model_says_all_that_is_known_of_it(harness: ApiHarness) -> None:
    options = {"options": {"a": True}, "context_size": 1024, "max_replicas": 2, "load_timeout": "1.5m"}
    await put(harness, {**BODY, **options})
    model = (await harness.registry.read_state()).models[TINY]
    can = Capabilities(generates=True, embeds=False, context_tokens=512)
    await harness.registry.record_capabilities(TINY, model.revision, can)
    await harness.registry.record_requirement(TINY, model.revision, Requirement(1, 2, 3, measured=True))
    await fail(harness)
    assert (await harness.ask("GET", f"/api/models/{TINY}")).json == {
        "name": TINY,
        "source": "api",
        "backend": "llama-cpp",
        "revision": model.revision,
        "ready": 0,
        "desired": 0,
        "min_replicas": 0,
        "max_replicas": 2,
        "in_flight": 0,
        "queued": 0,
        "status": "load_failed",
        "error": "exit code 3",
        "retry_at": NOW + 70,
        "requirement": {"vram_bytes": 1, "ram_bytes": 2, "disk_bytes": 3, "measured": True},
        "capabilities": {"generates": True, "embeds": False},
        "context_tokens": 512,
        "warnings": ["context_size is 1024, but the model has a context of 512 tokens only"],
        "spec": {
            **BODY,
            "context_size": 1024,
            "options": {"a": "true"},
            "max_replicas": 2,
            "load_timeout": "90s",
            "rollout": "replace",
        },
    }


FULL: Final[dict[str, Any]] = {
    "backend": "other",
    "artifact": "file:sub/m.gguf",
    "sha256": "a" * 64,
    "context_size": 4096,
    "gpu_layers": 0,
    "parallel": 3,
    "options": {"a": "1"},
    "reproducible": True,
    "prompt_cache": 1024,
    "min_replicas": 1,
    "max_replicas": 0,
    "selector": {"gpu.vendor": "nvidia"},
    "exclusive_group": "g",
    "pinned": True,
    "load_timeout": "0.5s",
    "rollout": "surge",
}


@pytest.mark.parametrize("body", [BODY, FULL, {**BODY, "replicas": "all"}])
async def test_what_a_model_shows_of_its_spec_says_the_same_spec(harness: ApiHarness, body: dict[str, Any]) -> None:
    first = await put(harness, body)
    version = harness.registry.statistics().version
    again = await put(harness, first.json["spec"])
    assert (first.status, again.status) == (201, 200)
    assert harness.registry.statistics().version == version
    assert body.items() <= first.json["spec"].items()


# Putting


async def test_a_new_model_is_created_and_a_known_one_is_changed(harness: ApiHarness) -> None:
    request = await put(harness, BODY)
    assert (request.status, request.json["name"], request.json["source"]) == (201, TINY, "api")
    request = await put(harness, {**BODY, "context_size": 4096})
    assert (request.status, request.json["spec"]["context_size"]) == (200, 4096)


async def test_null_is_not_set(harness: ApiHarness) -> None:
    assert (await put(harness, {**BODY, "context_size": None, "max_replicas": None})).status == 201


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": "x"}, "name"),
        ({"contxt_size": 1}, "contxt_size"),
        ({"source": "file"}, "source"),
        ({"backend": None}, "backend"),
        ({"backend": 1}, "backend"),
        ({"backend": "unknown"}, "backend"),
        ({"backend": "llama-cpp", "artifact": ""}, "artifact"),
        ({"artifact": "ftp://x/y"}, "artifact"),
        ({"artifact": "file:../secret"}, "artifact"),
        ({"artifact": "file:sub/../../models2/x"}, "artifact"),
        ({"artifact": "file:/etc/passwd"}, "artifact"),
        ({"artifact": "file:."}, "artifact"),
        ({"sha256": "abc"}, "sha256"),
        ({"context_size": 0}, "context_size"),
        ({"context_size": "4096"}, "context_size"),
        ({"context_size": True}, "context_size"),
        ({"context_size": 2**31}, "context_size"),
        ({"context_size": 1.5}, "context_size"),
        ({"gpu_layers": -1}, "gpu_layers"),
        ({"options": {"a:b": "c"}}, "options.a:b"),
        ({"options": {"a": None}}, "options.a"),
        ({"options": {"a": []}}, "options.a"),
        ({"options": []}, "options"),
        ({"options": {str(number): "" for number in range(257)}}, "options"),
        ({"selector": {"a": {}}}, "selector.a"),
        ({"min_replicas": 2, "max_replicas": 1}, "min_replicas"),
        ({"replicas": "some"}, "replicas"),
        ({"replicas": "all", "min_replicas": 1}, "replicas"),
        ({"load_timeout": 30}, "load_timeout"),
        ({"load_timeout": "0s"}, "load_timeout"),
        ({"rollout": "canary"}, "rollout"),
        ({"exclusive_group": "a b"}, "exclusive_group"),
    ],
)
async def test_l18_a_wrong_field_is_named_and_changes_nothing(
    harness: ApiHarness, fields: dict[str, Any], param: str
) -> None:
    request = await put(harness, {**BODY, **fields})
    assert (request.status, request.error["type"], request.error["param"]) == (400, "invalid_request_error", param)
    assert f"{param}" in request.error["message"]
    assert (await harness.registry.read_state()).models == {}


@pytest.mark.parametrize(
    "artifact", ["builtin:x", "file:a/b.gguf", "file:/srv/models/b.gguf", "https://h/x", "hf://o/r/f"]
)
async def test_artifacts_that_the_api_may_name(harness: ApiHarness, artifact: str) -> None:
    assert (await put(harness, {**BODY, "artifact": artifact})).status == 201


@pytest.mark.parametrize(
    ("artifact", "reason"),
    [
        ("https://user:hunter2@h/x", "carries a user or a password"),
        ("https://hunter2@h/x", "carries a user or a password"),
        ("https://user:hunter2@h", "carries a user or a password"),
        ("https://user:hunt/er2@h/x", "is no URL"),
        ("HTTPS://user:hunter2@h/x", "expected"),
        ("s3://key:hunter2@bucket/x", "expected"),
        ("http://user:hunter2@h/x?token=hunter2", "expected"),
        ("https:///x", "names no host"),
        ("https://h:99999/x", "is no URL"),
        ("https://h:0/x", "port 0"),
        ("https://h:x/x", "is no URL"),
        ("https://[::1/x", "is no URL"),
        ("https://a_b..c/x", "names a host that can't be one"),
        ("https://h\\evil/x", "names a host that can't be one"),
        ("https://h/", "names no file"),
        ("https://h/a b", "holds a space"),
        ("https://h/" + "x" * 9000, "expected at most 8192 characters"),
        ("hf://o/r", "names no file"),
        ("hf://o/r/../x", "names no file"),
        ("hf://user:hunter2@o/r/f", "an @ has its place behind the file"),
        ("https://127.0.0.1/x", "is not public"),
        ("https://[::ffff:10.0.0.1]/x", "is not public"),
        ("https://2130706433/x", "is not public"),
        ("https://0x7f.1/x", "is not public"),
        ("https://169.254.169.254/latest/meta-data", "is not public"),
        ("https://168.63.129.16/x", "is not public"),
        ("https://metadata.google.internal/x", "is not public"),
        ("https://LOCALHOST./x", "is not public"),
        ("https://h/x?token=***", "stands for a secret"),
    ],
)
async def test_an_artifact_that_can_never_load_is_refused_with_its_reason(
    harness: ApiHarness, artifact: str, reason: str
) -> None:
    request = await put(harness, {**BODY, "artifact": artifact})
    assert (request.status, request.error["param"]) == (400, "artifact")
    assert reason in request.error["message"]
    assert "hunter2" not in request.error["message"]
    assert len(request.error["message"]) < 500
    assert (await harness.registry.read_state()).models == {}


SIGNED: Final = "https://h/x?X-Amz-Date=1&X-Amz-Signature=hunter2"


async def test_the_secrets_of_a_signed_url_are_not_shown_and_outlive_a_change(harness: ApiHarness) -> None:
    shown = (await put(harness, {**BODY, "artifact": SIGNED})).json["spec"]
    assert shown["artifact"] == "https://h/x?X-Amz-Date=1&X-Amz-Signature=***"
    changed = await put(harness, {**shown, "min_replicas": 1})
    assert changed.status == 200
    assert (await harness.registry.read_state()).models[TINY].artifact == SIGNED
    other = await put(harness, {**shown, "artifact": "https://other/x?X-Amz-Signature=***"})
    assert (other.status, other.error["param"]) == (400, "artifact")


async def test_a_password_that_an_older_gateway_has_kept_is_not_shown(harness: ApiHarness) -> None:
    await declare(harness, artifact="https://user:hunter2@h/x")
    request = await harness.ask("GET", "/api/models")
    assert b"hunter2" not in request.body
    assert "https://***@h/x" in request.body.decode()


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null", b'{"backend": "\\ud800"}'])
async def test_a_body_that_is_no_object(harness: ApiHarness, body: bytes) -> None:
    assert (await harness.ask("PUT", "/api/models/a", body)).status == 400


@pytest.mark.parametrize("name", ["a b", "x" * 257, "a/load", "a/unload", "a/load-status"])
async def test_a_name_that_can_not_be_one_is_named(harness: ApiHarness, name: str) -> None:
    request = await put(harness, BODY, name)
    assert (request.status, request.error["param"]) == (400, "name")


async def test_a_model_of_the_file_is_changed_in_the_file(harness: ApiHarness) -> None:
    await declare(harness)
    for request in (await put(harness, BODY), await harness.ask("DELETE", f"/api/models/{TINY}")):
        assert (request.status, request.error["code"]) == (409, "conflict")
        assert "configuration file" in request.error["message"]
    assert (await harness.registry.read_state()).models == {TINY: spec(TINY)}


async def test_who_puts_a_model_sees_it_as_soon_as_this_gateway_does(autojump_clock: MockClock) -> None:
    harness = ApiHarness()
    request = harness.request("PUT", f"/api/models/{TINY}", json.dumps(BODY).encode())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.run, harness.app)
        await wait_all_tasks_blocked()
        assert request.sent == []
        before = trio.current_time()
        await harness.update_view()
        await request.answering.wait()
        assert trio.current_time() == before


# Removing


async def test_a_removed_model_is_not_there_any_more(harness: ApiHarness) -> None:
    await put(harness, BODY)
    harness.loads.request(TINY)
    assert (await harness.ask("DELETE", f"/api/models/{TINY}")).json == {"removed": TINY}
    assert (await harness.registry.read_state()).models == {}
    assert harness.loads.wanted == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("POST", "/load"),
        ("POST", "/load?wait=5"),
        ("POST", "/unload"),
        ("GET", "/load-status"),
    ],
)
async def test_a_model_that_is_not_there(harness: ApiHarness, method: str, path: str) -> None:
    request = await harness.ask(method, f"/api/models/org/none{path}")
    assert (request.status, request.error["code"]) == (404, "model_not_found")


# Loading


async def test_a_load_is_asked_for_and_not_waited_for(harness: ApiHarness) -> None:
    await declare(harness)
    request = await harness.ask("POST", f"/api/models/{TINY}/load")
    assert (request.status, request.json) == (202, {"model": TINY, "state": "not_loaded", "requested": True})
    assert set(harness.loads.wanted) == {TINY}


async def test_a_load_is_waited_for_until_it_is_over(harness: ApiHarness) -> None:
    await declare(harness)
    request = harness.request("POST", f"/api/models/{TINY}/load?wait=30", b"")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.run, harness.app)
        await wait_all_tasks_blocked()
        assert request.sent == []
        await run_replica(harness, Observed.READY)
        harness.loads.cancel(TINY)
    assert (request.status, request.json["state"], request.json["node"]) == (200, "ready", "name of node-1")


async def test_l11_a_load_that_takes_longer_goes_on(harness: ApiHarness, autojump_clock: MockClock) -> None:
    await declare(harness)
    before = trio.current_time()
    request = await harness.ask("POST", f"/api/models/{TINY}/load?wait=30")
    assert (request.status, request.json["requested"]) == (202, True)
    assert trio.current_time() - before == 30


@pytest.mark.parametrize("wait", ["0", "-1", "1.5", "x", "601", ""])
async def test_a_wrong_wait_is_named(harness: ApiHarness, wait: str) -> None:
    await declare(harness)
    request = await harness.ask("POST", f"/api/models/{TINY}/load?wait={wait}")
    assert (request.status, request.error["param"]) == (400, "wait")
    assert harness.loads.wanted == {}


# How a load goes


async def test_l11_a_load_status_says_how_far_it_is(harness: ApiHarness) -> None:
    await declare(harness)
    placed = await run_replica(harness, Observed.FETCHING)
    assert await load_status(harness) == {
        "model": TINY,
        "state": "fetching",
        "node": "name of node-1",
        "requested": False,
    }
    harness.progress.known[placed.id] = Progress(250, 1000, 50.0)
    assert await load_status(harness) == {
        "model": TINY,
        "state": "fetching",
        "node": "name of node-1",
        "progress": 0.25,
        "bytes_done": 250,
        "bytes_total": 1000,
        "eta_seconds": 15.0,
        "requested": False,
    }


async def test_l11_what_is_not_known_is_absent(harness: ApiHarness) -> None:
    await declare(harness)
    placed = await run_replica(harness, Observed.FETCHING)
    harness.progress.known[placed.id] = Progress(250)
    status = await load_status(harness)
    assert set(status) == {"model", "state", "node", "bytes_done", "requested"}


async def test_of_several_loads_the_furthest_is_shown(harness: ApiHarness) -> None:
    await declare(harness, max_replicas=2)
    await run_replica(harness, Observed.PLACED)
    further = replica(ReplicaId("a"), model=TINY, revision=spec(TINY).revision, slot=1, observed=Observed.LOADING)
    await place(harness.registry, further)
    await harness.update_view()
    assert (await load_status(harness))["state"] == "loading"


async def test_l10_a_failed_load_says_why_and_when_it_is_tried_again(harness: ApiHarness) -> None:
    await declare(harness)
    await fail(harness)
    assert await load_status(harness) == {
        "model": TINY,
        "state": "failed",
        "error": "exit code 3",
        "retry_at": NOW + 70,
        "requested": False,
    }


async def test_l9_the_next_try_still_says_how_the_last_one_ended(harness: ApiHarness) -> None:
    await declare(harness)
    await fail(harness)
    await run_replica(harness, Observed.LOADING)
    status = await load_status(harness)
    assert (status["state"], status["error"]) == ("loading", "exit code 3")


async def test_p4_a_model_without_room_says_so(harness: ApiHarness) -> None:
    await declare(harness)
    harness.outcome.pending = {TINY: PendingReason("no healthy node has room for it", is_shortage=True)}
    assert await load_status(harness) == {
        "model": TINY,
        "state": "not_loaded",
        "reason": "no healthy node has room for it",
        "requested": False,
    }
    harness.outcome.unsatisfiable = {TINY: "needs 9 GiB"}
    status = await load_status(harness)
    assert (status["state"], status["error"]) == ("unsatisfiable", "needs 9 GiB")


# Unloading


async def test_w12_a_model_is_unloaded_by_whichever_gateway_is_asked(harness: ApiHarness) -> None:
    await declare(harness)
    harness.loads.request(TINY)
    for _ in range(2):
        request = await harness.ask("POST", f"/api/models/{TINY}/unload")
        assert (request.status, request.json["name"]) == (200, TINY)
    assert (await harness.registry.read_state()).unloads == {TINY: NOW}
    assert harness.loads.wanted == {}


@pytest.mark.parametrize(
    ("source", "fields", "said"),
    [
        ("file", {"min_replicas": 2, "max_replicas": 2}, ("min_replicas = 2", "in the configuration file")),
        ("file", {"on_every_node": True}, ('replicas = "all"', "in the configuration file")),
        ("api", {"min_replicas": 1}, ("min_replicas = 1", "with PUT /api/models/org/tiny")),
    ],
)
async def test_l17_what_is_always_loaded_is_not_unloaded(
    harness: ApiHarness, source: str, fields: dict[str, object], said: tuple[str, str]
) -> None:
    if source == "file":
        await declare(harness, **fields)
    else:
        await harness.registry.put_model(spec(TINY, **fields))
    request = await harness.ask("POST", f"/api/models/{TINY}/unload")
    assert (request.status, request.error["code"]) == (409, "conflict")
    assert all(part in request.error["message"] for part in said)
    assert (await harness.registry.read_state()).unloads == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/models/{}"),
        ("GET", "/api/models/{}"),
        ("DELETE", "/api/models/{}"),
        ("POST", "/api/models/{}/load"),
        ("GET", "/api/models/{}/load-status"),
        ("PUT", "/api/models/{}"),
        ("GET", "/api/nodes/{}"),
        ("GET", "/api/decisions/{}"),
        ("GET", "/api/artifacts/{}"),
    ],
)
async def test_an_error_quotes_no_long_path(harness: ApiHarness, method: str, path: str) -> None:
    request = await harness.ask(
        method, path.format("x" * 30_000), json.dumps(BODY).encode() if method == "PUT" else b""
    )
    assert 400 <= (request.status or 0) < 500
    assert len(request.body) < 1000
