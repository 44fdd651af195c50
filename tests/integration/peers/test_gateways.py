"""Two gateways and two workers over one PostgreSQL: whatever is asked, it does not matter which of them is asked.

The gateway that leads has a clock that is two minutes ahead, and the database's role gives statements and locks one
second, both all the time. Gateway `a` has the session of worker `one`, `b` that of `two`.
"""

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from gateway.worker.artifacts.download import REPORT_SECONDS
from tests.fakes.postgres_server import PostgresServer
from tests.integration.fleet import DONE, Stream, in_background, node_of
from tests.integration.gateways import (
    ANOTHER_CLOCK,
    SECRET,
    Gateways,
    Stopwatch,
    audit_trail,
    gateways_config,
    model_table,
    running_gateways,
    scripted_backend,
)
from tests.integration.harness import (
    FILES_WAIT,
    WAIT_SECONDS,
    GatewayProcess,
    events_in,
    loads_allowed,
    together,
    wait_for,
)

NAMES: Final = "ab"
WORKERS: Final = {"one": "ab", "two": "ba"}
AHEAD_SECONDS: Final = 120
SYNC_SECONDS: Final = 0.02
LOAD_SECONDS: Final = 10.0
WAITERS: Final = 20
"""Of the load that takes so long."""
ASKING_SECONDS: Final = 10.0
"""For a model whose load fails."""
FILE_BYTES: Final = 16 * 2**20
WARM: Final = "scripted"
HELD_TOKENS: Final = 6
"""Of `WARM`'s longest answers, which wait for `GATE` before the last one; `chat` asks for fewer."""
GATE: Final = "gate"
FIRST_GATE: Final = "first-gate"
LAST_GATE: Final = "last-gate"
FILE_GATES: Final = {FILE_BYTES // 4: FIRST_GATE, FILE_BYTES // 2: LAST_GATE}
"""For which gateway `a` waits at those positions of the file that it hands out."""
TINY: Final[dict[str, Any]] = {"backend": "llama-cpp", "artifact": "builtin:tiny"}
BACKGROUND_RATE: Final = 10
"""Statements of a gateway in a second besides those with which it tells the others of its requests."""


@pytest.fixture(scope="module")
def database(_postgres: PostgresServer) -> Iterator[str]:
    with _postgres.open_database() as url:
        yield _postgres.make_role(url, statement_timeout="1s", lock_timeout="1s")


@pytest.fixture(scope="module")
def trail(_postgres: PostgresServer, database: str) -> Callable[[], list[dict[str, Any]]]:
    return partial(audit_trail, _postgres, database)


@pytest.fixture(scope="module")
def fleet(database: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateways]:
    folder = tmp_path_factory.mktemp("gateways")
    config = gateways_config(database, models(folder), sync=f"{SYNC_SECONDS * 1000:g}ms")
    clock, files = (
        ANOTHER_CLOCK.format(seconds=AHEAD_SECONDS),
        FILES_WAIT.format(gates={held_at: str(folder / gate) for held_at, gate in FILE_GATES.items()}),
    )
    patches = {"a": clock + files}
    with running_gateways(folder, config, NAMES, WORKERS, patches=patches) as found:
        found.wait_serving("one", "two", model=WARM)
        yield found


def models(folder: Path) -> str:
    quick = {"tokens": 3}
    held = {"tokens": HELD_TOKENS, "hold_after_tokens": HELD_TOKENS - 1, "gate": str(folder / GATE)}
    data = bytes(range(256)) * (FILE_BYTES // 256)
    put_file(folder / "gateway-a" / "data" / "models" / "weights.gguf", data)
    return "".join(
        (
            scripted_backend("scripted", {**held, "stderr": "good morning"}),
            scripted_backend("slow", {**quick, "load_delay": LOAD_SECONDS}, folder / "slow"),
            scripted_backend("broken", {"load_fails": "no such tensor"}, folder / "broken"),
            model_table(WARM, "scripted", "parallel = 8\nmin_replicas = 2\nmax_replicas = 2"),
            model_table("slow", "slow", "parallel = 20"),
            model_table("broken", "broken"),
            model_table(
                "large", "scripted", f'sha256 = "{hashlib.sha256(data).hexdigest()}"', artifact="file:weights.gguf"
            ),
        )
    )


def put_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(data)


def both(fleet: Gateways) -> tuple[GatewayProcess, GatewayProcess]:
    return fleet.gateways["a"], fleet.gateways["b"]


def get(gateway: GatewayProcess, path: str) -> Any:
    answer = httpx.get(f"{gateway.url}{path}", timeout=WAIT_SECONDS)
    assert answer.status_code == 200, answer.text
    return answer.json()


# One fleet


def test_a_worker_that_joined_through_one_gateway_serves_the_requests_of_all(fleet: Gateways) -> None:
    assert fleet.holders() == {"one": "a", "two": "b"}
    assert fleet.leader() == "a"
    for gateway in both(fleet):
        assert nodes_reached(fleet, gateway) == {"one", "two"}
        assert [(node["name"], node["status"]) for node in get(gateway, "/api/nodes")["nodes"]] == [
            ("one", "healthy"),
            ("two", "healthy"),
        ]
        assert get(gateway, "/readyz")["status"] == "ready"
    first, second = (gateway.status() for gateway in both(fleet))
    assert {each["id"] for each in first["gateways"]} == {each["id"] for each in second["gateways"]}
    assert {each["url"] for each in first["gateways"]} == {each.url for each in both(fleet)}
    assert [(each["id"], each["state"]) for each in first["replicas"]] == [
        (each["id"], each["state"]) for each in second["replicas"]
    ]


def nodes_reached(fleet: Gateways, gateway: GatewayProcess) -> set[str]:
    """By two requests, of which the first is open until the second is over: it is not left to chance where they go."""
    gate = fleet.folder / GATE
    fleet.wait_idle(WARM)  # what the gateways still know of earlier requests would count, too
    stream = Stream(gateway, WARM, tokens=HELD_TOKENS)
    nodes = {stream.node, node_of(gateway.chat(WARM))}
    gate.touch()
    assert stream.result()[-1] == DONE
    gate.unlink()
    return nodes


def test_r12_a_node_is_drained_at_the_gateway_that_does_not_hold_it(fleet: Gateways) -> None:
    one, other = both(fleet)
    replicas = fleet.wait_serving("one", "two", model=WARM)
    assert fleet.command("b", "nodes", "drain", "one").stdout == "one: draining\n"
    try:
        fleet.wait_serving("two", model=WARM)
        assert {node_of(gateway.chat(WARM)) for gateway in (one, other) for _ in range(3)} == {"two"}
    finally:
        assert fleet.command("b", "nodes", "resume", "one").stdout == "one: healthy\n"
    again = fleet.wait_serving("one", "two", model=WARM)
    assert len(again.keys() & replicas.keys()) == 1


def test_the_output_of_a_replica_is_read_at_any_gateway(fleet: Gateways) -> None:
    for replica_id in fleet.wait_serving("one", "two", model=WARM):
        for name in NAMES:
            said = fleet.command(name, "logs", replica_id)
            assert (said.returncode, said.stdout) == (0, "good morning\n"), said.stderr


def test_a_decision_is_shown_by_any_gateway(fleet: Gateways) -> None:
    for asked, shown in (NAMES, reversed(NAMES)):
        answer = fleet.gateways[asked].chat(WARM)
        decision = get(fleet.gateways[shown], f"/api/decisions/{answer.headers['x-request-id']}")
        assert decision["model"] == WARM


def test_s7_the_progress_of_a_load_is_shown_by_any_gateway(fleet: Gateways) -> None:
    """The file is at gateway `a`, which stands still twice while it hands it out. The worker does not tell of what
    comes within `REPORT_SECONDS` after it has told of the file's length."""
    loading = in_background(lambda: fleet.gateways["b"].chat("large"))

    def shown(gateway: GatewayProcess, key: str) -> dict[str, Any]:
        status: dict[str, Any] = get(gateway, "/api/models/large/load-status")
        return status if status.get(key) else {}

    wait_for(partial(shown, fleet.gateways["b"], "bytes_total"), "the length to be told")
    time.sleep(REPORT_SECONDS)
    (fleet.folder / FIRST_GATE).touch()
    for gateway in both(fleet):
        status = wait_for(partial(shown, gateway, "bytes_done"), "the progress to be told")
        (node,) = [each["node"] for each in gateway.status()["replicas"] if each["model"] == "large"]
        assert (status["state"], status["node"], status["bytes_total"]) == ("fetching", node, FILE_BYTES)
        assert 0 < status["bytes_done"] <= FILE_BYTES
    (fleet.folder / LAST_GATE).touch()
    assert node_of(loading.result(WAIT_SECONDS)) == node


# Models


def test_m1_a_model_that_one_gateway_was_given_is_served_by_the_other(fleet: Gateways) -> None:
    one, other = both(fleet)
    for giver, server in ((one, other), (other, one)):
        assert httpx.put(f"{giver.url}/api/models/given", json=TINY, timeout=WAIT_SECONDS).status_code == 201
        watch = Stopwatch()
        watch.wait(partial(knows, server, "given"), "the other gateway knows the model")
        answer = server.chat("given")
        watch.say("it has served it")
        assert answer.status_code == 200, answer.text
        assert httpx.delete(f"{server.url}/api/models/given", timeout=WAIT_SECONDS).status_code == 200
        wait_for(partial(knows_no, giver, "given"), "it to be gone everywhere")
        assert giver.chat("given").json()["error"]["code"] == "model_not_found"
        wait_for(lambda: not processes_of(fleet, "given"), "its process to be gone")


def knows(gateway: GatewayProcess, model: str) -> bool:
    return model in {each["id"] for each in get(gateway, "/v1/models")["data"]}


def knows_no(gateway: GatewayProcess, model: str) -> bool:
    return not knows(gateway, model)


def processes_of(fleet: Gateways, model: str) -> list[int]:
    replicas = fleet.gateways["a"].status()["replicas"]
    return [each["pid"] for each in replicas if each["model"] == model and each["pid"]]


def test_m2_nothing_old_is_served_at_any_gateway_once_an_edit_is_known(fleet: Gateways) -> None:
    """Many ask at both without a pause while the model is edited at one."""
    one, other = both(fleet)
    url = f"{one.url}/api/models/edited"
    assert (
        httpx.put(url, json={**TINY, "context_size": 512, "min_replicas": 1}, timeout=WAIT_SECONDS).status_code == 201
    )
    old = replica_of(other.chat("edited"))
    answers: list[tuple[float, str]] = []
    is_over = False

    def ask(index: int) -> None:
        while not is_over:
            began = time.monotonic()
            answers.append((began, replica_of(both(fleet)[index % 2].chat("edited"))))

    asking = [in_background(partial(ask, index)) for index in range(4)]
    wait_for(lambda: len(answers) > 8, "some answers")
    edited = httpx.put(url, json={**TINY, "context_size": 1024, "min_replicas": 1}, timeout=WAIT_SECONDS)
    assert edited.status_code == 200
    watch, acknowledged = Stopwatch(), time.monotonic()
    watch.wait(lambda: all(revision(each) == edited.json()["revision"] for each in both(fleet)), "both know the edit")
    known = time.monotonic()
    wait_for(lambda: sum(began > known for began, _ in answers) >= 100, "a hundred answers")
    is_over = True
    for each in asking:
        each.result(WAIT_SECONDS)
    print(f"{sum(r == old for b, r in answers if b > acknowledged)} old answers after the edit")  # noqa: T201
    assert {replica for began, replica in answers if began < acknowledged} >= {old}
    assert old not in {replica for began, replica in answers if began > known}
    assert httpx.delete(url, timeout=WAIT_SECONDS).status_code == 200


def replica_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return str(answer.headers["x-gateway-replica"])


def revision(gateway: GatewayProcess) -> str:
    return str(gateway.model("edited")["revision"])


# Loads


@pytest.fixture(scope="module")
def slow_answers(fleet: Gateways) -> "list[Future[httpx.Response]]":
    """The waiters, under way while other tests run."""
    return [in_background(partial(both(fleet)[index % 2].chat, "slow")) for index in range(WAITERS)]


def test_l9_a_load_that_fails_is_not_tried_for_everybody_who_asks(
    fleet: Gateways, slow_answers: "list[Future[httpx.Response]]"
) -> None:
    """Ten a second at two gateways."""
    began, answers = time.monotonic(), list[httpx.Response]()
    while time.monotonic() < began + ASKING_SECONDS or len(answers) < 20:
        answers += together(2, lambda index: both(fleet)[index].chat("broken"))
        time.sleep(0.2)
    for answer in answers:
        assert answer.status_code == 503, answer.text
        assert answer.json()["error"]["code"] == "model_load_failed"
        assert "no such tensor" in answer.json()["error"]["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 30  # not two minutes off
    starts = len(events_in(fleet.folder / "broken", "LoadModel"))
    assert 1 <= starts <= loads_allowed(time.monotonic() - began)


def test_l1_l2_a_long_load_with_many_waiters_under_a_role_with_short_timeouts(
    fleet: Gateways, slow_answers: "list[Future[httpx.Response]]"
) -> None:
    assert Counter(answer.result(WAIT_SECONDS).status_code for answer in slow_answers) == {200: WAITERS}
    assert len(events_in(fleet.folder / "slow", "LoadModel")) == 1
    for gateway in both(fleet):
        assert not re.search(r"\b(57014|55P03)\b(?!-)|canceling statement|lock timeout", gateway.log)


# The registry


def test_a_warm_request_costs_no_statement_and_a_gateway_costs_a_bounded_number(fleet: Gateways) -> None:
    requests, other = 200, both(fleet)[1]
    began, before = time.monotonic(), other.statements()
    with other.client() as client:
        body = {"model": WARM, "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
        for _ in range(requests):
            assert client.post("/v1/chat/completions", json=body).status_code == 200
    spent, seconds = other.statements() - before, time.monotonic() - began
    print(f"{requests} requests in {seconds:.1f} s: {dict(spent)}")  # noqa: T201
    shown = spent.pop("exchange")
    assert shown <= seconds / SYNC_SECONDS + seconds + 2  # once a second it looks for others that have stopped
    assert spent.total() <= BACKGROUND_RATE * (seconds + 1)


def test_h11_a_gateway_whose_clock_is_wrong_changes_nothing(
    fleet: Gateways, trail: Callable[[], list[dict[str, Any]]]
) -> None:
    """It leads, and holds a session."""
    events = trail()
    nodes = {each["id"] for each in both(fleet)[1].status()["nodes"]}
    links = [event["detail"] for event in events if event["kind"] == "node.link" and event["subject"] in nodes]
    assert set(links) == {"offline -> healthy"}
    assert [event["at"] for event in events] == sorted(event["at"] for event in events)
    assert sum(event["kind"] == "gateway.leads" for event in events) == 1
    assert not [event for event in events if event["kind"] == "replica.broken"]
    shifted, right = (gateway.status() for gateway in both(fleet))
    for kind in ("nodes", "replicas"):
        ages = {each["id"]: each["age"] for each in right[kind]}
        assert all(
            abs(each["age"] - ages[each["id"]]) < AHEAD_SECONDS / 2 for each in shifted[kind] if each["id"] in ages
        )
    assert len(shifted["gateways"]) == len(right["gateways"]) == 2


def test_a_gateway_with_another_cluster_secret_does_not_start(fleet: Gateways) -> None:
    unknown_peer = fleet.start_gateway("stranger", config=fleet.config.replace(SECRET, f"{SECRET}-not"))
    del fleet.gateways["stranger"]
    assert unknown_peer.process.wait(WAIT_SECONDS) == 1
    wait_for(lambda: unknown_peer.lines and unknown_peer.lines[-1].startswith("gateway: "), "its last words")
    line = unknown_peer.lines[-1]
    assert "auth.cluster_secret" in line
    assert any(gateway.url in line for gateway in both(fleet))
    assert SECRET not in unknown_peer.log
    fleet.wait_whole()
