"""A fleet of three gateways and three workers under a steady load, of which one part after the other dies or stops.

What any test of this module harms it mends: the fleet is whole again at its end. Run with `-s` it tells how long each
recovery took.
"""

import signal
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import httpx
import pytest

from tests.fakes.postgres_server import PostgresServer
from tests.integration.fleet import in_background
from tests.integration.gateways import (
    TTL_SECONDS,
    Gateways,
    Stopwatch,
    assert_one_leader_at_a_time,
    audit_trail,
    gateways_config,
    model_table,
    running_gateways,
    scripted_backend,
)
from tests.integration.harness import WAIT_SECONDS, GatewayProcess, events_in, wait_for
from tests.integration.steady_load import End, SteadyLoad, sampled

GATEWAYS: Final = "abc"
WORKERS: Final = {"one": "abc", "two": "bca", "three": "cab"}
"""And the gateways that each knows, in the order in which it asks them."""
SCRIPT: Final = {"echo": True, "tokens": 1000, "token_interval": 0.02, "first_token_delay": 0.05, "slots": 4}
MODEL: Final = "scripted"
MODELS: Final = model_table(MODEL, MODEL, "parallel = 4\nmin_replicas = 3\nmax_replicas = 3")
DATABASE_AWAY_SECONDS: Final = 20.0


@dataclass
class Whole:
    """The fleet, and what is not to change of it."""

    fleet: Gateways
    server: PostgresServer
    url: str
    role_url: str
    """The same for a role of its own, which the gateway `c` has."""
    log: Path

    def calls(self) -> Counter[str]:
        """How often backends took a request, by its id."""
        found = [*events_in(self.log, "Predict"), *events_in(self.log, "PredictStream")]
        return Counter(event["correlation_id"] for event in found if event["refused"] is None)

    def starts(self) -> int:
        return len(events_in(self.log, "start"))

    def assert_no_duplicate(self) -> None:
        for gateway in self.fleet.living.values():
            replicas = gateway.status()["replicas"]
            nodes = [each["node"] for each in replicas if (each["model"], each["desired"]) == (MODEL, "run")]
            assert len(set(nodes)) == len(nodes), replicas

    def in_flight(self, replica_id: str) -> int:
        replicas = self.fleet.gateways["a"].status()["replicas"]
        return next((each["in_flight"] for each in replicas if each["id"] == replica_id), 0)

    def readiness(self) -> set[tuple[int, str, bool]]:
        return {readiness(gateway) for gateway in self.fleet.gateways.values()}

    def assert_whole(self) -> dict[str, str]:
        """Nothing is left of a fault; the replicas, their nodes by id."""
        self.fleet.wait_whole()
        replicas = self.fleet.wait_serving(*WORKERS, model=MODEL)
        self.fleet.wait_idle(MODEL)
        self.assert_no_duplicate()
        assert_one_leader_at_a_time(audit_trail(self.server, self.url))
        return replicas


