"""Workers that are killed, that stand still, that can't be reached, and gateways that are killed over them."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from tests.integration.fleet import (
    DONE,
    HELD,
    HELD_TOKENS,
    TINY_ONCE,
    TINY_TWICE,
    TWICE,
    Fleet,
    Stream,
    fleet_config,
    held_fleet_config,
    in_background,
    node_of,
    running_fleet,
    wait_joined,
)
from tests.integration.harness import WAIT_SECONDS, events_in, is_alive, scripted_config, wait_for
from tests.programs import lacks_rights

LOST_SECONDS: Final = 60.0
"""For what a vanished machine had to be lost, and to be done elsewhere; 20 are usual."""
PATIENT: Final = 'heartbeat = "500ms"\nstale_after = "1h"'
"""A node is never given up for its silence: what makes its replicas go is that its session has ended."""
QUICK: Final = 'heartbeat = "300ms"\nstale_after = "3s"\nmisses = 3'
"""A node that says nothing is unhealthy after three seconds and offline after twelve."""
SLOW_TOKENS: Final = 100_000
SLOW: Final = {"tokens": SLOW_TOKENS, "token_interval": 0.05, "endless": True}
"""A stream that goes on until it is told to end."""


# Killed workers


def test_h13_a_killed_worker_takes_its_backends_along_and_the_other_serves(tmp_path: Path) -> None:
    config = held_fleet_config(tmp_path / "never", TWICE, health=PATIENT)
    with running_fleet(tmp_path, config, "one", "two") as fleet:
        replicas = fleet.wait_serving("one", "two", model=HELD)
        stream = Stream(fleet.gateway, HELD, tokens=HELD_TOKENS)
        victim, other = fleet.workers[stream.node], ({"one", "two"} - {stream.node}).pop()
        node_id, pid = fleet.node(victim.name)["id"], victim.backend_pid()
        victim.kill()
        killed_at = time.monotonic()

        answers = [fleet.gateway.chat(HELD, max_tokens=1) for _ in range(3)]  # also while nobody knows of it yet
        wait_for(lambda: replicas[victim.name] not in fleet.candidates(HELD), "it to be out")
        print(f"out of routing after {time.monotonic() - killed_at:.2f} s")  # noqa: T201
        wait_for(lambda: not is_alive(pid), "its backend to be gone")
        assert {node_of(answer) for answer in answers} == {other}
        assert code_of(stream.result()[-1]) == "backend_error"
        assert DONE not in stream.events
        assert fleet.gateway.metric('gateway_in_flight{model="scripted"}') == 0

        # L17, H10: the same node with what it has to have, and nobody has done anything
        fleet.add_worker(victim.name)
        again = fleet.wait_serving("one", "two", model=HELD)
        assert fleet.node(victim.name)["id"] == node_id
        assert again[other] == replicas[other]
        assert again[victim.name] != replicas[victim.name]
        assert {node_of(fleet.gateway.chat(HELD, max_tokens=1)) for _ in range(4)} == {"one", "two"}


def code_of(event: str) -> str:
    code: str = json.loads(event.removeprefix("data: "))["error"]["code"]
    return code


def test_m7_a_request_without_a_byte_is_rerouted_when_its_worker_is_killed(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    config = held_fleet_config(gate, TWICE, health=PATIENT)
    with running_fleet(tmp_path, config, "one", "two") as fleet:
        replicas = fleet.wait_serving("one", "two", model=HELD)
        # The gateway has a connection to each: a call on its way to a new one would be refused instead of lost.
        assert {node_of(fleet.gateway.chat(HELD, max_tokens=1)) for _ in range(4)} == {"one", "two"}
        answer = in_background(lambda: fleet.gateway.chat(HELD, max_tokens=HELD_TOKENS))
        name = wait_for(lambda: busy_node(fleet), "one of them to have it")
        fleet.workers[name].kill()
        assert not answer.done()
        gate.touch()
        assert node_of(answer.result(WAIT_SECONDS)) == ({"one", "two"} - {name}).pop()
        assert answer.result().json()["usage"]["completion_tokens"] == HELD_TOKENS
        assert fleet.gateway.metric('gateway_reroutes_total{cause="lost"}') == 1
        wait_for(lambda: replicas[name] not in fleet.candidates(HELD), "it to be out")


def busy_node(fleet: Fleet) -> str:
    """The node whose replica has a request; empty if none has."""
    return next((each["node"] for each in fleet.gateway.status()["replicas"] if each["in_flight"]), "")


def test_l17_a_request_waits_for_the_only_worker_to_come_back(tmp_path: Path) -> None:
    with running_fleet(tmp_path, fleet_config(TINY_ONCE, health=PATIENT), "far") as fleet:
        (before,) = fleet.wait_serving("far").values()
        fleet.workers["far"].kill()
        wait_for(lambda: not fleet.candidates(), "it to be out")
        answer = in_background(fleet.gateway.chat)
        wait_for(lambda: fleet.gateway.model()["queued"] == 1, "the request to wait")
        fleet.start_worker("far")
        assert node_of(answer.result(WAIT_SECONDS)) == "far"
        (after,) = fleet.wait_serving("far").values()
        assert after != before


def test_l3_a_load_is_taken_over_when_its_worker_is_killed(tmp_path: Path) -> None:
    log, gate = tmp_path / "events", tmp_path / "gate"
    config = fleet_config(scripted_config({"hold_load": True, "gate": str(gate), "tokens": 1}, log=log))
    with running_fleet(tmp_path, config, "one", "two") as fleet:
        answer = in_background(lambda: fleet.gateway.chat("scripted"))
        wait_for(lambda: events_in(log, "LoadModel"), "the load to begin")
        name = next(name for name, worker in fleet.workers.items() if worker.backend_pids())
        fleet.workers[name].kill()
        gate.touch()
        assert node_of(answer.result(WAIT_SECONDS)) == ({"one", "two"} - {name}).pop()
        assert len(events_in(log, "LoadModel")) == 2


# A worker that stands still


def test_h12_a_worker_that_stands_still_costs_no_stream_and_no_replica(tmp_path: Path) -> None:
    log, gate = tmp_path / "events", tmp_path / "gate"
    script = {**SLOW, "gate": str(gate)}
    config = fleet_config(scripted_config(script, log=log, model="min_replicas = 1"), health=QUICK)
    with running_fleet(tmp_path, config, "far") as fleet:
        (replica_id,) = fleet.wait_serving("far", model="scripted").values()
        worker = fleet.workers["far"]
        node_id, pid = fleet.node("far")["id"], worker.backend_pid()
        stream = Stream(fleet.gateway, "scripted", tokens=SLOW_TOKENS)
        worker.send_signal(signal.SIGSTOP)
        fleet.wait_node("far", "unhealthy")
        assert fleet.candidates("scripted") == {}
        begun = len(stream.events)
        wait_for(lambda: len(stream.events) > begun + 10, "the stream to go on")
        assert not stream.ended
        kept = found(fleet, replica_id)
        assert (kept["state"], kept["desired"], kept["pid"]) == ("ready", "run", pid)

        worker.send_signal(signal.SIGCONT)
        fleet.wait_node("far", "healthy")
        assert fleet.wait_serving("far", model="scripted") == {"far": replica_id}
        gate.touch()
        events = stream.result()
        assert events[-1] == DONE
        said = re.findall(r"tok(\d+) ", "".join(events))
        assert said == [str(number) for number in range(len(said))]
        assert len(said) > begun
        assert node_of(fleet.gateway.chat("scripted", max_tokens=1)) == "far"
        assert (fleet.node("far")["id"], worker.backend_pid()) == (node_id, pid)
        assert [event["pid"] for event in events_in(log, "start")] == [pid]
        assert fleet.gateway.metric('gateway_in_flight{model="scripted"}') == 0
        assert worker.process.poll() is None


def found(fleet: Fleet, replica_id: str) -> dict[str, Any]:
    replica = fleet.replica(replica_id)
    assert replica is not None
    return replica


# Killed gateways


def test_h10_a_gateway_that_was_killed_finds_its_fleet_again(tmp_path: Path) -> None:
    with running_fleet(tmp_path, fleet_config(TINY_TWICE), "one", "two") as fleet:
        replicas = fleet.wait_serving("one", "two")
        pids = {name: worker.backend_pid() for name, worker in fleet.workers.items()}
        nodes = {name: fleet.node(name)["id"] for name in pids}
        fleet.kill_gateway()
        fleet.start_gateway_again()
        answer = fleet.gateway.chat()
        assert answer.headers["x-gateway-replica"] == replicas[node_of(answer)]
        for worker in fleet.workers.values():
            wait_joined(worker, times=2)
        assert fleet.wait_serving("one", "two") == replicas
        assert {node_of(fleet.gateway.chat()) for _ in range(4)} == {"one", "two"}
        assert {name: worker.backend_pid() for name, worker in fleet.workers.items()} == pids
        assert {name: fleet.node(name)["id"] for name in nodes} == nodes
        assert "control.planned" not in fleet.gateway.log  # nothing was to be changed


# Workers that can't be reached


def test_a_worker_that_advertises_an_unreachable_host_is_named_as_the_cause(tmp_path: Path) -> None:
    """Its backends listen on one loopback address and are looked for on another, where nobody listens."""
    config = fleet_config(TINY_ONCE, worker='bind = "127.0.0.1"\nadvertise = "127.0.0.9"')
    with running_fleet(tmp_path, config, "far") as fleet:
        answer = fleet.gateway.chat()
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "model_load_failed"
        assert "worker.advertise" in answer.json()["error"]["message"]
        assert "127.0.0.9" in answer.json()["error"]["message"]
        assert "worker.advertise" in fleet.gateway.model()["error"]
        assert fleet.gateway.metric_sum("gateway_picks_total") == 0  # no request was what found it out


# A network of its own

ADMIN_KEY: Final = "sk-admin-0123456789abcdef"


@dataclass(frozen=True)
class Network:
    """A namespace whose only way out is a pair of virtual cards; of a name and addresses of this process's own."""

    number: int = field(default_factory=count(os.getpid() * 10).__next__)
    """Differs from test to test, because the kernel removes the cards of a deleted namespace some time later."""

    @property
    def name(self) -> str:
        return f"gateway-test-{self.number}"

    @property
    def card(self) -> str:
        return f"gwt{self.number}"

    @property
    def peer(self) -> str:
        return f"gwt{self.number}p"

    @property
    def hosts(self) -> str:
        """Of the range that is kept for measurements (RFC 2544)."""
        return f"198.18.{self.number % 256}"

    @property
    def gateway_host(self) -> str:
        return f"{self.hosts}.1"

    @property
    def worker_host(self) -> str:
        return f"{self.hosts}.2"

    def make(self) -> None:
        ip("link", "add", self.card, "type", "veth", "peer", "name", self.peer, "netns", self.name)
        ip("addr", "add", f"{self.gateway_host}/30", "dev", self.card)
        ip("link", "set", self.card, "up")
        ip("-n", self.name, "addr", "add", f"{self.worker_host}/30", "dev", self.peer)
        ip("-n", self.name, "link", "set", self.peer, "up")
        ip("-n", self.name, "link", "set", "lo", "up")

    @contextmanager
    def kept_here(self) -> Iterator[None]:
        """While the card is down the route over it is gone, and packets would go to whoever is the default gateway,
        which may answer for anybody."""
        route = ("unreachable", f"{self.hosts}.0/30", "metric", "4096")
        ip("route", "add", *route)
        try:
            yield
        finally:
            ip("route", "delete", *route)

    def cut(self) -> None:
        ip("link", "set", self.card, "down")

    def mend(self) -> None:
        ip("link", "set", self.card, "up")


