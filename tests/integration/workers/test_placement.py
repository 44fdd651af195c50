"""Models that make room for each other and change while they serve, with real llama.cpp on one machine."""

from pathlib import Path
from typing import Any

from tests.integration.fleet import DONE, Stream, in_background, stays
from tests.integration.harness import WAIT_SECONDS, GatewayProcess, running_gateway, scripted_config, wait_for

TWO_REPLICAS = """
[worker]
max_replicas_per_model = 2
"""
B = """
[[models]]
name = "b"
backend = "llama-cpp"
artifact = "builtin:tiny"
context_size = 2048
exclusive_group = "big"
"""
A = "scripted"
STAYS_SECONDS = 1.0
SERVED: dict[str, Any] = {"backend": "llama-cpp", "artifact": "builtin:tiny", "rollout": "surge", "min_replicas": 1}


def loaded(gateway: GatewayProcess) -> set[str]:
    """Models that have a process."""
    return {replica["model"] for replica in gateway.status()["replicas"] if replica["pid"] is not None}


def test_r17_exclusive_models_take_turns_and_one_that_streams_is_not_evicted(tmp_path: Path) -> None:
    """`b` waits while `a`, which is called `scripted`, is in the middle of an answer."""
    gate = tmp_path / "gate"
    script = {"tokens": 3, "hold_after_tokens": 1, "gate": str(gate)}
    more = "[routing]\nexpose_replica_header = true\n"
    config = scripted_config(script, model='exclusive_group = "big"', more=more) + B
    with running_gateway(tmp_path, config) as gateway:
        stream = Stream(gateway, A, tokens=3)
        waiting = in_background(lambda: gateway.chat("b", max_tokens=1))
        wait_for(lambda: gateway.model("b")["queued"] == 1, "the rival to wait")
        stays(lambda: loaded(gateway) == {A}, "nobody is evicted", STAYS_SECONDS)
        assert not stream.ended
        assert not waiting.done()
        gate.touch()
        assert stream.result()[-1] == DONE
        assert waiting.result(WAIT_SECONDS).status_code == 200
        assert loaded(gateway) == {"b"}
        assert gateway.chat(A, max_tokens=1).status_code == 200
        assert loaded(gateway) == {A}
        assert gateway.metric_sum("gateway_in_flight") == 0


def test_a_pinned_model_loads_on_demand_and_then_keeps_its_place(tmp_path: Path) -> None:
    model = 'exclusive_group = "big"\npinned = true'
    more = '[reconciler]\nscale_down_delay = "0s"\n[routing]\nload_wait = "1s"\n'
    with running_gateway(tmp_path, scripted_config({"tokens": 1}, model=model, more=more) + B) as gateway:
        assert loaded(gateway) == set()
        with gateway.client() as client:
            assert client.post(f"/api/models/{A}/load").status_code in {200, 202}
        wait_for(lambda: gateway.model(A)["ready"] == 1, "the pinned model to be ready")
        assert gateway.chat(A, max_tokens=1).status_code == 200

        def is_refused_for_room() -> bool:
            refused = gateway.chat("b", max_tokens=1)
            assert refused.status_code == 503, refused.text
            error = refused.json()["error"]
            # What could be evicted later would be named, although it has only just become ready.
            assert "in use" not in error["message"]
            return bool(error["code"] == "insufficient_capacity")

        wait_for(is_refused_for_room, "the planner to find no room for the rival")
        assert loaded(gateway) == {A}
        assert gateway.model(A)["spec"]["pinned"] is True


def test_a8_a_surge_serves_from_the_old_replica_until_the_new_one_is_ready(tmp_path: Path) -> None:
    with running_gateway(tmp_path, TWO_REPLICAS) as gateway, gateway.client() as client:
        assert client.put("/api/models/served", json={**SERVED, "context_size": 1024}).status_code == 201
        wait_for(lambda: gateway.model("served")["ready"] == 1, "the first revision to be ready")
        [old] = [each for each in gateway.status()["replicas"] if each["model"] == "served"]
        assert client.put("/api/models/served", json={**SERVED, "context_size": 2048}).status_code == 200
        answers = [gateway.chat("served", max_tokens=1)]

        def is_replaced() -> bool:
            answers.append(gateway.chat("served", max_tokens=1))
            [*replicas] = [each for each in gateway.status()["replicas"] if each["model"] == "served"]
            return [each["state"] for each in replicas] == ["ready"] and replicas[0]["id"] != old["id"]

        wait_for(is_replaced, "the new revision to serve alone")
        assert {answer.status_code for answer in answers} == {200}
