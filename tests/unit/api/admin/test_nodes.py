"""The admin API over the fleet: what is shown, what an admin changes, what is refused and by which name."""

import json
from typing import Any, Final

import pytest

from gateway.domain.cluster import Node, NodeStatus
from gateway.domain.ids import BootId, GatewayId, NodeId
from gateway.domain.resources import Capacity, Gpu
from gateway.domain.session import Hello, Registration
from tests.contract.samples import place, replica, spec
from tests.fakes.api_harness import ADMIN_KEY, NOW, ApiHarness
from tests.fakes.asgi import AsgiRequest

GPU: Final = Gpu("nvidia", "NVIDIA L4", "GPU-1", vram_bytes=24 * 2**30, vram_free_bytes=20 * 2**30)
CAPACITY: Final = Capacity((GPU,), 64, 32, 1000, 500, 8, ("avx2",))


async def add_node(harness: ApiHarness, name: str = "box", *, session: bool = True, approved: bool = True) -> Node:
    boot_id = BootId(f"boot of {name}")
    node = await harness.registry.register_node(Registration(name, boot_id, approved=approved))
    if session:
        await harness.registry.join_node(Hello(node.id, name, boot_id, capacity=CAPACITY), GatewayId("g"))
    await harness.update_view()
    return await stored(harness, node.id)


async def stored(harness: ApiHarness, node_id: NodeId) -> Node:
    return (await harness.registry.read_state()).nodes[node_id]


async def patch(harness: ApiHarness, name: str, **fields: Any) -> AsgiRequest:
    return await harness.ask("PATCH", f"/api/nodes/{name}", json.dumps(fields).encode())


# What is shown


async def test_a_node_says_all_that_is_known_of_it() -> None:
    harness = ApiHarness()
    node = await add_node(harness)
    request = await harness.ask("GET", "/api/nodes/box")
    assert request.json == {
        "id": node.id,
        "name": "box",
        "status": "healthy",
        "approved": True,
        "draining": False,
        "labels": {"node.name": "box", "gpu.vendor": "nvidia", "gpu.count": "1", "gpu.vram": "24GiB"},
        "capacity": {
            "gpus": [
                {
                    "vendor": "nvidia",
                    "name": "NVIDIA L4",
                    "uuid": "GPU-1",
                    "vram_bytes": 24 * 2**30,
                    "vram_free_bytes": 20 * 2**30,
                    "unified": False,
                }
            ],
            "vram_bytes": 24 * 2**30,
            "vram_free_bytes": 20 * 2**30,
            "ram_bytes": 64,
            "ram_free_bytes": 32,
            "disk_bytes": 1000,
            "disk_free_bytes": 500,
            "cpu_count": 8,
            "cpu_flags": ["avx2"],
            "max_replicas_per_model": 1,
            "free_vram_bytes": 20 * 2**30,
        },
        "since": NOW,
        "age": 60.0,
    }


async def test_the_lists_have_the_objects_of_the_status() -> None:
    harness = ApiHarness()
    node = await add_node(harness)
    await harness.registry.declare_models([spec("org/tiny")])
    await place(harness.registry, replica(model="org/tiny", node_id=node.id, since=NOW))
    await harness.update_view()
    status = (await harness.ask("GET", "/api/status")).json
    assert [len(status[part]) for part in ("nodes", "models", "replicas")] == [1, 1, 1]
    assert status["replicas"][0]["age"] == 60.0
    for part, one in (("nodes", node.id), ("models", "org/tiny"), ("replicas", "replica-1")):
        assert (await harness.ask("GET", f"/api/{part}")).json == {part: status[part]}
        assert (await harness.ask("GET", f"/api/{part}/{one}")).json == status[part][0]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [
        ("GET", "/api/nodes/nobody", "node_not_found"),
        ("DELETE", "/api/nodes/nobody", "node_not_found"),
        ("POST", "/api/nodes/nobody/approve", "node_not_found"),
        ("POST", "/api/nodes/nobody/drain", "node_not_found"),
        ("POST", "/api/nodes/nobody/resume", "node_not_found"),
        ("GET", "/api/replicas/nobody", "replica_not_found"),
        ("GET", "/api/models/nobody", "model_not_found"),
    ],
)
async def test_what_is_not_there_is_named(method: str, path: str, code: str) -> None:
    request = await ApiHarness().ask(method, path)
    assert (request.status, request.error["code"]) == (404, code)
    assert "'nobody'" in request.error["message"]


