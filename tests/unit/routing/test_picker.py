"""The one policy, by example. Its properties are in tests/properties/test_picker.py."""

from random import Random

from gateway.domain.ids import Address, ModelName, NodeId, ReplicaId
from gateway.domain.routability import Candidate
from gateway.routing.load_tracker import LoadTracker, ReplicaLoad
from gateway.routing.picker import ALONE, CANDIDATES_KEPT, Choice, Policy, consider, pick, why_not_chosen
from tests.fakes.fleet import replica, view
from tests.fakes.routing_harness import ORIGIN

NOW = 100.0


def candidate(name: str, *, slots: int = 4, vram: int | None = None) -> Candidate:
    return Candidate(ReplicaId(name), ModelName("m"), NodeId("n"), "n", Address("a:1"), slots, vram)


def choose(candidates: list[Candidate], uses: dict[str, ReplicaLoad]) -> Choice | None:
    return pick(candidates, lambda replica_id: uses.get(replica_id, ReplicaLoad()), NOW, Random(1))


def busy(count: int, *, last_used: float = 0.0, full_until: float = 0.0) -> ReplicaLoad:
    table = LoadTracker(lambda: 0.0)
    leases = {table.lease(candidate("x"), ORIGIN, 0.0) for _ in range(count)}
    return ReplicaLoad(leases, last_used=last_used, full_until=full_until)


def chosen(choice: Choice | None) -> str:
    assert choice is not None
    return choice.candidate.replica_id


def test_nothing_to_choose_from() -> None:
    assert choose([], {}) is None


def test_least_load_first() -> None:
    assert chosen(choose([candidate("a"), candidate("b")], {"a": busy(2), "b": busy(1)})) == "b"


def test_r2_longest_unused_breaks_a_tie_before_vram() -> None:
    fat, thin = candidate("fat", vram=80), candidate("thin", vram=8)
    uses = {"fat": busy(0, last_used=2.0), "thin": busy(0, last_used=1.0)}
    assert chosen(choose([fat, thin], uses)) == "thin"


def test_more_free_vram_breaks_the_last_tie() -> None:
    assert chosen(choose([candidate("a", vram=8), candidate("b", vram=9), candidate("c")], {})) == "b"


def test_a_free_slot_beats_a_lower_load_without_one() -> None:
    small, large = candidate("small", slots=1), candidate("large", slots=8)
    choice = choose([small, large], {"small": busy(1), "large": busy(3)})
    assert chosen(choice) == "large"
    assert choice is not None
    assert choice.has_free_slot


def test_all_taken_is_said() -> None:
    choice = choose([candidate("a", slots=1)], {"a": busy(1)})
    assert choice is not None
    assert not choice.has_free_slot


def test_a_replica_that_said_full_counts_as_taken_until_then() -> None:
    a, b = candidate("a"), candidate("b")
    assert chosen(choose([a, b], {"a": busy(0, full_until=NOW + 1), "b": busy(3)})) == "b"
    assert chosen(choose([a, b], {"a": busy(0, full_until=NOW), "b": busy(3)})) == "a"


def test_r2_sequential_picks_rotate_over_unequal_replicas() -> None:
    table = LoadTracker(lambda: 0.0)
    candidates = [candidate("a", vram=24), candidate("b", vram=16), candidate("c", vram=8)]
    picked = []
    for turn in range(9):
        choice = pick(candidates, table.load_of, float(turn), Random(turn))
        assert choice is not None
        with table.lease(choice.candidate, ORIGIN, float(turn)):
            picked.append(choice.candidate.replica_id)
    assert sorted(picked) == ["a"] * 3 + ["b"] * 3 + ["c"] * 3


def test_r6_one_request_is_one_lease() -> None:
    table = LoadTracker(lambda: 0.0)
    only = view(replica("r1")).candidates[ModelName("m")][0]
    with table.lease(only, ORIGIN, 0.0):
        assert table.statistics().in_flight == {"r1": 1}
    assert table.statistics().in_flight == {}


def test_h2_one_that_answers_beats_a_lower_load() -> None:
    uses = {"a": ReplicaLoad(busy_until=NOW + 1), "b": busy(3)}
    assert chosen(choose([candidate("a"), candidate("b")], uses)) == "b"


