"""What is kept of each decision, and how it is told."""

import json
from random import Random
from typing import Any

import trio
import trio.testing

from gateway.backends.protocol import Refused, Unreachable
from gateway.domain.cluster import ProbeOutcome
from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate
from gateway.routing.decisions import DecisionLog, describe, describe_candidates, score_all
from gateway.routing.load_tracker import ReplicaLoad
from gateway.routing.picker import CANDIDATES_KEPT, Policy
from tests.fakes.fleet import MODEL, NODE, node, replica, view
from tests.fakes.routing_harness import ORIGIN, FakePeers, RoutingHarness

A, B = ReplicaId("a"), ReplicaId("b")
NOW = 100.0


def candidate(name: str, *, slots: int = 4, vram: int | None = None) -> Candidate:
    fleet = view(replica(name, parallel=slots), nodes=[node(NODE, free_vram_bytes=vram)])
    return fleet.candidates[MODEL][0]


def verdict(loser: ReplicaLoad, winner: ReplicaLoad, *, vram: int | None = None, policy: Policy | None = None) -> str:
    """What is said of `b`, which lost against `a`."""
    chosen, other = candidate("a", vram=8), candidate("b", vram=vram)
    uses = {A: winner, B: loser}
    considered = score_all([chosen, other], chosen, uses.__getitem__, NOW, policy or Policy())
    first, second = describe_candidates(considered, chosen, NOW)
    assert (first["replica"], first["verdict"]) == (A, "chosen")
    assert second["replica"] == B
    return str(second["verdict"])


def used(*, leases: int = 0, **fields: Any) -> ReplicaLoad:
    return ReplicaLoad(at_peers=leases, **fields)


def test_every_way_to_lose_has_its_words() -> None:
    idle = used()
    assert verdict(used(leases=4), used(leases=1)) == "no free slot"
    assert verdict(used(full_until=NOW + 1), idle) == "no free slot"
    assert verdict(used(busy_until=NOW + 1), idle) == "it did not answer the last probe"
    assert verdict(used(leases=3), used(leases=1)) == "more load (3 against 1)"
    assert verdict(used(leases=1, expiries=[NOW + 1, NOW + 2]), idle) == "it has failed lately"
    assert verdict(used(last_used=2.0), used(last_used=1.0)) == "used more recently"
    assert verdict(idle, idle, vram=4) == "less free VRAM"
    assert verdict(idle, idle, vram=8) == "chance"


def test_chance_between_several_gateways_is_shown_as_such() -> None:
    words = verdict(used(last_used=1.0), used(last_used=2.0), policy=Policy(tie_break_by_chance=True))
    assert words == "chance, since several gateways pick from one view"


def test_nobody_chosen_means_no_free_slot() -> None:
    considered = score_all([candidate("a", slots=1)], None, lambda _: used(leases=1), NOW)
    (shown,) = describe_candidates(considered, None, NOW)
    assert shown == {
        "replica": "a",
        "node": "name-n1",
        "verdict": "no free slot",
        "load": 1,
        "slots": 1,
        "free_slot": False,
        "answers": True,
        "unused_seconds": None,
        "free_vram_bytes": None,
    }


def test_a_large_fleet_is_kept_in_part_and_the_chosen_one_always() -> None:
    fleet = [candidate(f"r{number}") for number in range(1000)]
    considered = score_all(fleet, fleet[-1], lambda _: used(), NOW)
    assert len(considered) == CANDIDATES_KEPT
    assert fleet[-1] in [each.candidate for each in considered]


async def test_the_log_keeps_the_newest() -> None:
    log = DecisionLog(kept=3)
    for number in range(5):
        log.open(MODEL, Origin(RequestId(str(number))), NOW)
    assert [log.find(RequestId(str(number))) is not None for number in range(5)] == [False, False, True, True, True]


async def test_a_repeated_request_id_is_the_newer_decision() -> None:
    log = DecisionLog(kept=2)
    log.open(ModelName("old"), ORIGIN, NOW)
    log.open(MODEL, Origin(RequestId("between")), NOW)
    again = log.open(MODEL, ORIGIN, NOW)
    log.open(MODEL, Origin(RequestId("last")), NOW)  # pushes out `between`, which is the oldest now
    assert log.find(ORIGIN.request_id) is again
    assert log.find(RequestId("between")) is None


