"""The first requests for a model: one load for all of them, one cause when it fails, nothing lost when they leave."""

import os
import signal
import time
from collections import Counter
from pathlib import Path

import httpx

from tests.integration.fleet import in_background
from tests.integration.harness import (
    WAIT_SECONDS,
    GatewayProcess,
    RawClient,
    chat_request,
    events_in,
    running_gateway,
    scripted_config,
    together,
    wait_for,
)

QUIET = '[reconciler]\ninterval = "10m"\n'
"""No round of the planner but those that something asks for."""
BURST = 100
ROUNDS = 5
ROUND_REQUESTS = 80
BODY = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}


def test_r10_l1_a_burst_of_first_requests_is_one_process_and_one_load(tmp_path: Path) -> None:
    log, gate = tmp_path / "events", tmp_path / "gate"
    script = {"hold_load": True, "gate": str(gate), "tokens": 2}
    with running_gateway(tmp_path, scripted_config(script, log=log, model="parallel = 4")) as gateway:
        asking = in_background(lambda: burst(gateway, "scripted"))
        wait_for(lambda: queue_length(gateway) == BURST, "all to wait")
        gate.touch()
        answers = asking.result(WAIT_SECONDS)
        assert [answer.status_code for answer in answers] == [200] * BURST
        assert {text_of(answer) for answer in answers} == {"tok0 tok1 "}
        assert len(events_in(log, "LoadModel")) == 1
        assert len(events_in(log, "start")) == 1
        assert len(events_in(log, "Predict")) == BURST


def test_r10_a_burst_loads_one_engine_and_warm_requests_cost_no_statement(tmp_path: Path) -> None:
    with running_gateway(tmp_path, QUIET) as gateway:
        answers = burst(gateway, "tiny")
        assert [answer.status_code for answer in answers] == [200] * BURST
        assert len(gateway.backend_pids()) == 1
        assert gateway.log.count('"verb": "start"') == 1

        with gateway.client() as client:
            rounds = [spent_by_requests(gateway, client) for _ in range(ROUNDS)]
        undisturbed = [spent for spent in rounds if not spent["note_capacity"]]
        assert undisturbed
        assert [spent.total() for spent in undisturbed] == [0] * len(undisturbed)
        served = ROUNDS * ROUND_REQUESTS + BURST
        assert gateway.metric('gateway_picks_total{model="tiny",reason="first"}') == served


def spent_by_requests(gateway: GatewayProcess, client: httpx.Client) -> Counter[str]:
    """Statements by method beside a round of warm requests. Once in a while a worker notes that its machine has more or
    less free memory than before, whoever uses it."""
    before = settled_statements(gateway)
    for _ in range(ROUND_REQUESTS):
        assert client.post("/v1/chat/completions", json={"model": "tiny", **BODY}).status_code == 200
    return gateway.statements() - before


def test_l10_l22_a_failed_load_answers_all_waiters_with_one_cause(tmp_path: Path) -> None:
    log, gate = tmp_path / "events", tmp_path / "gate"
    script = {"hold_load": True, "gate": str(gate), "load_exits": 7, "stderr": "out of luck: weights.bin is no model"}
    with running_gateway(tmp_path, scripted_config(script, log=log)) as gateway:
        asking = in_background(lambda: together(20, lambda _: gateway.chat("scripted")))
        wait_for(lambda: queue_length(gateway) == 20, "all to wait")
        gate.touch()
        answers = asking.result(WAIT_SECONDS)
        assert {(answer.status_code, code_of(answer)) for answer in answers} == {(503, "model_load_failed")}
        causes = {message_of(answer) for answer in answers}
        assert len(causes) == 1
        assert "code 7" in causes.copy().pop()
        assert "out of luck: weights.bin is no model" in causes.copy().pop()
        assert all(1 <= int(answer.headers["retry-after"]) <= 10 for answer in answers)

        again = gateway.chat("scripted")  # l9: while the model is left alone, the answer comes without a load
        assert (again.status_code, code_of(again), message_of(again)) == (503, "model_load_failed", *causes)
        assert int(again.headers["retry-after"]) >= 1
        assert gateway.model("scripted")["status"] == "load_failed"
        assert len(events_in(log, "LoadModel")) == 1
        assert len(events_in(log, "start")) == 1


