"""How a worker joins: what it is told, what proves that it was here before, and what is refused."""

import json
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import pytest

from gateway.api.admin import registration as node_register
from gateway.api.admin.registration import BODY_BYTES_MAX
from gateway.domain.cluster import NodeStatus
from gateway.domain.ids import BootId, GatewayId, NodeId, new_id
from gateway.domain.session import Hello
from gateway.registry.writes import nodes as node_writes
from gateway.transport.node_credentials import is_credential, node_credential
from tests.fakes.api_harness import ADMIN_KEY, CLUSTER_SECRET, JOIN_TOKEN, ApiHarness
from tests.fakes.asgi import AsgiRequest

BOOT: Final = "11111111-1111-4111-8111-111111111111"
LATER_BOOT: Final = "22222222-2222-4222-8222-222222222222"
THIRD_BOOT: Final = "33333333-3333-4333-8333-333333333333"


async def register(
    harness: ApiHarness, *, key: str = JOIN_TOKEN, host: str = "gw.example:8080", **fields: Any
) -> AsgiRequest:
    body = json.dumps({"name": "box", "boot_id": BOOT, **fields}).encode()
    request = harness.request("POST", "/api/node/register", body, key=key, headers={"host": host})
    return await request.run(harness.app)


def proof(answer: Mapping[str, Any], boot_id: str = BOOT) -> dict[str, Any]:
    """What a restarted worker knows of its last start."""
    return {
        "node_id": answer["node_id"],
        "previous_boot_id": boot_id,
        "previous_credential": answer["credential"],
        "boot_id": LATER_BOOT,
    }


async def test_a_new_worker_learns_who_it_is_and_where_to_connect() -> None:
    harness = ApiHarness()
    request = await register(harness)
    assert request.status == 200
    answer = request.json
    node_id = NodeId(answer.pop("node_id"))
    assert str(UUID(node_id)) == node_id
    assert is_credential(CLUSTER_SECRET, node_id, BootId(BOOT), answer.pop("credential"))
    assert answer == {"session_address": "gw.example:8081", "approved": True, "gateway_id": "g", "tls": False}
    node = (await harness.registry.read_state()).nodes[node_id]
    assert (node.name, node.boot_id, node.condition) == ("box", BOOT, NodeStatus.OFFLINE)


async def test_an_admin_may_want_to_approve_first() -> None:
    harness = ApiHarness(auto_approve=False)
    assert (await register(harness)).json["approved"] is False
    assert [node.approved for node in (await harness.registry.read_state()).nodes.values()] == [False]


@pytest.mark.parametrize(
    ("advertise", "host", "address"),
    [
        (None, "10.0.0.1", "10.0.0.1:8081"),
        (None, "[2001:db8::1]:8080", "[2001:db8::1]:8081"),
        ("public.example", "10.0.0.1:8080", "public.example:8081"),
        ("2001:db8::2", "10.0.0.1:8080", "[2001:db8::2]:8081"),
    ],
)
async def test_the_session_is_where_the_worker_found_the_gateway(
    advertise: str | None, host: str, address: str
) -> None:
    request = await register(ApiHarness(advertise_host=advertise), host=host)
    assert request.json["session_address"] == address


async def test_without_a_host_nobody_knows_where_to_connect() -> None:
    harness = ApiHarness()
    request = await register(harness, host="")
    assert (request.status, "server.advertise" in request.error["message"]) == (400, True)
    assert (await harness.registry.read_state()).nodes == {}


async def test_a_gateway_that_does_not_take_workers_yet_says_when_to_ask_again() -> None:
    harness = ApiHarness(worker_port=None)
    request = await register(harness)
    assert (request.status, request.headers["retry-after"]) == (503, "1")
    assert (await harness.registry.read_state()).nodes == {}


async def test_h10_a_restarted_worker_that_proves_who_it_was_is_the_same_node_under_any_name() -> None:
    harness = ApiHarness()
    first = (await register(harness)).json
    second = (await register(harness, **proof(first), name="renamed")).json
    assert second["node_id"] == first["node_id"]
    assert second["credential"] == node_credential(CLUSTER_SECRET, first["node_id"], BootId(LATER_BOOT))
    [node] = (await harness.registry.read_state()).nodes.values()
    assert (node.name, node.boot_id) == ("renamed", LATER_BOOT)


@pytest.mark.parametrize(
    "changed",
    [
        {"previous_credential": "0" * 64},
        {"previous_credential": "é" * 64},
        {"previous_boot_id": LATER_BOOT},
        {"node_id": new_id()},
        {"previous_credential": JOIN_TOKEN},
    ],
)
async def test_a11_a_wrong_proof_is_refused_and_changes_nothing(changed: dict[str, str]) -> None:
    harness = ApiHarness()
    first = (await register(harness)).json
    before = await harness.registry.read_state()
    request = await register(harness, **{**proof(first), **changed})
    assert (request.status, request.error["code"]) == (401, "invalid_node_credential")
    assert request.error["param"] == "previous_credential"
    assert await harness.registry.read_state() == before