def ip(*arguments: str) -> None:
    """Skips the test where it may not be done."""
    try:
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        lacks_rights(f"ip {' '.join(arguments)}: {error.stderr.strip()}")


@contextmanager
def network() -> Iterator[Network]:
    made = Network()
    ip("netns", "add", made.name)
    try:
        made.make()
        with made.kept_here():
            yield made
    finally:
        ip("netns", "delete", made.name)


@pytest.mark.needs_programs("ip")
def test_h12_a_worker_on_a_network_that_was_cut_is_back_with_what_it_had(tmp_path: Path) -> None:
    auth = f'api_keys = [{{ name = "boss", key = "{ADMIN_KEY}", role = "admin" }}]'
    with ExitStack() as held:
        net = held.enter_context(network())
        config = fleet_config(TINY_ONCE, server=f'host = "{net.gateway_host}"', auth=auth, health=QUICK)
        fleet = held.enter_context(running_fleet(tmp_path, config))
        client = held.enter_context(fleet.gateway.client(ADMIN_KEY, timeout=WAIT_SECONDS))
        worker = fleet.start_worker("far", within=("ip", "netns", "exec", net.name))
        wait_joined(worker)
        assert node_of(chat(client)) == "far"
        before = the_replica(client)
        assert before["address"].startswith(f"{net.worker_host}:")  # the way to the gateway told it
        net.cut()
        wait_for(lambda: node_status(client) == "unhealthy", "the node to be missed")
        waiting = in_background(lambda: chat(client))
        net.mend()
        wait_for(lambda: node_status(client) == "healthy", "the node to be back")
        assert node_of(waiting.result(WAIT_SECONDS)) == "far"
        after = the_replica(client)
        assert [(each["id"], each["pid"]) for each in (before, after)] == [(before["id"], worker.backend_pid())] * 2