async def test_the_log_is_bounded_by_itself() -> None:
    log = DecisionLog()
    for number in range(3000):
        log.open(MODEL, Origin(RequestId(str(number))), NOW)
    assert sum(log.find(RequestId(str(number))) is not None for number in range(3000)) == 1024


def shown(harness: RoutingHarness) -> dict[str, Any]:
    """The decision on the last request, through JSON and back."""
    decision = harness.admission.decisions.find(ORIGIN.request_id)
    assert decision is not None
    document: dict[str, Any] = json.loads(json.dumps(describe(decision)))
    return document


async def test_each_attempt_is_shown_with_its_cause_and_times(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness(replica(A), replica(B, slot=1))
    harness.loads.change(B).last_used = 0.0
    harness.backends.script(A, Unreachable("refused"))
    await trio.sleep(10)
    await harness.generate()
    document = shown(harness)
    assert (document["request_id"], document["model"], document["caller"]) == ("request", "m", "anonymous")
    first, second = document["attempts"]
    assert (first["replica"], first["node"], first["probe"], first["outcome"]) == (A, "name-n1", "alive", "unreachable")
    assert (second["replica"], second["outcome"]) == (B, "served")
    assert [each["verdict"] for each in first["candidates"]] == ["chosen", "used more recently"]
    assert [each["unused_seconds"] for each in first["candidates"]] == [None, 10]
    assert [each["replica"] for each in second["candidates"]] == [B]  # the other one is not looked at again
    assert (first["picked_after"], second["ended_after"]) == (0, 0)


async def test_a_running_attempt_and_one_whose_client_left(autojump_clock: trio.testing.MockClock) -> None:
    harness = RoutingHarness(replica(A))
    harness.backends.script(A, trio.Event())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(harness.generate)
        await trio.sleep(2)
        (running,) = shown(harness)["attempts"]
        assert (running["outcome"], running["ended_after"]) == ("running", None)
        nursery.cancel_scope.cancel()
    (left,) = shown(harness)["attempts"]
    assert (left["outcome"], left["ended_after"]) == ("left", 2)


async def test_a_refusal_and_a_busy_probe_are_shown() -> None:
    harness = RoutingHarness(replica(A), replica(B, slot=1))
    harness.loads.change(B).last_used = 0.0
    harness.probe.outcomes[A] = ProbeOutcome.BUSY
    await harness.generate()
    assert [(each["replica"], each["probe"], each["outcome"]) for each in shown(harness)["attempts"]] == [
        (A, "busy", "busy"),
        (B, "alive", "served"),
    ]
    harness.probe.outcomes[A] = ProbeOutcome.ALIVE
    harness.probes.record_alive(A)
    harness.loads.record_success(harness.view.candidates[MODEL][0])
    harness.backends.script(A, Refused(draining=False))
    await harness.generate()
    assert [each["outcome"] for each in shown(harness)["attempts"]] == ["full", "served"]


async def test_an_explanation_takes_nothing_and_leaves_nothing() -> None:
    harness = RoutingHarness(replica(A, parallel=1))
    chosen, considered, _ = harness.admission.explain(MODEL)
    assert chosen is not None
    assert chosen.replica_id == A
    assert [each.candidate.replica_id for each in considered] == [A]
    assert harness.in_flight() == 0
    assert harness.loads.load_of(A).last_used == float("-inf")


async def test_an_explanation_says_why_a_replica_may_not_serve() -> None:
    harness = RoutingHarness(replica(A), replica(B, slot=1, revision="old"))
    assert harness.admission.not_routable(MODEL) == {B: "its model's spec has changed since it was loaded"}


async def test_the_chance_that_is_shown_is_the_one_that_decided(autojump_clock: trio.testing.MockClock) -> None:
    """With several gateways the pick is by chance before `last_used`, and so is what is told of it."""
    harness = RoutingHarness(replica(A), replica(B, slot=1))
    harness.loads.peers = FakePeers()
    harness.admission._rng = Random(3)
    for _ in range(20):
        await trio.sleep(1)
        await harness.generate()
        (attempt,) = shown(harness)["attempts"]
        assert attempt["candidates"][1]["verdict"] == "chance, since several gateways pick from one view"
