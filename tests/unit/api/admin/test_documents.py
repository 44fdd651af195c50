"""The fleet's documents as each gateway of it tells them, from its own parts and what the others have said."""

from dataclasses import replace
from typing import Any, Final

import pytest

from gateway.api.admin.documents import StatusSource, status_document
from gateway.api.admin.load_status import load_status
from gateway.api.admin.metrics_source import readings
from gateway.domain.cluster import Demand, Progress
from gateway.domain.ids import GatewayId, ModelName, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.lifecycle import Observed
from gateway.domain.peers import PeerState, PendingReason
from gateway.domain.routability import FleetView, build_view
from gateway.registry.protocol import RegistryStatistics
from gateway.routing.admission import ModelQueueStatistics
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.probe_cache import ProbeStatistics
from gateway.routing.router import RouterStatistics
from tests.fakes.fleet import MODEL, replica, spec, state, view
from tests.fakes.fleet_status import KnownProgress, fleet_status

A, B, C = GatewayId("a"), GatewayId("b"), GatewayId("c")
R1, R2, GONE = ReplicaId("r1"), ReplicaId("r2"), ReplicaId("gone")
OTHER: Final = ModelName("other")
NOW: Final = 100.0
FLEET: Final = state([replica(R1), replica(R2, of=spec(OTHER))], specs=[spec(), spec(OTHER)])


def demand(model: ModelName, waiting: int, gateway: GatewayId = B) -> Demand:
    return Demand(gateway, model, waiting, 0.0)


def at_a(*others: PeerState, fleet: FleetView | None = None, leader: GatewayId | None = A, **own: Any) -> StatusSource:
    """Of gateway `a`."""
    seen = fleet or build_view(FLEET)
    seen = replace(seen, state=replace(seen.state, leader=leader))
    status = fleet_status(A, *others, view=seen, is_leader=lambda: leader == A)
    return replace(StatusSource(status, busy_table(0).statistics, dict, lambda: NOW), **own)


def planned(source: StatusSource) -> StatusSource:
    """Gateway `a` has plans of its own that come to something else than the leader's."""
    source.fleet.outcome.pending = {MODEL: PendingReason("a slot is on its way", is_shortage=False)}
    source.fleet.outcome.unsatisfiable = {OTHER: "0 of 2"}
    return source


def by_id(objects: list[dict[str, Any]], key: str, value: str) -> dict[str, Any]:
    return {each[key]: each[value] for each in objects}


def busy_table(requests: int) -> LoadTracker:
    """With so many requests on `r1`."""
    table = LoadTracker(lambda: NOW)
    for number in range(requests):
        table.lease(build_view(FLEET).candidates[MODEL][0], Origin(RequestId(str(number))), NOW)
    return table


def test_each_gateway_is_shown_and_who_leads() -> None:
    source = at_a(PeerState(C), PeerState(B, "http://b:8080"), leader=B, own_url=lambda: "http://a:8080")
    assert status_document(source)["gateways"] == [
        {"id": "a", "leader": False, "url": "http://a:8080"},
        {"id": "b", "leader": True, "url": "http://b:8080"},
        {"id": "c", "leader": False, "url": None},
    ]


@pytest.mark.parametrize("leader", [None, GatewayId("dead")])
def test_nobody_leads_who_is_not_there(leader: GatewayId | None) -> None:
    shown = status_document(at_a(PeerState(B), leader=leader))["gateways"]
    assert by_id(shown, "id", "leader") == {"a": False, "b": False}


def test_r5_in_flight_is_the_fleets() -> None:
    others = PeerState(B, leases={R1: 3, R2: 1, GONE: 7}), PeerState(C, leases={R2: 4})
    document = status_document(at_a(*others, loads=busy_table(2).statistics))
    assert by_id(document["replicas"], "id", "in_flight") == {R1: 5, R2: 5}
    assert by_id(document["models"], "name", "in_flight") == {MODEL: 5, OTHER: 5}


def test_m3_what_waits_is_the_fleets() -> None:
    queues = {MODEL: ModelQueueStatistics(waiting=2, oldest_seconds=1.0)}
    others = PeerState(B, demand=(demand(MODEL, 3), demand(OTHER, 1))), PeerState(C, demand=(demand(OTHER, 1, C),))
    document = status_document(at_a(*others, queues=lambda: queues))
    assert by_id(document["models"], "name", "queued") == {MODEL: 5, OTHER: 2}


