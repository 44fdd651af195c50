"""Properties of the picker over random fleets and loads."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.ids import Address, ModelName, NodeId, ReplicaId
from gateway.domain.routability import Candidate
from gateway.routing.picker import pick


class Load:
    """A load as data."""

    def __init__(self, open_leases: int, ghosts: int, last_used: float, full_until: float, busy_until: float) -> None:
        self.open_leases = open_leases
        self.ghosts = ghosts
        self.last_used = last_used
        self.full_until = full_until
        self.busy_until = busy_until

    def penalties(self, now: float) -> int:
        return self.ghosts


loads = st.builds(
    Load,
    st.integers(0, 5),
    st.integers(0, 2),
    st.sampled_from([0.0, 1.0, 2.0]),
    st.sampled_from([0.0, 20.0]),
    st.sampled_from([0.0, 20.0]),
)
fleets = st.lists(st.tuples(st.integers(1, 5), st.none() | st.integers(0, 3), loads), max_size=8)
NOW = 10.0


def candidates_of(fleet: list[tuple[int, int | None, Load]]) -> list[tuple[Candidate, Load]]:
    return [
        (Candidate(ReplicaId(str(i)), ModelName("m"), NodeId("n"), "n", Address("a:1"), slots, vram), load)
        for i, (slots, vram, load) in enumerate(fleet)
    ]


def free(candidate: Candidate, load: Load) -> bool:
    return load.open_leases < candidate.slots and load.full_until <= NOW


def rank(candidate: Candidate, load: Load) -> tuple[bool, int, float, int]:
    """What is compared among those that are equally free."""
    vram = -(candidate.free_vram_bytes or 0)
    return load.busy_until > NOW, load.open_leases + load.ghosts, load.last_used, vram


@given(fleets, st.randoms(use_true_random=False), st.integers())
def test_the_choice_is_never_beaten(fleet: list[tuple[int, int | None, Load]], order: Random, seed: int) -> None:
    pairs = candidates_of(fleet)
    by_id = {candidate.replica_id: load for candidate, load in pairs}
    order.shuffle(pairs)
    choice = pick([candidate for candidate, _ in pairs], by_id.__getitem__, NOW, Random(seed))
    if not pairs:
        assert choice is None
        return
    assert choice is not None
    mine, my_load = choice.candidate, by_id[choice.candidate.replica_id]
    trusted = [(candidate, load) for candidate, load in pairs if not load.ghosts] or pairs
    assert choice.has_free_slot == any(free(candidate, load) for candidate, load in trusted)
    for other, load in pairs:
        if bool(load.ghosts) != bool(my_load.ghosts):
            assert not my_load.ghosts
            continue
        if free(other, load) != free(mine, my_load):
            assert free(mine, my_load)
            continue
        assert rank(mine, my_load) <= rank(other, load)


@given(fleets, st.integers())
def test_the_same_input_gives_the_same_choice(fleet: list[tuple[int, int | None, Load]], seed: int) -> None:
    pairs = candidates_of(fleet)
    by_id = {candidate.replica_id: load for candidate, load in pairs}
    chosen = [pick([c for c, _ in pairs], by_id.__getitem__, NOW, Random(seed)) for _ in range(2)]
    assert chosen[0] == chosen[1]
