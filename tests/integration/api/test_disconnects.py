"""Clients that hang up at any moment: what they used is free again, and they leave no trace."""

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.amounts import amounts_to_run
from tests.integration.harness import (
    LONG_TINY,
    GatewayProcess,
    RawClient,
    chat_request,
    events_in,
    running_gateway,
    scripted_config,
    wait_for,
)

SLOTS: Final = 4
"""Of `tiny`: what llama-cpp gets unless said otherwise."""
ENDLESS: Final = chat_request(max_tokens=30000, ignore_eos=True)
AT_ONCE: Final = 16


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    """A gateway whose model `tiny` is loaded and can babble for ten seconds and more."""
    with running_gateway(tmp_path_factory.mktemp("tiny"), LONG_TINY) as gateway:
        assert gateway.chat().status_code == 200
        yield gateway


@pytest.mark.parametrize("hard", [False, True], ids=["fin", "rst"])
def test_r4_a_client_that_leaves_mid_stream_frees_its_slot(tiny: GatewayProcess, hard: bool) -> None:
    (pid,) = tiny.backend_pids()
    open_streams(tiny, SLOTS, hard=hard)
    wait_for(lambda: in_flight(tiny) == 0, "the leases to end")
    wait_for(lambda: every_slot_is_free(tiny, hard=hard), "the engine to stop generating")
    assert tiny.backend_pids() == [pid]


@pytest.mark.parametrize("disconnects", amounts_to_run(1000, quick=300, variable="DISCONNECTS"))
def test_r4_random_disconnects_leave_nothing(tiny: GatewayProcess, disconnects: int) -> None:
    (pid,) = tiny.backend_pids()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda seed: leave_somewhere(tiny, random.Random(seed)), range(disconnects)))

    wait_for(lambda: in_flight(tiny) == 0, "the leases to end")
    wait_for(lambda: tiny.metric('gateway_queue_length{model="tiny"}') == 0, "the queue to be empty")
    wait_for(lambda: every_slot_is_free(tiny), "the engine to stop generating")
    answer = tiny.chat()
    assert answer.status_code == 200
    assert answer.json()["usage"]["completion_tokens"] > 0
    assert tiny.backend_pids() == [pid]
    assert tiny.model()["in_flight"] == tiny.model()["queued"] == 0
    assert "Traceback" not in tiny.log
    assert '"level": "error"' not in tiny.log


def test_r4_a_client_that_leaves_while_it_waits_for_a_slot_leaves_no_trace(tmp_path: Path) -> None:
    log = tmp_path / "events"
    script = {"slots": 1, "tokens": 100_000, "token_interval": 0.01}
    with (
        running_gateway(tmp_path, scripted_config(script, log=log, model="parallel = 1")) as gateway,
        RawClient(gateway) as first,
    ):
        first.send(chat_request("scripted"))
        first.read_until(b"tok3 ")
        with RawClient(gateway) as second, RawClient(gateway) as third:
            second.send(chat_request("scripted"))
            third.send(chat_request("scripted", stream=False))
            wait_for(lambda: queue_length(gateway) == 2, "both to wait")
            second.reset()
        wait_for(lambda: queue_length(gateway) == 0, "the queue to be empty")
        first.read_until(b"tok300 ")  # the one with the slot has noticed nothing
        assert len(events_in(log, "PredictStream")) == 1

        first.socket.close()
        wait_for(lambda: events_in(log, "cancelled"), "the backend to be told")
        assert gateway.chat("scripted", max_tokens=1).json()["usage"]["completion_tokens"] == 1
        assert gateway.metric('gateway_in_flight{model="scripted"}') == 0
        assert [len(events_in(log, method)) for method in ("PredictStream", "Predict")] == [1, 1]


def test_r4_a_client_that_leaves_while_its_replica_refuses_leaves_no_trace(tmp_path: Path) -> None:
    """The backend says that others use all its slots, so the head of the queue asks again and again."""
    log = tmp_path / "events"
    with running_gateway(tmp_path, scripted_config({"refuse": "full"}, log=log)) as gateway:
        with RawClient(gateway) as client:
            client.send(chat_request("scripted"))
            wait_for(lambda: len(events_in(log, "PredictStream")) > 3, "it to be refused some times")
        wait_for(lambda: '"outcome": "cancelled"' in gateway.log, "the request to end")
        assert queue_length(gateway) == gateway.metric('gateway_in_flight{model="scripted"}') == 0
        assert gateway.metric_sum("gateway_picks_total") == len(events_in(log, "PredictStream"))
        assert "Traceback" not in gateway.log


def open_streams(gateway: GatewayProcess, count: int, *, hard: bool) -> None:
    """Opens streams that would take long, waits until all of them stream, and hangs up."""
    with ExitStack() as stack:
        clients = [stack.enter_context(RawClient(gateway)) for _ in range(count)]
        for client in clients:
            client.send(ENDLESS)
        for client in clients:
            client.read_until(b'"content":"')
        assert in_flight(gateway) == count
        for client in clients if hard else ():
            client.reset()


def every_slot_is_free(gateway: GatewayProcess, *, hard: bool = False) -> bool:
    """Whether the engine takes as many streams as it has slots without a refusal: it has a slot for each generation."""
    refusals = gateway.metric_sum("gateway_reroutes_total")
    open_streams(gateway, SLOTS, hard=hard)
    wait_for(lambda: in_flight(gateway) == 0, "the leases to end")
    return gateway.metric_sum("gateway_reroutes_total") == refusals


def leave_somewhere(gateway: GatewayProcess, rng: random.Random) -> None:
    """One client that hangs up in its request's head, in its body, right after it, or in the middle of the answer."""
    head_length = ENDLESS.index(b"\r\n\r\n") + 4
    with RawClient(gateway) as client:
        match rng.choice(("head", "body", "waiting", "streaming")):
            case "head":
                client.send(ENDLESS[: rng.randrange(head_length)])
            case "body":
                client.send(ENDLESS[: rng.randrange(head_length, len(ENDLESS))])
            case "waiting":
                client.send(ENDLESS)
            case "streaming":
                client.send(ENDLESS)
                client.read_until(b"data: ")
                for _ in range(rng.randrange(4)):
                    client.read_until(b"\n\n")
        if rng.random() < 0.5:
            client.reset()


def in_flight(gateway: GatewayProcess) -> float:
    return gateway.metric('gateway_in_flight{model="tiny"}')


def queue_length(gateway: GatewayProcess) -> float:
    return gateway.metric('gateway_queue_length{model="scripted"}')
