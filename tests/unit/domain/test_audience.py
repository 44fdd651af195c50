"""Whom the planner has to wait for before it takes a drained replica away: those that live, and those that may."""

from collections.abc import Iterable

from gateway.domain.ids import GatewayId, ReplicaId
from gateway.domain.peers import Audience, PeerState, PeerStates, audience

R = ReplicaId("r")
OWN = PeerState(GatewayId("own"), "http://own")


def said(name: str, seen_version: int, *, url: str = "", leases: Iterable[ReplicaId] = ()) -> PeerState:
    return PeerState(GatewayId(name), url or f"http://{name}", "", seen_version, leases=dict.fromkeys(leases, 1))


def of(*others: PeerState, silent: Iterable[PeerState] = ()) -> Audience:
    by_id = {each.gateway_id: each for each in others}
    return audience(OWN, 9, PeerStates(0.0, 9, by_id, {each.gateway_id: each for each in silent}))


def test_it_knows_what_the_last_one_of_those_that_live_knows() -> None:
    assert of() == Audience(9)
    assert of(said("a", 8), said("b", 7, leases=[R])) == Audience(7)
    assert of(said("a", 12)) == Audience(9)


def test_w11_a_gateway_that_fell_silent_may_serve_on_from_what_it_knew() -> None:
    assert of(said("a", 8), silent=[said("b", 5)]) == Audience(5)


def test_w11_what_a_silent_gateway_had_requests_on_may_have_them_still() -> None:
    assert of(silent=[said("b", 9, leases=[R])]) == Audience(9, frozenset({R}))


def test_whoever_has_a_successor_at_its_address_has_ended() -> None:
    killed = said("b", 5, leases=[R])
    assert of(said("c", 9, url="http://b"), silent=[killed]) == Audience(9)
    assert of(silent=[said("b", 5, url=OWN.url)]) == Audience(9)


def test_nobody_takes_the_place_of_one_without_an_address() -> None:
    homeless = PeerState(GatewayId("b"), seen_version=5)
    assert of(PeerState(GatewayId("c"), seen_version=9), silent=[homeless]) == Audience(5)
