"""The composition root through its three seams: no process is started, no backend dialled, no file of a registry."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

pytest.importorskip("xllamacpp", reason="needs the llama extra")

from gateway.backends.metadata import AUTHORIZATION, TOKEN_VARIABLE
from gateway.backends.pb import backend_pb2 as pb
from gateway.composition.gateway import open_gateway
from gateway.config.load import parse_config
from gateway.data_dir import StartupError
from gateway.domain.ids import ReplicaId
from tests.fakes.in_memory_backend import ServerStream
from tests.fakes.whole_gateway import Installation, answer_hello, open_installation


async def test_a_first_request_loads_the_model_and_is_answered(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        response = await installation.chat()
        assert response.status_code == 200
        assert response.json()["choices"][0]["message"]["content"] == "hello"
        [process] = installation.spawn.started
        [replica] = installation.gateway.shared.views.current.state.replicas.values()
        token = installation.gateway.shared.token_of(replica.id)
        assert process.env[TOKEN_VARIABLE] == token
        assert {each[AUTHORIZATION] for each in installation.service.metadata} == {f"Bearer {token}"}
        assert token not in " ".join(process.command)


async def test_a_request_is_planned_for_before_anything_of_it_is_published(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        installation.gateway.control.sync.fast = lambda last, _has_peers: last
        assert (await installation.chat()).status_code == 200


async def test_warm_requests_execute_no_registry_statement(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        await installation.chat()
        await trio.testing.wait_all_tasks_blocked(0.2)  # the cold load's last writes are done
        before = installation.gateway.shared.registry.statistics().statements
        for _ in range(100):
            assert (await installation.chat()).status_code == 200
        assert installation.gateway.shared.registry.statistics().statements == before


async def test_a_hundred_first_requests_are_one_load(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        statuses: list[int] = []

        async def request() -> None:
            statuses.append((await installation.chat()).status_code)

        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(request)
        assert statuses == [200] * 100
        assert len(installation.spawn.started) == 1
        assert sum(isinstance(each, pb.ModelOptions) for each in installation.service.requests) == 1
        assert installation.gateway.routing.admission.loads.statistics().in_flight == {}


async def test_a_process_that_dies_is_replaced_by_the_next_request(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        await installation.chat()
        installation.spawn.started[0].end(-9)
        views = installation.gateway.shared.views
        while views.current.candidates:
            await views.wait_change(views.current)
        assert (await installation.chat()).status_code == 200
        assert len(installation.spawn.started) == 2


async def test_leaving_stops_the_processes(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        await installation.chat()
    assert installation.spawn.started[0].code is not None


async def test_the_status_document(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        await installation.chat()
        document = (await installation.client.get("/api/status")).json()
    [gateway], [node], [replica] = (document[part] for part in ("gateways", "nodes", "replicas"))
    model = next(model for model in document["models"] if model["name"] == "tiny")
    assert gateway == {"id": installation.gateway.shared.id, "leader": True, "url": installation.gateway.url}
    assert (node["name"], node["status"]) == ("box", "healthy")
    assert (model["ready"], model["desired"], model["in_flight"], model["queued"]) == (1, 1, 0, 0)
    assert model["status"] == "ready"
    assert (replica["model"], replica["node"], replica["state"], replica["slots"]) == ("tiny", "box", "ready", 4)


async def test_the_series_of_the_request_path(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        await installation.chat()
        await installation.chat(stream=True)
        text = (await installation.client.get("/metrics")).text
    for series in (
        'gateway_requests_total{model="tiny",outcome="200",route="/v1/chat/completions"} 2.0',
        'gateway_time_to_first_token_seconds_count{model="tiny"} 1.0',
        'gateway_inter_token_seconds_count{model="tiny"}',
        'gateway_queue_wait_seconds_count{model="tiny"} 2.0',
        'gateway_queue_length{model="tiny"} 0.0',
        'gateway_in_flight{model="tiny"} 0.0',
        'gateway_picks_total{model="tiny",reason="first"} 2.0',
        'gateway_tokens_total{kind="prompt",model="tiny"} 4.0',
        'gateway_replicas{model="tiny",state="ready"} 1.0',
        'gateway_nodes{status="healthy"} 1.0',
        'gateway_probes_total{outcome="alive"} 1.0',
        "gateway_probe_cache_hits_total 2.0",
        'gateway_registry_statements_total{kind="read_state"}',
    ):
        assert series in text


async def test_the_embedded_node_comes_back_when_an_admin_removes_it(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        assert (await installation.chat()).status_code == 200
        assert (await installation.client.delete("/api/nodes/box?force=true")).status_code == 200
        assert (await installation.chat()).status_code == 200
        [node] = (await installation.client.get("/api/nodes")).json()["nodes"]
        assert (node["name"], node["status"]) == ("box", "healthy")


async def test_the_loop_tells_how_late_it_is(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        assert "gateway_loop_lag_seconds 0." in (await installation.client.get("/metrics")).text


async def test_ready_only_while_it_serves(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        assert (await installation.client.get("/readyz")).json()["status"] == "ready"
        installation.gateway.shared.stop.set()
        assert installation.gateway.ready().status == "not ready"


async def test_h7_ready_without_the_registry_from_the_last_snapshot(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        installation.gateway.shared.peers.connected = False
        ready = installation.gateway.ready()
        assert ready.can_serve
        assert ready.checks == {"registry": False, "control": False, "listener": True}


async def test_a_taken_port_is_said_before_anything_is_touched(tmp_path: Path) -> None:
    async with open_installation(tmp_path / "first") as installation:
        port = installation.gateway.url.rpartition(":")[2]
        config = parse_config(f'[server]\nport = {port}\ndata_dir = "{tmp_path / "second"}"\n', {})
        with pytest.raises(StartupError, match=f"can't listen on 127.0.0.1:{port}"):
            async with open_gateway(config):
                pass
    assert not (tmp_path / "second" / "registry.db").exists()


async def test_the_cluster_secret_is_kept_and_private(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        first = installation.gateway.shared.token_of(ReplicaId("r"))
    async with open_installation(tmp_path) as installation:
        assert installation.gateway.shared.token_of(ReplicaId("r")) == first
    assert (tmp_path / "cluster_secret").stat().st_mode & 0o077 == 0


async def test_streams_are_what_openai_clients_read(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        response = await installation.chat(stream=True, stream_options={"include_usage": True})
        events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert events[-1] == "[DONE]"
    chunks = [json.loads(event) for event in events[:-1]]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[1]["choices"][0]["delta"] == {"content": "hello"}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"] == {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}


@pytest.mark.parametrize("replies", [(), (pb.Reply(),)])
async def test_a_stream_without_any_text_ends_with_its_counts(tmp_path: Path, replies: tuple[pb.Reply, ...]) -> None:
    async with open_installation(tmp_path) as installation:
        installation.service.answer = answer_with(*replies)
        chunks = await streamed_chunks(installation, stream_options={"include_usage": True})
    opening, finish, counts = chunks
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"]) == ({}, "stop")
    assert counts["choices"] == []
    assert counts["usage"] == {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


async def test_a_stream_that_ends_within_a_character_says_that_something_was_there(tmp_path: Path) -> None:
    async with open_installation(tmp_path) as installation:
        installation.service.answer = answer_with(pb.Reply(message="hi 🙂".encode()[:-1], tokens=2))
        chunks = await streamed_chunks(installation)
    contents = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
    assert contents == ["", "hi ", "\ufffd", None]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]


def answer_with(*replies: pb.Reply) -> Any:
    """Healthy and loaded, and these replies to every generation."""

    async def answer(stream: ServerStream, request: Any) -> None:
        if isinstance(request, pb.HealthMessage | pb.ModelOptions):
            await answer_hello(stream, request)
            return
        for reply in replies:
            await stream.send_message(reply)

    return answer


async def streamed_chunks(installation: Installation, **fields: object) -> list[dict[str, Any]]:
    response = await installation.chat(stream=True, **fields)
    events = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    assert events.pop() == "[DONE]"
    return [json.loads(event) for event in events]