@pytest.fixture(scope="module")
def whole(_postgres: PostgresServer, _migrated: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    folder = tmp_path_factory.mktemp("faults")
    log = folder / "events"
    models = scripted_backend(MODEL, SCRIPT, log) + MODELS + model_table("other", MODEL)
    with _postgres.open_database(_migrated) as url:
        role_url = _postgres.make_role(url)
        config = gateways_config(url, models)
        with running_gateways(folder, config, GATEWAYS, WORKERS, registries={"c": role_url}) as fleet:
            found = Whole(fleet, _postgres, url, role_url, log)
            found.assert_whole()
            yield found


def assert_served_once(whole: Whole, load: SteadyLoad, at_most: int = 1) -> None:
    """Every request that was served was run, and no more often than `at_most`; what was not has not been run twice."""
    calls = whole.calls()
    assert not load.having(End.WRONG)
    assert not [each for each in load.having(End.SERVED) if not 1 <= calls[each.id] <= at_most]
    assert not [each for each in load.asked if calls[each.id] > at_most]


# Gateways


@pytest.mark.parametrize("leads", [True, False], ids=["the-leader", "another"])
def test_l12_a_killed_gateway_costs_its_own_requests_and_nothing_else(whole: Whole, leads: bool) -> None:
    fleet, before, starts = whole.fleet, whole.assert_whole(), whole.starts()
    leader = fleet.wait_leader()
    victim = leader if leads else next(name for name in GATEWAYS if name != leader)
    name = "leader" if leads else "another"
    with SteadyLoad(fleet.gateways, MODEL, name) as load, sampled(whole.assert_no_duplicate):
        load.wait_served(12)
        left = [name for name, holder in fleet.holders().items() if holder == victim]
        fleet.kill_gateway(victim)
        watch = Stopwatch()
        for name in fleet.living:
            load.wait_served(10, at=name)
        watch.say(f"10 answers from each of the others, the {victim} killed")
        watch.wait(fleet.leader, "a leader")
        watch.wait(lambda: all(fleet.holders()[name] != victim for name in left), f"{left} at another gateway")
        watch.wait(fleet.is_whole, "the dead one is forgotten")
        fleet.add_gateway(victim)
        load.wait_served(10, at=victim)
    print(load.summary())  # noqa: T201
    assert {each.gateway for each in load.unhappy()} <= {victim}
    assert {each.end for each in load.unhappy()} <= {End.CUT, End.NOT_TAKEN}
    assert_served_once(whole, load)
    assert whole.assert_whole() == before
    assert whole.starts() == starts


def test_l13_a_leader_that_stood_still_does_nothing_any_more(whole: Whole) -> None:
    """It stands still for twice the time after which it counts as dead, while there is something to plan all the time,
    and then goes on in the middle of what it was doing."""
    fleet, before = whole.fleet, whole.assert_whole()
    stopped = fleet.wait_leader()
    others = {name: gateway for name, gateway in fleet.gateways.items() if name != stopped}
    term = assert_one_leader_at_a_time(audit_trail(whole.server, whole.url))[-1]
    may_succeed = {fleet.id_of(name) for name in others}

    def planned(epoch: int) -> int:
        return sum(event["epoch"] == epoch for event in audit_trail(whole.server, whole.url))

    with SteadyLoad(others, MODEL, "l13") as load, Toggling(next(iter(others.values()))) as toggling:
        wait_for(lambda: toggling.rounds >= 2, "something to plan")
        fleet.gateways[stopped].send_signal(signal.SIGSTOP)
        watch = Stopwatch()
        try:
            watch.wait(lambda: planned(term + 1) > 0, "another one plans")
            load.wait_served(10)
            wait_for(lambda: watch.seconds > 2 * TTL_SECONDS, "the time to pass")
        finally:
            fleet.gateways[stopped].send_signal(signal.SIGCONT)
        fleet.wait_whole()
        done = toggling.rounds
        wait_for(lambda: toggling.rounds >= done + 2, "more of it with all of them")
    print(load.summary())  # noqa: T201
    assert not load.unhappy()
    assert planned(term) > 0
    trail = audit_trail(whole.server, whole.url)
    assert leader_of(trail, term + 1) in may_succeed
    # A busy machine may cost the successor a term of this length, too; never do two act at a time.
    assert_one_leader_at_a_time(trail)
    assert whole.assert_whole() == before


def leader_of(trail: list[dict[str, Any]], epoch: int) -> str:
    """Who led in that term."""
    (subject,) = (
        each["subject"] for each in trail if (each["kind"], each["detail"]) == ("gateway.leads", f"epoch {epoch}")
    )
    return str(subject)


class Toggling:
    """Loads and unloads the model `other`, which nobody needs, again and again, while the context is open: so there is
    something to plan."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self.rounds = 0
        self._http = gateway.client(timeout=WAIT_SECONDS)
        self._sampling = sampled(self._toggle, 0.0)

    def __enter__(self) -> Self:
        self._sampling.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._sampling.__exit__(*error)
        self._http.post("/api/models/other/unload").raise_for_status()
        self._http.close()

    def _toggle(self) -> None:
        loaded = self._http.post("/api/models/other/load", params={"wait": 30})
        assert loaded.json()["state"] == "ready", loaded.text
        self._http.post("/api/models/other/unload").raise_for_status()
        self.rounds += 1


def test_a_gateway_that_is_cut_off_serves_on_and_its_workers_move(whole: Whole) -> None:
    """PostgreSQL throws it out and does not let it in again."""
    fleet = whole.fleet
    mover = fleet.workers["three"]
    mover.kill()
    mover = fleet.add_worker("three", *WORKERS["three"])
    before, pid = whole.assert_whole(), mover.backend_pid()
    role = httpx.URL(whole.role_url).username
    with SteadyLoad(fleet.gateways, MODEL, "cut") as load, sampled(whole.assert_no_duplicate):
        load.wait_served(6)
        whole.server.ask(whole.url, f"ALTER ROLE {role} NOLOGIN")
        whole.server.ask(whole.url, f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")
        watch = Stopwatch()
        watch.wait(lambda: readiness(fleet.gateways["c"]) == (200, "degraded", False), "it knows")
        watch.wait(lambda: fleet.holders()["three"] != "c", "its worker is elsewhere")
        load.wait_served(10, at="c")
        whole.server.ask(whole.url, f"ALTER ROLE {role} LOGIN")
        watch = Stopwatch()
        watch.wait(lambda: readiness(fleet.gateways["c"]) == (200, "ready", True), "it is back")
        load.wait_served(6, at="c")
    print(load.summary())  # noqa: T201
    assert not load.unhappy()
    assert_served_once(whole, load)
    assert whole.assert_whole() == before
    assert mover.backend_pid() == pid


def readiness(gateway: GatewayProcess) -> tuple[int, str, bool]:
    """Status code, status, and whether the registry works for it."""
    answer = httpx.get(f"{gateway.url}/readyz", timeout=WAIT_SECONDS)
    document = answer.json()
    return answer.status_code, document["status"], document["checks"]["registry"]


# Workers


def test_m7_a_killed_worker_costs_the_streams_that_it_had_begun(whole: Whole) -> None:
    fleet, before, starts = whole.fleet, whole.assert_whole(), whole.starts()
    victim = fleet.workers["two"]
    (lost,) = (replica for replica, node in before.items() if node == "two")
    with SteadyLoad(fleet.gateways, MODEL, "worker") as load, sampled(whole.assert_no_duplicate):
        load.wait_served(12)
        plain = [in_background(partial(each.chat, MODEL, max_tokens=80)) for each in 2 * [*fleet.gateways.values()]]
        wait_for(lambda: whole.in_flight(lost) >= 2, "some of them to be there")
        victim.kill()
        watch, killed_at = Stopwatch(), time.monotonic()
        watch.wait(lambda: all(lost not in fleet.candidates(each, MODEL) for each in GATEWAYS), "nobody chooses it")
        load.wait_served(12)
        fleet.add_worker("two", *WORKERS["two"])
        watch.say("the worker is back")
        watch.wait(lambda: fleet.wait_serving(*WORKERS, model=MODEL), "all replicas are back")
        load.wait_served(12)
    print(load.summary())  # noqa: T201
    assert {answer.result(WAIT_SECONDS).status_code for answer in plain} == {200}
    for each in load.unhappy():
        assert (each.end, each.node, each.streamed) == (End.BROKEN, "two", True), each
        assert each.began < killed_at
        assert '"backend_error"' in each.detail
    assert_served_once(whole, load, at_most=2)
    after = whole.assert_whole()
    assert {each: node for each, node in after.items() if node != "two"} == {
        each: node for each, node in before.items() if node != "two"
    }
    assert whole.starts() == starts + 1


# The database


def test_a_fleet_serves_on_while_its_database_is_away(whole: Whole) -> None:
    fleet, before, starts = whole.fleet, whole.assert_whole(), whole.starts()
    with SteadyLoad(fleet.gateways, MODEL, "database") as load, sampled(whole.assert_no_duplicate):
        load.wait_served(12)
        whole.server.kill()
        watch = Stopwatch()
        watch.wait(lambda: whole.readiness() == {(200, "degraded", False)}, "all of them know")
        for name in GATEWAYS:
            load.wait_served(6, at=name)
        wait_for(lambda: watch.seconds > DATABASE_AWAY_SECONDS, "the time to pass")
        for name in GATEWAYS:
            load.wait_served(2, at=name)
        joins = {name: worker.joins for name, worker in fleet.workers.items()}
        whole.server.start()
        watch = Stopwatch()
        watch.wait(lambda: whole.readiness() == {(200, "ready", True)}, "all of them are ready")
        watch.wait(lambda: all(fleet.workers[each].joins > joins[each] for each in joins), "all workers are back")
        load.wait_served(12)
    print(load.summary())  # noqa: T201
    assert not load.unhappy()
    assert_served_once(whole, load)
    assert whole.assert_whole() == before
    assert whole.starts() == starts
