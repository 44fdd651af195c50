"""Two gateways on one registry: what is done at one is so at the other, whichever an admin or a worker is sent to."""

import json
from typing import Any, Final

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gateway.domain.ids import GatewayId
from gateway.domain.routability import build_view
from gateway.registry.embedded.memory import MemoryRegistry
from gateway.registry.snapshot import run_snapshot_watcher
from tests.fakes.api_harness import JOIN_TOKEN, NOW, ApiHarness
from tests.fakes.asgi import AsgiRequest
from tests.fakes.fleet import at_once

MODEL: Final = "/api/models/org/tiny"
BODY: Final[dict[str, Any]] = {"backend": "llama-cpp", "artifact": "builtin:tiny"}
BOOT, LATER_BOOT = "5a1c6f0e-5b0d-4a53-9c6e-2f3d8f3b7a01", "5a1c6f0e-5b0d-4a53-9c6e-2f3d8f3b7a02"


@pytest.fixture
async def harnesses(nursery: trio.Nursery) -> tuple[ApiHarness, ApiHarness]:
    """Each has its own view, which follows the one registry."""
    registry = MemoryRegistry(lambda: NOW)
    a, b = (ApiHarness(registry, gateway_id=GatewayId(name), auto_approve=False) for name in "ab")
    for harness in (a, b):
        await nursery.start(run_snapshot_watcher, registry, harness.views, at_once(build_view))
    return a, b


async def put(harness: ApiHarness, **changes: object) -> AsgiRequest:
    return await harness.ask("PUT", MODEL, json.dumps(BODY | changes).encode())


async def register(harness: ApiHarness, **fields: object) -> AsgiRequest:
    body = json.dumps({"name": "box"} | fields).encode()
    return await harness.ask("POST", "/api/node/register", body, key=JOIN_TOKEN)


async def test_m1_a_model_that_was_added_at_one_gateway_is_at_the_other(
    harnesses: tuple[ApiHarness, ApiHarness],
) -> None:
    a, b = harnesses
    assert (await put(a)).status == 201
    await wait_all_tasks_blocked()
    assert (await b.ask("GET", MODEL)).json == (await a.ask("GET", MODEL)).json
    assert (await put(b, parallel=3)).status == 200


async def test_m2_an_edit_and_a_removal_are_seen_by_both(harnesses: tuple[ApiHarness, ApiHarness]) -> None:
    a, b = harnesses
    await put(a)
    await put(b, parallel=3)
    await wait_all_tasks_blocked()
    assert [(await harness.ask("GET", MODEL)).json["spec"]["parallel"] for harness in harnesses] == [3, 3]
    assert (await a.ask("DELETE", MODEL)).status == 200
    await wait_all_tasks_blocked()
    assert [(await harness.ask("GET", MODEL)).status for harness in harnesses] == [404, 404]


@pytest.mark.parametrize(("verb", "status"), [("load", 202), ("unload", 200)])
async def test_w12_a_model_that_a_gateways_view_does_not_have_yet(
    verb: str, status: int, autojump_clock: MockClock
) -> None:
    registry = MemoryRegistry(lambda: NOW)
    a, b = ApiHarness(registry), ApiHarness(registry)
    await put(a)
    request = b.request("POST", f"{MODEL}/{verb}")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.run, b.app)
        await wait_all_tasks_blocked()
        await b.update_view()
    assert request.status == status


async def test_m1_a_worker_that_joined_at_one_gateway_is_approved_at_the_other(
    harnesses: tuple[ApiHarness, ApiHarness],
) -> None:
    a, b = harnesses
    answer = (await register(a, boot_id=BOOT)).json
    assert answer["approved"] is False
    assert (await b.ask("POST", "/api/nodes/box/approve")).json["approved"] is True
    assert (await a.ask("POST", f"/api/nodes/{answer['node_id']}/drain")).json["draining"] is True
    await wait_all_tasks_blocked()
    answers = [(await harness.ask("GET", "/api/nodes/box")).json for harness in harnesses]
    assert answers[0] == answers[1]
    assert (answers[0]["approved"], answers[0]["draining"]) == (True, True)


async def test_h10_a_worker_comes_back_as_the_same_node_at_another_gateway(
    harnesses: tuple[ApiHarness, ApiHarness],
) -> None:
    a, b = harnesses
    first = (await register(a, boot_id=BOOT)).json
    proof = {"node_id": first["node_id"], "previous_boot_id": BOOT, "previous_credential": first["credential"]}
    second = (await register(b, boot_id=LATER_BOOT, name="another", **proof)).json
    assert (second["node_id"], second["gateway_id"]) == (first["node_id"], "b")


async def test_m3_the_audit_trail_is_one(harnesses: tuple[ApiHarness, ApiHarness]) -> None:
    a, b = harnesses
    await put(a)
    await put(b, parallel=3)
    answers = [(await harness.ask("GET", "/api/events")).json["events"] for harness in harnesses]
    assert answers[0] == answers[1]
    assert len(answers[0]) >= 2