def test_requests_that_a_vanished_machine_had_are_lost_and_not_kept(tmp_path: Path) -> None:
    """The link is cut for good: nothing comes, no end of a connection either."""
    auth = f'api_keys = [{{ name = "boss", key = "{ADMIN_KEY}", role = "admin" }}]'
    script = scripted_config({"tokens": 160, "token_interval": 0.05}, model="min_replicas = 2\nparallel = 8")
    with ExitStack() as held:
        net = held.enter_context(network())
        server = f'host = "{net.gateway_host}"'
        routing = 'expose_replica_header = true\nprobe_timeout = "400ms"'
        config = fleet_config(script, server=server, auth=auth, routing=routing, health='heartbeat = "500ms"')
        fleet = held.enter_context(running_fleet(tmp_path, config, "near"))
        client = held.enter_context(fleet.gateway.client(ADMIN_KEY, timeout=60.0))
        wait_joined(fleet.start_worker("far", within=("ip", "netns", "exec", net.name)))
        wait_for(lambda: model_of(client)["ready"] == 2, "a replica on either machine")
        streams = [in_background(lambda: chat(client, "scripted", stream=True, max_tokens=200)) for _ in range(4)]
        wholes = [in_background(lambda: chat(client, "scripted", max_tokens=200)) for _ in range(4)]
        wait_for(lambda: model_of(client)["in_flight"] == 8, "all of them to run")
        net.cut()
        assert {node_of(whole.result(LOST_SECONDS)) for whole in wholes} == {"near"}
        ends = [(node_of(each), last_event(each)) for each in (stream.result(LOST_SECONDS) for stream in streams)]
        lost = [code_of(end) for node, end in ends if node == "far"]
        assert lost == ["backend_error"] * len(lost)
        assert {end for node, end in ends if node == "near"} <= {DONE}
        assert len(lost) + lost_without_a_byte(client) == 4  # it had half of them
        assert model_of(client)["in_flight"] == 0


def lost_without_a_byte(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return sum(
        int(float(line.split()[-1])) for line in lines if line.startswith('gateway_reroutes_total{cause="lost"}')
    )


def last_event(stream: httpx.Response) -> str:
    return [line for line in stream.text.splitlines() if line][-1]


def model_of(client: httpx.Client) -> dict[str, Any]:
    return dict(client.get("/api/models/scripted").json())


def chat(client: httpx.Client, model: str = "tiny", **fields: object) -> httpx.Response:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, **fields}
    return client.post("/v1/chat/completions", json=body)


def the_replica(client: httpx.Client) -> dict[str, Any]:
    (replica,) = client.get("/api/replicas").json()["replicas"]
    return dict(replica)


def node_status(client: httpx.Client) -> str:
    (node,) = client.get("/api/nodes").json()["nodes"]
    return str(node["status"])