@pytest.mark.parametrize("left_out", ["node_id", "previous_boot_id"])
async def test_half_a_proof_is_no_proof(left_out: str) -> None:
    harness = ApiHarness()
    claim = proof((await register(harness)).json)
    del claim[left_out]
    request = await register(harness, **claim)
    assert (request.status, request.error["param"]) == (400, left_out)


async def test_a11_an_id_without_a_proof_counts_for_nothing() -> None:
    harness = ApiHarness()
    first = (await register(harness)).json
    second = (await register(harness, name="other", node_id=first["node_id"])).json
    assert second["node_id"] != first["node_id"]


async def test_a11_an_older_credential_counts_until_a_newer_one_was_used() -> None:
    """The answer to a registration may be lost, and then only the credential before it is known."""
    harness = ApiHarness()
    first = (await register(harness)).json
    node_id = NodeId(first["node_id"])
    await harness.registry.join_node(Hello(node_id, "box", BootId(BOOT)), GatewayId("g"))
    lost = await register(harness, **proof(first))
    again = await register(harness, **{**proof(first), "boot_id": THIRD_BOOT})
    assert [lost.json["node_id"], again.json["node_id"]] == [node_id, node_id]
    await harness.registry.join_node(Hello(node_id, "box", BootId(THIRD_BOOT)), GatewayId("g"))
    for stale in (proof(first), proof(lost.json, LATER_BOOT)):
        before = await harness.registry.read_state()
        request = await register(harness, **{**stale, "boot_id": new_id()})
        assert (request.status, request.error["code"]) == (401, "invalid_node_credential")
        assert "out of date" in request.error["message"]
        assert await harness.registry.read_state() == before
    newest = await register(harness, **{**proof(again.json, THIRD_BOOT), "boot_id": new_id()})
    assert newest.json["node_id"] == node_id


async def test_who_registers_without_end_has_to_wait_and_writes_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(node_register, "REGISTRATIONS_BURST", 3)
    monkeypatch.setattr(node_register, "REGISTRATIONS_PER_SECOND", 1e-4)
    harness = ApiHarness()
    for number in range(3):
        assert (await register(harness, name=f"n{number}", boot_id=new_id())).status == 200
    before = harness.registry.statistics()
    request = await register(harness, name="another", boot_id=new_id())
    assert (request.status, int(request.headers["retry-after"]) > 1000) == (429, True)
    assert harness.registry.statistics() == before


async def test_a_fleet_that_is_full_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_writes, "NODES_MAX", 2)
    harness = ApiHarness()
    for name in ("one", "two"):
        await register(harness, name=name, boot_id=new_id())
    request = await register(harness, name="three", boot_id=new_id())
    assert (request.status, request.error["code"]) == (503, "too_many_nodes")
    assert (await register(harness, name="one", boot_id=new_id())).status == 200


async def test_a_name_that_is_in_use_is_refused() -> None:
    harness = ApiHarness()
    first = (await register(harness)).json
    hello = Hello(NodeId(first["node_id"]), "box", BootId(BOOT))
    await harness.registry.join_node(hello, GatewayId("g"))
    request = await register(harness, boot_id=LATER_BOOT)
    assert (request.status, request.error["code"], request.error["param"]) == (409, "node_name_taken", "name")
    assert first["node_id"] in request.error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"name": ""}, "name"),
        ({"name": "two words"}, "name"),
        ({"name": "a" * 129}, "name"),
        ({"name": "nul\0"}, "name"),
        ({"name": 7}, "name"),
        ({"name": None}, "name"),
        ({"boot_id": "7"}, "boot_id"),
        ({"boot_id": BOOT + "\n"}, "boot_id"),
        ({"boot_id": BOOT.replace("-", "")}, "boot_id"),
        ({"boot_id": BOOT.replace("1", "A")}, "boot_id"),
        ({"node_id": "../x"}, "node_id"),
        ({"previous_boot_id": "x"}, "previous_boot_id"),
        ({"previous_credential": ""}, "previous_credential"),
        ({"previous_credential": "a" * 257}, "previous_credential"),
        ({"approved": True}, "approved"),
    ],
)
async def test_a_wrong_field_is_named(fields: dict[str, Any], param: str) -> None:
    harness = ApiHarness()
    request = await register(harness, **fields)
    assert (request.status, request.error["param"]) == (400, param)
    assert (await harness.registry.read_state()).nodes == {}


async def test_a_registration_is_refused_by_its_size_before_it_is_read() -> None:
    harness = ApiHarness()
    headers = {"host": "gw.example:8080", "content-type": "application/json", "content-length": str(BODY_BYTES_MAX + 1)}
    request = harness.request("POST", "/api/node/register", key=JOIN_TOKEN, headers=headers)
    await request.run(harness.app)
    assert (request.status, request.error["code"]) == (413, "request_too_large")


async def test_a11_an_admin_key_is_no_join_token() -> None:
    harness = ApiHarness()
    assert (await register(harness, key=ADMIN_KEY)).status == 401
    assert (await harness.registry.read_state()).nodes == {}