def test_l20_a_load_that_says_it_failed_is_failed(tmp_path: Path) -> None:
    log = tmp_path / "events"
    with running_gateway(tmp_path, scripted_config({"load_fails": "no such quantisation"}, log=log)) as gateway:
        answer = gateway.chat("scripted")
        assert (answer.status_code, code_of(answer)) == (503, "model_load_failed")
        assert "no such quantisation" in message_of(answer)
        assert events_in(log, "Predict") == []
        wait_for(lambda: not gateway.backend_pids(), "the process of the failed load to be gone")  # l8


def test_l11_a_slow_load_outlives_the_wait_of_a_request(tmp_path: Path) -> None:
    log, gate = tmp_path / "events", tmp_path / "gate"
    script = {"hold_load": True, "gate": str(gate)}
    more = '[routing]\nload_wait = "500ms"\n'
    with running_gateway(tmp_path, scripted_config(script, log=log, more=more)) as gateway:
        first = gateway.chat("scripted")
        assert (first.status_code, code_of(first)) == (503, "model_loading")
        wait_for(lambda: events_in(log, "LoadModel"), "the load to begin")
        second = gateway.chat("scripted")
        assert (second.status_code, code_of(second)) == (503, "model_loading")
        assert int(second.headers["retry-after"]) >= 1
        assert second.json()["loading"] == {
            "model": "scripted",
            "state": "loading",
            "node": gateway.status()["nodes"][0]["name"],
        }
        gate.touch()
        wait_for(lambda: gateway.model("scripted")["ready"] == 1, "the load to end well")
        assert gateway.chat("scripted").status_code == 200
        assert len(events_in(log, "LoadModel")) == 1


def test_l17_l18_min_replicas_needs_no_request(tmp_path: Path) -> None:
    log = tmp_path / "events"
    with running_gateway(tmp_path, scripted_config({}, log=log, model="min_replicas = 1")) as gateway:
        (first,) = wait_for(lambda: ready_pids(gateway), "the replica to be ready")
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: ready_pids(gateway) not in ([], [first]), "another one in its place")
        assert gateway.metric_sum("gateway_picks_total") == 0
        assert len(events_in(log, "LoadModel")) == 2


def test_l4_clients_that_leave_do_not_end_the_load(tmp_path: Path) -> None:
    log, gate = tmp_path / "events", tmp_path / "gate"
    script = {"hold_load": True, "gate": str(gate)}
    with running_gateway(tmp_path, scripted_config(script, log=log)) as gateway:
        clients = [RawClient(gateway) for _ in range(5)]
        for index, client in enumerate(clients):
            client.send(chat_request("scripted", stream=index % 2 == 0))
        wait_for(lambda: queue_length(gateway) == len(clients), "all to wait")
        wait_for(lambda: events_in(log, "LoadModel"), "the load to begin")  # Nobody loads for clients that have left.
        for index, client in enumerate(clients):
            client.reset() if index % 2 else client.socket.close()
        wait_for(lambda: queue_length(gateway) == 0, "the queue to be empty")
        assert gateway.metric('gateway_in_flight{model="scripted"}') == 0

        gate.touch()
        wait_for(lambda: gateway.model("scripted")["ready"] == 1, "the load to end well")
        assert gateway.chat("scripted").status_code == 200
        assert len(events_in(log, "LoadModel")) == 1
        assert len(events_in(log, "Predict")) == 1
        assert events_in(log, "PredictStream") == []
        assert gateway.metric('gateway_in_flight{model="scripted"}') == 0


def burst(gateway: GatewayProcess, model: str) -> list[httpx.Response]:
    """Many requests at the same time, each on a connection of its own."""
    with gateway.client(timeout=WAIT_SECONDS) as client:
        return together(BURST, lambda _: client.post("/v1/chat/completions", json={"model": model, **BODY}))


def settled_statements(gateway: GatewayProcess) -> Counter[str]:
    """The registry's statements so far, once what the load has set going is written down."""
    last = Counter[str]()

    def unchanged() -> bool:
        nonlocal last
        time.sleep(0.3)
        last, before = gateway.statements(), last
        return last == before and last.total() > 0

    wait_for(unchanged, "the registry to be left alone")
    return last


def queue_length(gateway: GatewayProcess) -> float:
    return gateway.metric('gateway_queue_length{model="scripted"}')


def ready_pids(gateway: GatewayProcess) -> list[int]:
    return [replica["pid"] for replica in gateway.status()["replicas"] if replica["state"] == "ready"]


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def message_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])