def test_h2_a_free_slot_beats_one_that_answers() -> None:
    uses = {"a": ReplicaLoad(busy_until=NOW + 1), "b": busy(4)}
    choice = choose([candidate("a"), candidate("b")], uses)
    assert chosen(choice) == "a"
    assert choice is not None
    assert choice.has_free_slot


def test_h1_busy_is_preferred_against_for_a_moment_only() -> None:
    uses = {"a": ReplicaLoad(busy_until=NOW), "b": busy(1)}
    assert chosen(choose([candidate("a"), candidate("b")], uses)) == "a"


def test_leases_at_other_gateways_count_like_our_own() -> None:
    uses = {"a": ReplicaLoad(at_peers=2), "b": busy(1)}
    assert chosen(choose([candidate("a"), candidate("b")], uses)) == "b"
    choice = choose([candidate("a")], {"a": ReplicaLoad(at_peers=4)})
    assert choice is not None
    assert not choice.has_free_slot


def test_a_penalty_weighs_like_a_lease_and_takes_no_slot() -> None:
    failing = ReplicaLoad(expiries=[NOW + 1, NOW + 2])
    assert chosen(choose([candidate("a"), candidate("b")], {"a": failing, "b": busy(1)})) == "b"
    choice = choose([candidate("a", slots=1)], {"a": failing})
    assert choice is not None
    assert choice.has_free_slot


def test_several_gateways_break_ties_by_chance_before_last_use() -> None:
    candidates = [candidate("a"), candidate("b")]
    uses = {"a": busy(0, last_used=1.0), "b": busy(0, last_used=2.0)}
    for policy, expected in ((ALONE, {"a"}), (Policy(tie_break_by_chance=True), {"a", "b"})):
        found = {chosen(pick(candidates, uses.__getitem__, NOW, Random(seed), policy)) for seed in range(20)}
        assert found == expected


def test_chance_between_several_gateways_comes_after_the_load() -> None:
    candidates, uses = [candidate("a"), candidate("b")], {"a": busy(1), "b": busy(0)}
    for seed in range(20):
        assert chosen(pick(candidates, uses.__getitem__, NOW, Random(seed), Policy(tie_break_by_chance=True))) == "b"


def test_why_a_candidate_was_not_chosen_is_the_first_difference() -> None:
    rng = Random(1)
    winner = consider(candidate("a"), busy(1, last_used=5.0), NOW, rng).score
    loser = consider(candidate("b"), busy(2, last_used=1.0), NOW, rng).score
    assert why_not_chosen(loser, winner) == "more load (2 against 1)"
    assert why_not_chosen(winner, winner) == "chance"


def test_a_pick_tells_the_numbers_that_it_compared() -> None:
    several = [candidate(name) for name in "abc"]
    uses = {"a": busy(2), "b": busy(1), "c": busy(3)}
    choice = choose(several, uses)
    assert choice is not None
    assert [each.candidate.replica_id for each in choice.considered] == ["b", "a", "c"], "the chosen one first"
    compared = [consider(each.candidate, uses[each.candidate.replica_id], NOW, Random(1)) for each in choice.considered]
    assert [each.score[:7] for each in choice.considered] == [each.score[:7] for each in compared]


def test_a_pick_from_a_large_fleet_tells_of_the_chosen_one_and_of_some_others() -> None:
    several = [candidate(f"r{number}") for number in range(100)]
    choice = choose(several, {each.replica_id: busy(1) for each in several[:-1]})
    assert choice is not None
    assert choice.considered[0].candidate is choice.candidate is several[-1]
    assert [each.candidate for each in choice.considered[1:]] == several[: CANDIDATES_KEPT - 1]


def test_a_choice_from_a_part_tells_what_was_compared_of_all() -> None:
    several = [candidate(name, slots=1) for name in "abc"]
    uses = {name: busy(1) for name in "abc"}
    everyone, part = choose(several, uses), choose(several[1:2], uses)
    assert everyone is not None
    assert part is not None
    kept = part.among(everyone).considered
    assert kept[0].candidate is several[1]
    assert sorted(each.candidate.replica_id for each in kept) == ["a", "b", "c"]