async def test_a_patch_of_nobody() -> None:
    assert (await patch(ApiHarness(), "nobody", labels={})).error["code"] == "node_not_found"


async def test_an_id_wins_over_a_name() -> None:
    harness = ApiHarness()
    first = await add_node(harness)
    second = await add_node(harness, name=first.id)
    assert (await harness.ask("GET", f"/api/nodes/{first.id}")).json["name"] == "box"
    assert (await harness.ask("POST", f"/api/nodes/{first.id}/drain")).json["id"] == first.id
    assert not (await stored(harness, second.id)).draining


async def test_events_are_listed_newest_first() -> None:
    harness = ApiHarness()
    node = await add_node(harness)
    await harness.registry.remove_node(node.id)
    events = (await harness.ask("GET", "/api/events")).json["events"]
    assert [event["subject"] for event in events] == [node.id] * len(events)
    assert events[0]["kind"] == "node.removed"
    assert set(events[0]) == {"at", "kind", "subject", "detail", "epoch"}
    assert (await harness.ask("GET", "/api/events?limit=1")).json["events"] == events[:1]


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "9" * 30, "1.5", "all", ""])
async def test_a_wrong_limit_is_named(limit: str) -> None:
    request = await ApiHarness().ask("GET", f"/api/events?limit={limit}")
    assert (request.status, request.error["param"]) == (400, "limit")


# What an admin wishes


@pytest.mark.parametrize("by_name", [True, False])
async def test_a_drain_and_its_end_answer_the_node_as_it_is_then(*, by_name: bool) -> None:
    harness = ApiHarness()
    node = await add_node(harness)
    for action, status in (("drain", "draining"), ("drain", "draining"), ("resume", "healthy"), ("resume", "healthy")):
        request = await harness.ask("POST", f"/api/nodes/{'box' if by_name else node.id}/{action}")
        assert (request.status, request.json["status"]) == (200, status)
        assert (await stored(harness, node.id)).status.value == status


async def test_an_approval() -> None:
    harness = ApiHarness()
    await add_node(harness, approved=False)
    assert (await harness.ask("GET", "/api/nodes/box")).json["status"] == "pending"
    for _ in range(2):
        request = await harness.ask("POST", "/api/nodes/box/approve")
        assert (request.json["status"], request.json["approved"]) == ("healthy", True)


async def test_the_same_change_twice_writes_once() -> None:
    harness = ApiHarness()
    await add_node(harness)
    await harness.ask("POST", "/api/nodes/box/drain")
    version = harness.registry.statistics().version
    await harness.ask("POST", "/api/nodes/box/drain")
    assert harness.registry.statistics().version == version


async def test_what_an_admin_says_counts_instead_of_what_the_worker_says() -> None:
    harness = ApiHarness()
    await add_node(harness)
    request = await patch(harness, "box", labels={"tier": "gpu"}, vram_budget="50%", max_replicas_per_model=3)
    assert request.json["labels"]["tier"] == "gpu"
    assert request.json["capacity"]["max_replicas_per_model"] == 3
    assert request.json["capacity"]["free_vram_bytes"] == 8 * 2**30
    request = await patch(harness, "box", vram_budget="6GiB")
    assert request.json["capacity"]["free_vram_bytes"] == 2 * 2**30
    assert (request.json["labels"]["tier"], request.json["capacity"]["max_replicas_per_model"]) == ("gpu", 3)
    request = await patch(harness, "box", labels=None, vram_budget=None, max_replicas_per_model=None)
    assert "tier" not in request.json["labels"]
    assert request.json["capacity"]["max_replicas_per_model"] == 1
    assert request.json["capacity"]["free_vram_bytes"] == 20 * 2**30


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"label": {}}, "label"),
        ({"approved": True}, "approved"),
        ({"labels": []}, "labels"),
        ({"labels": "tier=gpu"}, "labels"),
        ({"labels": {"tier": 1}}, "labels.tier"),
        ({"labels": {"tier": None}}, "labels.tier"),
        ({"labels": {"tier": "a\0b"}}, "labels.tier"),
        ({"labels": {"tier": "a" * 257}}, "labels.tier"),
        ({"labels": {"": "a"}}, "labels"),
        ({"labels": {"a\0b": "a"}}, "labels"),
        ({"labels": {"a" * 129: "a"}}, "labels"),
        ({"labels": {str(number): "a" for number in range(65)}}, "labels"),
        ({"vram_budget": 12}, "vram_budget"),
        ({"vram_budget": "12"}, "vram_budget"),
        ({"vram_budget": "12 GiB"}, "vram_budget"),
        ({"vram_budget": "0%"}, "vram_budget"),
        ({"vram_budget": "101%"}, "vram_budget"),
        ({"vram_budget": "-1GiB"}, "vram_budget"),
        ({"vram_budget": "99999999TiB"}, "vram_budget"),
        ({"vram_budget": "{got}{param}%"}, "vram_budget"),
        ({"max_replicas_per_model": 0}, "max_replicas_per_model"),
        ({"max_replicas_per_model": "2"}, "max_replicas_per_model"),
        ({"max_replicas_per_model": True}, "max_replicas_per_model"),
        ({"max_replicas_per_model": 2**31}, "max_replicas_per_model"),
        ({"max_replicas_per_model": 1.0}, "max_replicas_per_model"),
    ],
)
async def test_a_wrong_field_is_named_and_changes_nothing(fields: dict[str, Any], param: str) -> None:
    harness = ApiHarness()
    await add_node(harness)
    before = await harness.registry.read_state()
    request = await patch(harness, "box", **fields)
    assert (request.status, request.error["type"], request.error["param"]) == (400, "invalid_request_error", param)
    assert await harness.registry.read_state() == before


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"null"])
async def test_a_patch_that_is_no_object(body: bytes) -> None:
    harness = ApiHarness()
    await add_node(harness)
    assert (await harness.ask("PATCH", "/api/nodes/box", body)).status == 400


