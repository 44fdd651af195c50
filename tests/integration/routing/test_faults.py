"""Several replicas of one model on one machine, and what can be wrong with one of them while the other serves."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import httpx

from tests.integration.fleet import in_background
from tests.integration.harness import (
    ROOT,
    WAIT_SECONDS,
    RawClient,
    chat_request,
    events_in,
    is_alive,
    together,
    wait_for,
)
from tests.integration.pool import ready, replica_of, running_pool, text_of, unload

PROBES_EACH_PICK: Final = 'probe_ttl = "0s"\nprobe_timeout = "1500ms"'
"""For those that a stopped process does not answer; whoever runs does so in time, however busy the machine is."""


def test_r1_two_replicas_share_sequential_calls_equally(tmp_path: Path) -> None:
    with running_pool(tmp_path, {"tokens": 1}) as gateway, gateway.client() as client:
        body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
        answers = [client.post("/v1/chat/completions", json=body) for _ in range(100)]
        assert Counter(map(replica_of, answers)) == dict.fromkeys(ready(gateway), 50)
        assert gateway.metric('gateway_picks_total{model="scripted",reason="first"}') == 100
        assert gateway.metric_sum("gateway_picks_total") == 100
        assert gateway.metric('gateway_probes_total{outcome="alive"}') >= 2  # more where a call takes a second
        assert gateway.metric_sum("gateway_probe_cache_hits_total") == 100


def test_r3_a_burst_is_spread_evenly(tmp_path: Path) -> None:
    """Nobody is answered before all are there."""
    gate = tmp_path / "gate"
    script = {"tokens": 1, "hold_after_tokens": 0, "gate": str(gate)}
    with running_pool(tmp_path, script, replicas=4, model="parallel = 16") as gateway:
        asking = in_background(lambda: together(64, lambda _: gateway.chat("scripted")))
        wait_for(lambda: len(events_in(tmp_path / "events", "Predict")) == 64, "all to be at a backend")
        gate.touch()
        answers = asking.result(WAIT_SECONDS)
        assert Counter(map(replica_of, answers)) == dict.fromkeys(ready(gateway), 16)
        assert gateway.metric_sum("gateway_in_flight") == 0


def test_h1_a_replica_that_hangs_fails_nobody_and_is_replaced(tmp_path: Path) -> None:
    with running_pool(tmp_path, {"tokens": 1}, routing=PROBES_EACH_PICK) as gateway:
        stopped, other = ready(gateway).values()
        os.kill(stopped["pid"], signal.SIGSTOP)

        def replaced() -> bool:
            assert replica_of(gateway.chat("scripted")) != stopped["id"]
            now = ready(gateway)
            return len(now) == 2 and stopped["id"] not in now

        wait_for(replaced, "another replica in place of the stopped one")
        assert other["id"] in ready(gateway)
        wait_for(lambda: not is_alive(stopped["pid"]), "the stopped process to be gone")
        assert gateway.metric('gateway_reroutes_total{cause="busy"}') >= 3
        assert gateway.metric('gateway_probes_total{outcome="busy"}') >= 3
        assert "it hangs" in gateway.log


def test_h1_a_replica_that_is_busy_with_a_call_stays_and_others_serve_meanwhile(tmp_path: Path) -> None:
    """Its Health is blocked behind the generation, as that of a backend with one thread."""
    gate = tmp_path / "gate"
    script = {"tokens": 4, "hold_after_tokens": 1, "gate": str(gate)}
    with (
        running_pool(tmp_path, script, model="parallel = 4", routing=PROBES_EACH_PICK) as gateway,
        RawClient(gateway) as slow,
    ):
        slow.send(chat_request("scripted"))
        slow.read_until(b"tok0 ")
        ((busy_id, busy),) = [(name, each) for name, each in ready(gateway).items() if each["in_flight"]]
        os.kill(busy["pid"], signal.SIGSTOP)
        try:
            for _ in range(6):
                assert replica_of(gateway.chat("scripted", max_tokens=1)) != busy_id
        finally:
            os.kill(busy["pid"], signal.SIGCONT)
        gate.touch()
        assert b"tok3 " in slow.read_until(b"[DONE]")
        assert ready(gateway)[busy_id]["pid"] == busy["pid"]
        assert len(events_in(tmp_path / "events", "LoadModel")) == 2


def test_h2_a_busy_replica_serves_when_it_is_alone(tmp_path: Path) -> None:
    with running_pool(tmp_path, {"tokens": 1}, replicas=1, routing=PROBES_EACH_PICK) as gateway:
        ((replica_id, only),) = ready(gateway).items()
        os.kill(only["pid"], signal.SIGSTOP)
        answers: list[httpx.Response] = []
        client = threading.Thread(target=lambda: answers.append(gateway.chat("scripted")))
        client.start()
        wait_for(lambda: gateway.metric('gateway_picks_total{model="scripted",reason="busy"}') == 1, "the second pick")
        os.kill(only["pid"], signal.SIGCONT)
        client.join()
        assert replica_of(answers[0]) == replica_id
        assert gateway.metric('gateway_probes_total{outcome="busy"}') == 1


def test_h4_a_client_that_leaves_a_shared_probe_harms_no_other(tmp_path: Path) -> None:
    routing = 'probe_ttl = "1ms"\nprobe_timeout = "30s"'
    with running_pool(tmp_path, {"tokens": 1}, replicas=1, model="parallel = 64", routing=routing) as gateway:
        ((_, only),) = ready(gateway).items()
        before = gateway.metric_sum("gateway_probes_total")
        os.kill(only["pid"], signal.SIGSTOP)
        with RawClient(gateway) as leader:
            leader.send(chat_request("scripted"))
            wait_for(lambda: gateway.metric_sum("gateway_in_flight") == 1, "the leader to wait for its probe")
            followers = threading.Thread(
                target=lambda: answers.extend(together(20, lambda _: gateway.chat("scripted")))
            )
            answers: list[httpx.Response] = []
            followers.start()
            wait_for(lambda: gateway.metric_sum("gateway_in_flight") == 21, "the followers to wait with it")
            leader.reset()
        wait_for(lambda: gateway.metric_sum("gateway_in_flight") == 20, "the leader's lease to end")
        os.kill(only["pid"], signal.SIGCONT)
        followers.join()
        assert [answer.status_code for answer in answers] == [200] * 20
        assert gateway.metric_sum("gateway_probes_total") == before + 1
        assert gateway.metric_sum("gateway_in_flight") == 0
        assert list(ready(gateway)) == [only["id"]]


def test_r14_a_backend_that_unloads_behind_our_back_costs_one_reroute(tmp_path: Path) -> None:
    with running_pool(tmp_path, {"tokens": 1, "check_loaded": True}) as gateway:
        forgetful, _other = ready(gateway).values()
        unload(forgetful)
        answers = [gateway.chat("scripted") for _ in range(4)]
        assert {answer.status_code for answer in answers} == {200}
        assert forgetful["id"] not in {replica_of(answer) for answer in answers}
        wait_for(lambda: forgetful["id"] not in ready(gateway) and len(ready(gateway)) == 2, "it to be replaced")
        assert gateway.metric('gateway_reroutes_total{cause="stale"}') == 1


FIRST_IS_ANOTHER: Final = f"""
[backends.scripted]
command = ["sh", "-c", '''
if mkdir "$FOLDER/first" 2>/dev/null; then SCRIPT='{json.dumps({"identity": "another", "split_utf8": True})}'; fi
export SCRIPT
exec {sys.executable} -m tests.fakes.scripted_backend "$@"
''', "sh"]
"""
"""The process that starts first has another model than it was told to load."""


def test_h5_a_backend_with_another_model_answers_nothing(tmp_path: Path) -> None:
    backend = FIRST_IS_ANOTHER.replace("$FOLDER", str(tmp_path))
    with running_pool(tmp_path, {"tokens": 1}, backend=backend) as gateway:
        answers = [gateway.chat("scripted") for _ in range(10)]
        assert {text_of(answer) for answer in answers} == {"tok0 "}
        assert len(set(map(replica_of, answers))) <= 2  # the right one, and who has replaced the wrong one
        assert gateway.metric('gateway_reroutes_total{cause="stale"}') >= 1


def test_h5_a_port_that_another_backend_took_over_gives_no_wrong_answer(tmp_path: Path) -> None:
    """The gateway sleeps while its backend dies and a stranger takes the port, and wakes up with a request at hand."""
    with running_pool(tmp_path, {"tokens": 1}) as gateway, gateway.client() as client, RawClient(gateway) as waiting:
        victim, other = ready(gateway).values()
        replicas_used = {replica_of(gateway.chat("scripted")) for _ in range(4)}
        assert replicas_used == {victim["id"], other["id"]}  # both have a connection
        gateway.send_signal(signal.SIGSTOP)
        waiting.send(chat_request("scripted", stream=False))
        os.kill(victim["pid"], signal.SIGKILL)
        with unknown_peer(victim["address"]):
            gateway.send_signal(signal.SIGCONT)
            assert b'"tok0 "' in waiting.read_until(b"}}")
            body = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}]}
            for _ in range(10):
                assert text_of(client.post("/v1/chat/completions", json=body)) == "tok0 "


@contextmanager
def unknown_peer(address: str) -> Iterator[None]:
    """A backend of somebody else, which speaks only é."""
    environment = {"SCRIPT": '{"split_utf8": true, "ignore_stdin": true}', "LOCALAI_GRPC_AUTH_TOKEN": "another"}
    command = [sys.executable, "-m", "tests.fakes.scripted_backend", "--addr", address]
    wait_for(lambda: not listens(address), "the port to be free")
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT), **environment})
    try:
        wait_for(lambda: listens(address), "the stranger to listen")
        yield
    finally:
        process.kill()
        process.wait()


def listens(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def test_a_killed_backend_costs_nobody_an_answer_while_another_serves(tmp_path: Path) -> None:
    with running_pool(tmp_path, {"tokens": 1}) as gateway:
        victim, other = ready(gateway).values()
        os.kill(victim["pid"], signal.SIGKILL)
        answers = [gateway.chat("scripted") for _ in range(20)]
        assert [answer.status_code for answer in answers] == [200] * 20
        wait_for(lambda: len(ready(gateway)) == 2, "a replica in place of the killed one")
        assert victim["id"] not in ready(gateway)
        assert other["id"] in ready(gateway)
