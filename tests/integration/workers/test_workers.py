"""Workers of further machines as a user has them: joining, who they are, approval, drain, leaving, their output."""

import signal
import ssl
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest
import trio
from grpclib import Status

from gateway.bridge import open_bridge
from gateway.domain.ids import BootId, NodeId
from gateway.domain.session import Hello
from gateway.transport import codec as wire
from gateway.transport.node_credentials import session_metadata
from tests.fakes.certificates import make_authority
from tests.fakes.raw_grpc import RawWorkerStream, play_worker
from tests.integration.fleet import (
    DONE,
    HELD,
    HELD_TOKENS,
    JOIN_TOKEN,
    ONCE,
    TINY,
    TINY_ONCE,
    TINY_TWICE,
    TWICE,
    Fleet,
    Stream,
    error_line,
    fleet_config,
    held_fleet_config,
    in_background,
    node_of,
    running_fleet,
    start_worker,
    stays,
    wait_joined,
)
from tests.integration.harness import WAIT_SECONDS, is_alive, running_gateway, scripted_config, silent_port, wait_for

HEARTBEAT_SECONDS: Final = 0.5
"""What `fleet_config` says."""
WRONG_TOKEN: Final = "wrong-0123456789abcdef"


@pytest.fixture(scope="module")
def shared_fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A gateway with nothing to run and one worker, `first`: for those who are to be refused."""
    with running_fleet(tmp_path_factory.mktemp("shared"), fleet_config(), "first") as fleet:
        yield fleet


# Joining


@pytest.mark.parametrize("by_file", [True, False], ids=["token-file", "variable"])
def test_a11_a_worker_joins_by_a_token_that_nobody_sees(tmp_path: Path, by_file: bool) -> None:
    file = tmp_path / "token"
    file.write_text(JOIN_TOKEN + "\n")
    config = fleet_config(TINY_ONCE, worker='labels = { tier = "far" }') + '[log]\nlevel = "debug"\n'
    with running_fleet(tmp_path, config) as fleet:
        args, env = (("--token-file", str(file)), {"GATEWAY_JOIN_TOKEN": ""}) if by_file else ((), {})
        worker = fleet.start_worker("far", *args, env=env)
        wait_joined(worker)
        fleet.wait_serving("far")
        assert node_of(fleet.gateway.chat()) == "far"
        node = fleet.node("far")
        assert (node["status"], node["approved"], node["labels"]["tier"]) == ("healthy", True, "far")
        assert node["capacity"]["ram_bytes"] > 0
        backend = worker.backend_pid()
        assert not [pid for pid in (worker.process.pid, backend) if JOIN_TOKEN in known_to_kernel(pid, "cmdline")]
        assert JOIN_TOKEN not in known_to_kernel(backend, "environ")
        assert JOIN_TOKEN not in worker.log + fleet.gateway.log
        kept = [path for path in (worker.folder / "data").rglob("*") if path.is_file() and path.suffix != ".gguf"]
        assert kept
        assert not [path for path in kept if JOIN_TOKEN.encode() in path.read_bytes()]


def known_to_kernel(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def test_a11_a_wrong_token_ends_the_worker_with_one_line(shared_fleet: Fleet) -> None:
    worker = shared_fleet.start_worker("stranger", env={"GATEWAY_JOIN_TOKEN": WRONG_TOKEN})
    assert worker.ended() == 1
    line = error_line(worker)
    assert shared_fleet.gateway.url in line
    assert "check the join token" in line
    assert WRONG_TOKEN not in worker.log + shared_fleet.gateway.log
    assert [node["name"] for node in shared_fleet.gateway.status()["nodes"]] == ["first"]


def test_a_gateway_that_takes_no_workers_says_what_it_lacks(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "gateway", TINY) as gateway:
        worker = start_worker(tmp_path / "far", "far", gateway.url, config=fleet_config())
        assert worker.ended() == 1
        assert "auth.join_token" in error_line(worker)


def test_a_worker_waits_for_a_gateway_that_is_not_up_yet(tmp_path: Path) -> None:
    with running_fleet(tmp_path, fleet_config()) as fleet:
        fleet.kill_gateway()
        worker = fleet.start_worker("far")
        wait_for(lambda: worker.log.count("worker.join_failed") > 1, "the worker to have tried twice")
        fleet.start_gateway_again()
        wait_joined(worker)
        assert fleet.node("far")["status"] == "healthy"


def test_the_name_of_a_node_that_is_there_is_refused(shared_fleet: Fleet) -> None:
    before = shared_fleet.node("first")["id"]
    worker = start_worker(
        shared_fleet.folder / "namesake", "first", shared_fleet.gateway.url, config=shared_fleet.config
    )
    assert worker.ended() == 1
    line = error_line(worker)
    assert "'first'" in line
    assert "another name" in line
    assert shared_fleet.node("first")["id"] == before
    assert shared_fleet.workers["first"].joins == 1


def test_a_folder_in_which_a_worker_runs_is_refused(shared_fleet: Fleet) -> None:
    worker = start_worker(
        shared_fleet.workers["first"].folder, "second", shared_fleet.gateway.url, config=shared_fleet.config
    )
    assert worker.ended() == 1
    assert "server.data_dir" in error_line(worker)
    assert shared_fleet.workers["first"].joins == 1


def test_a_dead_gateway_in_the_list_is_passed_over(shared_fleet: Fleet) -> None:
    with silent_port() as port:
        dead = f"http://127.0.0.1:{port}"
        worker = shared_fleet.add_worker("passer", join=f"{dead},{shared_fleet.gateway.url}")
    assert dead in worker.log
    assert shared_fleet.node("passer")["status"] == "healthy"
    worker.send_signal(signal.SIGTERM)
    assert worker.ended() == 0
    assert shared_fleet.command("nodes", "remove", "passer").returncode == 0


def test_a_gateway_with_a_worker_of_its_own_takes_others_besides(tmp_path: Path) -> None:
    own = 'embedded = true\nname = "own"'
    with running_gateway(tmp_path / "gateway", fleet_config(TINY_TWICE, worker=own)) as gateway:
        worker = start_worker(tmp_path / "far", "far", gateway.url, config=fleet_config())
        try:
            wait_joined(worker)
            wait_for(lambda: gateway.model()["ready"] == 2, "a replica on each")
            assert {node_of(gateway.chat()) for _ in range(4)} == {"own", "far"}
            assert len(gateway.backend_pids()) == len(worker.backend_pids()) == 1
            assert gateway.stop() == 0
            assert worker.backend_pids()  # whatever becomes of the gateway
        finally:
            worker.kill()


# Identity


def test_h10_a_worker_that_starts_again_is_the_node_that_it_was_under_another_name_too(tmp_path: Path) -> None:
    with running_fleet(tmp_path, fleet_config(TINY_ONCE), "far") as fleet:
        fleet.wait_serving("far")
        before = fleet.node("far")["id"]
        worker = fleet.workers["far"]
        worker.kill()
        renamed = start_worker(worker.folder, "farther", fleet.gateway.url, config=fleet.config)
        fleet.held.callback(renamed.kill)
        wait_joined(renamed)
        fleet.wait_serving("farther")
        assert [(node["id"], node["name"]) for node in fleet.gateway.status()["nodes"]] == [(before, "farther")]


def test_a11_a_credential_is_good_for_one_start_of_one_node(shared_fleet: Fleet) -> None:
    """Registered by hand, attached over real gRPC."""
    names, boots = ("hand-1", "hand-2"), (str(uuid.uuid4()), str(uuid.uuid4()))
    mine, others = (register(shared_fleet, name, boot) for name, boot in zip(names, boots, strict=True))
    good = metadata_of(mine["credential"], mine["node_id"], boots[0])
    assert attach(mine, {}) is Status.UNAUTHENTICATED
    assert attach(mine, metadata_of(mine["credential"], others["node_id"], boots[0])) is Status.UNAUTHENTICATED
    assert attach(mine, metadata_of(mine["credential"], mine["node_id"], boots[1])) is Status.UNAUTHENTICATED
    assert attach(mine, metadata_of(JOIN_TOKEN, mine["node_id"], boots[0])) is Status.UNAUTHENTICATED
    assert attach(mine, good, hello_of(others["node_id"], boots[1])) is Status.PERMISSION_DENIED
    assert attach(mine, good, hello_of(mine["node_id"], boots[1])) is Status.PERMISSION_DENIED
    assert {shared_fleet.node(name)["status"] for name in names} == {"offline"}  # none of it was a session
    assert attach(mine, good, hello_of(mine["node_id"], boots[0])) is Status.OK
    proof = {"node_id": mine["node_id"], "previous_boot_id": boots[0], "previous_credential": mine["credential"]}
    again = register(shared_fleet, names[0], str(uuid.uuid4()), **proof)
    assert again["node_id"] == mine["node_id"]
    assert attach(mine, good, hello_of(mine["node_id"], boots[0])) is Status.NOT_FOUND  # it has started again since
    for name in names:
        assert shared_fleet.command("nodes", "remove", name, "--force").returncode == 0


def register(fleet: Fleet, name: str, boot_id: str, **proof: str) -> dict[str, Any]:
    answer = httpx.post(
        f"{fleet.gateway.url}/api/node/register",
        json={"name": name, "boot_id": boot_id, **proof},
        headers={"authorization": f"Bearer {JOIN_TOKEN}"},
        timeout=WAIT_SECONDS,
    )
    assert answer.status_code == 200, answer.text
    document: dict[str, Any] = answer.json()
    return document


def metadata_of(credential: str, node_id: str, boot_id: str) -> dict[str, str]:
    return dict(session_metadata(credential, NodeId(node_id), BootId(boot_id)))


def hello_of(node_id: str, boot_id: str) -> Hello:
    return Hello(NodeId(node_id), "hand-1", BootId(boot_id))


def attach(registration: dict[str, Any], metadata: dict[str, str], hello: Hello | None = None) -> Status:
    """Says hello, if there is one, then ends its side; how the gateway ended the call."""

    async def play(stream: RawWorkerStream) -> None:
        if hello is not None:
            await stream.send_message(wire.hello_message(hello).SerializeToString())
            await stream.end()

    async def call() -> Status:
        async with open_bridge() as bridge:
            with trio.fail_after(30):
                port = int(registration["session_address"].rpartition(":")[2])
                status, _ = await play_worker(bridge, port, play, metadata)
        return status

    return trio.run(call)


def test_sessions_and_registration_are_encrypted_with_the_gateways_certificate(tmp_path: Path) -> None:
    authority, other = make_authority(tmp_path / "ca"), make_authority(tmp_path / "other")
    cert, key = authority.issue("127.0.0.1")
    config = fleet_config(TINY_ONCE, server=f'tls_cert = "{cert}"\ntls_key = "{key}"')
    with running_gateway(tmp_path / "gateway", config) as gateway:
        assert gateway.url.startswith("https://")
        trusting = [fleet_config(worker=f'tls_ca = "{each.cert}"') for each in (other, authority)]
        wrong, right = (
            start_worker(tmp_path / name, name, gateway.url, config=text)
            for name, text in zip(("wrong", "right"), trusting, strict=True)
        )
        try:
            wait_joined(right)
            trusted = ssl.create_default_context(cafile=str(authority.cert))
            with httpx.Client(base_url=gateway.url, verify=trusted, timeout=WAIT_SECONDS) as client:
                body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}
                assert node_of(client.post("/v1/chat/completions", json=body)) == "right"
                assert [node["name"] for node in client.get("/api/nodes").json()["nodes"]] == ["right"]
            line = wait_for(lambda: "".join(wrong.lines[:1]), "the other worker to say something")
            assert gateway.url in line
            assert "worker.tls_ca" in line
        finally:
            wrong.kill()
            right.kill()


# Approval, drain, removal


def test_a11_a_node_that_nobody_has_approved_gets_nothing(tmp_path: Path) -> None:
    config = fleet_config(TINY_ONCE, auth="auto_approve_nodes = false")
    with running_fleet(tmp_path, config, "far") as fleet:
        assert fleet.node("far")["status"] == "pending"
        waiting = in_background(fleet.gateway.chat)
        wait_for(lambda: fleet.gateway.model()["queued"] == 1, "the request to wait")
        stays(lambda: fleet.gateway.status()["replicas"] == [], "no replica", 4 * HEARTBEAT_SECONDS)
        assert fleet.workers["far"].backend_pids() == []
        approved = fleet.command("nodes", "approve", "far")
        assert (approved.returncode, approved.stdout) == (0, "far: healthy\n")
        assert node_of(waiting.result(WAIT_SECONDS)) == "far"


def test_r12_a_drained_node_finishes_what_it_has_and_gets_nothing_new(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_fleet(tmp_path, held_fleet_config(gate, TWICE), "one", "two") as fleet:
        fleet.wait_serving("one", "two", model=HELD)
        stream = Stream(fleet.gateway, HELD, tokens=HELD_TOKENS)
        drained, other = stream.node, ({"one", "two"} - {stream.node}).pop()
        pid = fleet.workers[drained].backend_pid()
        assert (
            httpx.post(f"{fleet.gateway.url}/api/nodes/{drained}/drain", timeout=WAIT_SECONDS).json()["status"]
            == "draining"
        )
        assert {node_of(fleet.gateway.chat(HELD, max_tokens=1)) for _ in range(4)} == {other}
        assert not stream.ended
        assert is_alive(pid)
        gate.touch()
        assert stream.result()[-1] == DONE
        wait_for(lambda: not is_alive(pid), "the drained replica's process to end")
        stays(lambda: fleet.workers[drained].backend_pids() == [], "nothing there", 2 * HEARTBEAT_SECONDS)
        assert fleet.workers[drained].process.poll() is None

        resumed = fleet.command("nodes", "resume", drained)
        assert (resumed.returncode, resumed.stdout) == (0, f"{drained}: healthy\n")
        fleet.wait_serving("one", "two", model=HELD)
        assert {node_of(fleet.gateway.chat(HELD, max_tokens=1)) for _ in range(4)} == {"one", "two"}


def test_a_node_is_removed_once_its_worker_is_gone(tmp_path: Path) -> None:
    with running_fleet(tmp_path, fleet_config(), "far") as fleet:
        refused = fleet.command("nodes", "remove", "far")
        assert refused.returncode == 1
        assert "Stop its worker first" in refused.stderr
        assert httpx.delete(f"{fleet.gateway.url}/api/nodes/far", timeout=WAIT_SECONDS).status_code == 409
        fleet.workers["far"].send_signal(signal.SIGTERM)
        assert fleet.workers["far"].ended() == 0
        fleet.wait_node("far", "offline")
        removed = fleet.command("nodes", "remove", "far")
        assert (removed.returncode, removed.stdout) == (0, "far: removed\n")
        wait_for(lambda: fleet.gateway.status()["nodes"] == [], "the node to be gone")
        unknown = fleet.command("nodes", "drain", "far")
        assert (unknown.returncode, "No node" in unknown.stderr) == (1, True)


# Leaving


def test_r13_a_worker_that_gets_sigterm_finishes_its_stream_and_leaves(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    with running_fleet(tmp_path, held_fleet_config(gate, TWICE), "one", "two") as fleet:
        fleet.wait_serving("one", "two", model=HELD)
        stream = Stream(fleet.gateway, HELD, tokens=HELD_TOKENS)
        leaving, other = fleet.workers[stream.node], ({"one", "two"} - {stream.node}).pop()
        pid = leaving.backend_pid()
        leaving.send_signal(signal.SIGTERM)
        fleet.wait_node(leaving.name, "draining")
        nodes = [node_of(fleet.gateway.chat(HELD, max_tokens=1)) for _ in range(4)]
        assert set(nodes) == {other}
        assert not stream.ended
        assert leaving.process.poll() is None
        gate.touch()
        events = stream.result()
        assert events[-1] == DONE
        assert not [event for event in events if '"error"' in event]
        assert leaving.ended() == 0
        assert not is_alive(pid)
        # H9: nothing that it said before revives it
        assert fleet.wait_node(leaving.name, "offline")
        stays(lambda: fleet.node(leaving.name)["status"] == "offline", "the node is offline", 6 * HEARTBEAT_SECONDS)
        assert fleet.gateway.metric('gateway_in_flight{model="scripted"}') == 0
        assert "Traceback" not in leaving.log + fleet.gateway.log


def test_h13_a_second_signal_ends_the_worker_at_once(tmp_path: Path) -> None:
    with running_fleet(tmp_path, held_fleet_config(tmp_path / "never", ONCE), "far") as fleet:
        fleet.wait_serving("far", model=HELD)
        stream = Stream(fleet.gateway, HELD, tokens=HELD_TOKENS)
        worker = fleet.workers["far"]
        pid = worker.backend_pid()
        worker.send_signal(signal.SIGTERM)
        wait_for(lambda: "worker.draining" in worker.log, "the drain to begin")
        worker.send_signal(signal.SIGTERM)
        assert worker.ended() == 128 + signal.SIGTERM
        wait_for(lambda: not is_alive(pid), "the backend to be gone")
        assert '"error"' in stream.result()[-1]


# Output


def test_the_output_of_a_replica_is_read_from_its_worker_as_it_comes(tmp_path: Path) -> None:
    script = {"stderr": "good morning", "farewell": "good night", "tokens": 1}
    config = fleet_config(scripted_config(script, model="min_replicas = 1"))
    with running_fleet(tmp_path, config, "far") as fleet:
        (replica_id,) = fleet.wait_serving("far", model="scripted").values()
        now = fleet.command("logs", "scripted")
        assert (now.returncode, now.stdout, now.stderr) == (0, "good morning\n", "")
        path = f"{fleet.gateway.url}/api/replicas/{replica_id}/logs"
        text = httpx.get(path, timeout=WAIT_SECONDS)
        assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", "good morning\n")

        following = fleet.start_command("logs", "-f", replica_id)
        assert following.stdout is not None
        assert in_background(following.stdout.readline).result(WAIT_SECONDS) == "good morning\n"
        with httpx.stream("GET", path, params={"follow": "true"}, timeout=WAIT_SECONDS) as events:
            assert events.headers["content-type"].startswith("text/event-stream")
            lines = (line for line in events.iter_lines() if line and not line.startswith(":"))
            assert next(lines) == 'data: {"lines":["good morning"],"skipped":0}'
            assert following.poll() is None
            assert fleet.command("nodes", "drain", "far").stdout == "far: draining\n"
            assert list(lines) == [
                'data: {"lines":["good night"],"skipped":0}',
                "event: end",
                'data: {"lines":[],"skipped":0}',
            ]
        assert following.communicate(timeout=WAIT_SECONDS) == ("good night\n", "")
        assert following.returncode == 0
        gone = fleet.command("logs", "scripted")
        assert (gone.returncode, "no replica" in gone.stderr) == (1, True)


def test_the_output_of_the_engine_is_read_from_its_worker(tmp_path: Path) -> None:
    with running_fleet(tmp_path, fleet_config(TINY_ONCE), "far") as fleet:
        fleet.wait_serving("far")
        said = fleet.command("logs", "tiny")
        assert said.returncode == 0
        port = next(iter(fleet.gateway.status()["replicas"]))["address"].rpartition(":")[2]
        assert f"listening on 127.0.0.1:{port}" in said.stdout