async def test_a_patch_that_does_not_say_that_it_is_json() -> None:
    harness = ApiHarness()
    await add_node(harness)
    headers = {"host": "gateway.example", "authorization": f"Bearer {ADMIN_KEY}"}
    request = await AsgiRequest("PATCH", "/api/nodes/box", headers, [b"{}"]).run(harness.app)
    assert (request.status, request.error["code"]) == (415, "unsupported_media_type")


# Removal


async def test_w12_a_node_that_is_there_is_removed_only_by_force() -> None:
    harness = ApiHarness()
    node = await add_node(harness)
    await place(harness.registry, replica(node_id=node.id))
    request = await harness.ask("DELETE", "/api/nodes/box")
    assert (request.status, request.error["code"]) == (409, "conflict")
    assert "force=true" in request.error["message"]
    request = await harness.ask("DELETE", "/api/nodes/box?force=true")
    assert (request.status, request.json) == (200, {"removed": node.id})
    state = await harness.registry.read_state()
    assert (dict(state.nodes), dict(state.replicas)) == ({}, {})


@pytest.mark.parametrize(
    ("link", "status"),
    [
        (NodeStatus.OFFLINE, 200),
        (NodeStatus.UNHEALTHY, 200),
        (NodeStatus.HEALTHY, 409),
        (NodeStatus.DRAINING, 409),
    ],
)
async def test_only_a_lost_node_is_removed_without_force(link: NodeStatus, status: int) -> None:
    harness = ApiHarness()
    node = await add_node(harness)
    await harness.registry.mark_node(node.id, node.session, link)
    assert (await harness.ask("DELETE", f"/api/nodes/{node.id}")).status == status


async def test_h9_a_drained_node_that_is_offline_may_be_removed_and_one_that_waits_for_approval_may_not() -> None:
    harness = ApiHarness()
    await add_node(harness, "pending", approved=False)
    gone = await add_node(harness, "gone", session=False)
    await harness.ask("POST", "/api/nodes/gone/drain")
    assert (await harness.ask("DELETE", "/api/nodes/pending")).status == 409
    assert (await harness.ask("DELETE", "/api/nodes/gone")).json == {"removed": gone.id}
    await add_node(harness, "never approved", session=False, approved=False)
    assert (await harness.ask("DELETE", "/api/nodes/never approved")).status == 200


@pytest.mark.parametrize("force", ["1", "yes", "True", ""])
async def test_a_wrong_force_is_named(force: str) -> None:
    harness = ApiHarness()
    await add_node(harness)
    request = await harness.ask("DELETE", f"/api/nodes/box?force={force}")
    assert (request.status, request.error["param"]) == (400, "force")


async def test_a_wrong_method_is_answered_with_the_right_ones() -> None:
    request = await ApiHarness().ask("PUT", "/api/nodes/box")
    assert request.status == 405
    assert {"GET", "PATCH", "DELETE"} <= set(request.headers["allow"].split(", "))