def test_metrics_are_this_gateways_since_who_reads_them_adds_up() -> None:
    queues = {MODEL: ModelQueueStatistics(waiting=2, oldest_seconds=1.0)}
    other = PeerState(B, leases={R1: 3}, demand=(demand(MODEL, 3),))
    source = at_a(other, loads=busy_table(1).statistics, queues=lambda: queues)
    shown = readings(source, RouterStatistics({}, {}), ProbeStatistics({}, 0, 0, 0), RegistryStatistics(1))
    samples = {reading.name: dict(reading.values) for reading in shown}
    assert samples["gateway_in_flight"] == {(MODEL,): 1, (OTHER,): 0}
    assert samples["gateway_queue_length"] == {(MODEL,): 2, (OTHER,): 0}
    assert samples["gateway_is_leader"] == {(): 1.0}


def loading() -> FleetView:
    return view(replica(R1, observed=Observed.FETCHING))


def test_l11_progress_that_another_gateway_hears_of() -> None:
    other = PeerState(B, progress={R1: Progress(25, 100, 25.0)})
    shown = load_status(at_a(PeerState(C), other, fleet=loading()), MODEL)
    assert (shown["progress"], shown["bytes_done"], shown["eta_seconds"]) == (0.25, 25, 3.0)


def test_l11_progress_that_this_gateway_hears_of_comes_first() -> None:
    other = PeerState(B, progress={R1: Progress(25, 100)})
    source = at_a(other, fleet=loading())
    assert isinstance(source.fleet.progress, KnownProgress)
    source.fleet.progress.known[R1] = Progress(50, 100)
    assert load_status(source, MODEL)["progress"] == 0.5


def test_l11_progress_that_no_gateway_knows_is_not_shown() -> None:
    assert "progress" not in load_status(at_a(PeerState(B), fleet=loading()), MODEL)


def test_m1_a_load_that_was_asked_for_at_another_gateway_is_asked_for() -> None:
    nothing = view()
    assert load_status(at_a(PeerState(B, demand=(demand(MODEL, 1),)), fleet=nothing), MODEL)["requested"]
    assert load_status(at_a(fleet=nothing, own_load_request=lambda _model: True), MODEL)["requested"]
    assert not load_status(at_a(PeerState(B, demand=(demand(OTHER, 1),)), fleet=nothing), MODEL)["requested"]


LEADERS: Final = PeerState(
    B, pending={MODEL: PendingReason("no room", is_shortage=True)}, unsatisfiable={OTHER: "1 of 2"}
)


def test_p4_what_does_not_come_up_is_shown_as_the_leader_sees_it() -> None:
    source = at_a(LEADERS, PeerState(C), fleet=view(specs=[spec(), spec(OTHER)]), leader=B)
    assert load_status(source, MODEL)["reason"] == "no room"
    assert load_status(source, OTHER) == {
        "model": OTHER,
        "state": "unsatisfiable",
        "error": "1 of 2",
        "requested": False,
    }
    assert (source.fleet.shortage_of(MODEL), source.fleet.shortage_of(OTHER)) == ("no room", None)


def test_p4_the_leader_believes_itself() -> None:
    source = planned(at_a(LEADERS, fleet=view(specs=[spec(), spec(OTHER)]), leader=A))
    assert load_status(source, MODEL)["reason"] == "a slot is on its way"
    assert load_status(source, OTHER)["error"] == "0 of 2"
    assert source.fleet.shortage_of(MODEL) is None


def test_p4_a_new_leader_believes_itself_before_its_view_says_who_leads() -> None:
    source = planned(at_a(LEADERS, fleet=view(), leader=B))
    assert replace(source.fleet, is_leader=lambda: True).pending()[MODEL].because == "a slot is on its way"


@pytest.mark.parametrize("leader", [None, C])
def test_p4_nothing_is_shown_of_a_silent_leader(leader: GatewayId | None) -> None:
    source = at_a(LEADERS, fleet=view(), leader=leader)
    assert (source.fleet.pending(), source.fleet.unsatisfiable(), source.fleet.shortage_of(MODEL)) == ({}, {}, None)


def test_h11_ages_are_of_the_registrys_clock() -> None:
    fleet = state([replica(R1, since=NOW - 40)])
    [shown] = status_document(at_a(fleet=build_view(fleet)))["replicas"]
    assert shown["age"] == 40
