"""Models through the API of a whole gateway: put, loaded, used, unloaded, removed, with what is counted of it."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.backends.pb import backend_pb2 as pb
from gateway.domain.ids import ModelName
from tests.fakes.in_memory_backend import ServerStream
from tests.fakes.whole_gateway import Installation, answer_hello, open_installation

PATIENCE_SECONDS = 30.0
NEW = {"backend": "llama-cpp", "artifact": "builtin:tiny"}


async def load(installation: Installation, model: str = "tiny", query: str = "?wait=30") -> httpx.Response:
    return await installation.client.post(f"/api/models/{model}/load{query}", timeout=PATIENCE_SECONDS)


async def wait_until_gone(installation: Installation, model: str) -> None:
    """No process has the model."""
    views = installation.gateway.shared.views
    with trio.fail_after(PATIENCE_SECONDS):
        while any(each.model == model for each in views.current.state.replicas.values()):
            await views.wait_change(views.current)


async def test_a_load_without_a_request_is_waited_for_and_counted(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        response = await load(installation)
        assert (response.status_code, response.json()["state"], response.json()["node"]) == (200, "ready", "box")
        assert not installation.gateway.control.load_requests.is_open(ModelName("tiny"))
        assert len(installation.spawn.started) == 1
        assert (await load(installation, query="")).json()["state"] == "ready"
        text = (await installation.client.get("/metrics")).text
    assert 'gateway_loads_total{model="tiny",outcome="ready"} 1.0' in text
    assert "gateway_load_seconds_count 1.0" in text


async def test_l10_a_load_that_fails_says_why_and_when_it_is_tried_again(tmp_path: Path) -> None:
    async def refuse(stream: ServerStream, request: Any) -> None:
        if isinstance(request, pb.ModelOptions):
            await stream.send_message(pb.Result(success=False, message="no such tensor"))
        else:
            await answer_hello(stream, request)

    async with open_installation(tmp_path) as installation:
        installation.service.answer = refuse
        response = await load(installation)
        assert (response.status_code, response.json()["state"]) == (200, "failed")
        assert "no such tensor" in response.json()["error"]
        model = (await installation.client.get("/api/models/tiny")).json()
        assert model["retry_at"] == response.json()["retry_at"]
        text = (await installation.client.get("/metrics")).text
    assert 'gateway_loads_total{model="tiny",outcome="failed"} 1.0' in text


async def test_w12_an_unloaded_model_is_gone_and_comes_back_when_it_is_asked_for(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        await load(installation)
        assert (await installation.client.post("/api/models/tiny/unload")).status_code == 200
        await wait_until_gone(installation, "tiny")
        assert installation.spawn.started[0].code is not None
        assert (await installation.client.get("/api/models/tiny/load-status")).json()["state"] == "not_loaded"
        assert (await installation.chat()).status_code == 200


async def test_a_model_that_is_put_serves_at_once_and_until_it_is_removed(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        response = await installation.client.put("/api/models/org/new", content=json.dumps(NEW), headers=JSON)
        assert response.status_code == 201
        assert (await installation.chat(model="org/new")).status_code == 200
        assert (await installation.client.delete("/api/models/org/new")).status_code == 200
        assert (await installation.chat(model="org/new")).status_code == 404
        await wait_until_gone(installation, "org/new")


JSON = {"content-type": "application/json"}
