"""The index answers as the plain picker does, whatever has happened to loads, candidates and time."""

from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.domain.ids import Address, ModelName, NodeId, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate
from gateway.routing import load_index, rank_order
from gateway.routing.load_tracker import FOREVER, Lease, LoadTracker
from gateway.routing.picker import ALONE, Choice, Policy, pick
from gateway.routing.rank_order import Place, RankOrder
from tests.amounts import examples_to_run

MODELS = [ModelName("a"), ModelName("b")]
IDS = [ReplicaId(f"r{number:02}") for number in range(48)]
CALLERS = ["x", "y"]
POLICIES = [ALONE, Policy(tie_break_by_chance=True)]
STEPS = 150


class Indexed:
    """Two models whose replicas come and go, are used, fail, refuse, and are used by peers."""

    def __init__(self, rng: Random, size: int) -> None:
        self.rng = rng
        self.ids = IDS[:size]
        self.now = 0.0
        self.loads = LoadTracker(lambda: self.now)
        self.fleet: dict[ReplicaId, Candidate] = {}
        self.shown: dict[ModelName, tuple[Candidate, ...]] = {}
        self.leases: list[Lease] = []
        self.policy = ALONE
        self.preparing: Iterator[None] | None = None
        self.change_fleet(size)

    def change_fleet(self, most: int = 3) -> None:
        for replica_id in self.rng.sample(self.ids, min(most, len(self.ids))):
            self.fleet[replica_id] = candidate(replica_id, self.rng)
        for replica_id in self.rng.sample(self.ids, self.rng.randrange(2)):
            self.fleet.pop(replica_id, None)
        ordered = sorted(self.fleet.values(), key=lambda each: each.replica_id)
        self.shown = {model: tuple(each for each in ordered if each.model == model) for model in MODELS}

    def prepare(self) -> None:
        """In parts, with anything in between."""
        if self.preparing is None:
            self.preparing = self.loads.index.prepare(self.shown, lambda: self.now)
        if next(self.preparing, STEPS) == STEPS:
            self.preparing = None

    def wait(self) -> None:
        self.now += self.rng.choice([0.0, 0.1, 0.5, 3.0])

    def take(self) -> None:
        """Three times as often as most, so that slots are scarce."""
        for _ in range(3):
            choice = self.pick(self.rng.choice(MODELS), self.policy, frozenset())
            if choice is not None:
                origin = Origin(RequestId("r"), self.rng.choice(CALLERS))
                self.leases.append(self.loads.lease(choice.candidate, origin, self.now))

    def release(self) -> None:
        for _ in range(min(3, len(self.leases))):
            lease = self.leases.pop(self.rng.randrange(len(self.leases)))
            if self.rng.random() < 0.3:
                self.loads.record_full(lease, self.now + 2.0)
            lease.release()

    def move(self) -> None:
        if self.leases:
            lease = self.rng.choice(self.leases)
            model = lease.candidate.model
            if others := self.shown[model]:
                self.loads.index.of(model, others, self.now)
                self.loads.move(lease, self.rng.choice(others))

    def be_busy(self) -> None:
        self.loads.record_busy(self.rng.choice(self.ids), self.now + self.rng.choice([0.0, 1.0, 3.0]))

    def fail(self) -> None:
        self.loads.record_failure(self.rng.choice(self.ids), self.now)

    def succeed(self) -> None:
        if self.fleet:
            self.loads.record_success(self.rng.choice(tuple(self.fleet.values())))

    def hear_peers(self) -> None:
        several = self.rng.sample(self.ids, self.rng.randrange(len(self.ids)))
        self.loads.apply_peers({each: self.rng.randrange(1, 4) for each in several})

    def have_none_free(self) -> None:
        self.loads.record_none_free(self.shown[self.rng.choice(MODELS)], self.now + 1.0, 1)

    def forget(self) -> None:
        self.loads.keep_only(self.fleet)

    def change_policy(self) -> None:
        self.policy = self.rng.choice(POLICIES)

    def step(self) -> None:
        """Two looks have several changes between them, or none."""
        change = (
            *(self.change_fleet, self.wait, self.wait, self.take, self.take, self.release, self.move, self.be_busy),
            *(
                self.prepare,
                self.prepare,
                self.fail,
                self.succeed,
                self.hear_peers,
                self.have_none_free,
                self.forget,
                self.change_policy,
            ),
            *[self.compare] * 6,
        )
        self.rng.choice(change)()

    def compare(self) -> None:
        excluded = frozenset(self.rng.sample(self.ids, self.rng.randrange(min(3, len(self.ids)))))
        for model in MODELS:
            self.pick(model, self.policy, excluded)
            self.guess(model, excluded)
            self.counts_agree(model)
            self.shares_agree(model)
        self.published_agrees()

    def pick(self, model: ModelName, policy: Policy, excluded: frozenset[ReplicaId]) -> Choice | None:
        """By both pickers, which have to agree, also on the random numbers that they drew."""
        shown, seed = self.shown[model], self.rng.random()
        mine, plain = Random(seed), Random(seed)
        choice = self.loads.index.of(model, shown, self.now).pick(mine, policy, excluded)
        left = [each for each in shown if each.replica_id not in excluded]
        expected = pick(left, self.loads.load_of, self.now, plain, policy)
        assert choice == expected
        assert mine.getstate() == plain.getstate()
        if choice is not None and expected is not None:
            assert choice.candidate is expected.candidate
            assert choice.considered == expected.considered
        return choice

    def guess(self, model: ModelName, excluded: frozenset[ReplicaId]) -> None:
        shown, seed = self.shown[model], self.rng.random()
        doubtful = [
            each
            for each in shown
            if each.replica_id not in excluded
            and self.loads.is_doubtful(each)
            and self.loads.load_of(each.replica_id).full_until <= self.now
        ]
        expected = pick(doubtful, self.loads.load_of, self.now, Random(seed))
        assert self.loads.index.of(model, shown, self.now).guess(Random(seed), excluded) == expected

    def counts_agree(self, model: ModelName) -> None:
        shown = self.shown[model]
        index = self.loads.index.of(model, shown, self.now)
        loads = [self.loads.load_of(each.replica_id) for each in shown]
        assert index.suspects == sum(load.penalties(self.now) > 0 for load in loads)
        assert index.free_slots == sum(map(self.free_slots, shown))
        assert index.doubtful == sum(map(self.loads.is_doubtful, shown))
        assert index.next_change_at() == min((load.changes_at(self.now) for load in loads), default=FOREVER)

    def free_slots(self, each: Candidate) -> int:
        load = self.loads.load_of(each.replica_id)
        if self.now < load.full_until or load.penalties(self.now):
            return 0
        return max(0, each.slots - load.open_leases)

    def shares_agree(self, model: ModelName) -> None:
        shown = self.shown[model]
        there = {each.replica_id for each in shown}
        for caller in CALLERS:
            held = [each for each in self.leases if each.candidate.model == model and each.origin.caller == caller]
            expected = sum(each.candidate.replica_id in there for each in held)
            assert self.loads.share_of(model, shown, caller).held == expected

    def published_agrees(self) -> None:
        everywhere = [lease.candidate.replica_id for lease in self.leases]
        assert self.loads.published() == {each: everywhere.count(each) for each in everywhere}
        assert sum(self.loads.statistics().in_flight_by_model.values()) == len(self.leases)


@given(seed=st.integers(0, 10_000), size=st.sampled_from([1, 3, 6, 48]))
@settings(max_examples=examples_to_run(60), deadline=None)
def test_the_index_answers_as_the_plain_picker(seed: int, size: int) -> None:
    indexed = Indexed(Random(seed), size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load_index, "PREPARED_AT_ONCE", 4)
        for _ in range(STEPS):
            indexed.step()


def candidate(replica_id: ReplicaId, rng: Random) -> Candidate:
    model, vram = MODELS[IDS.index(replica_id) % len(MODELS)], rng.choice([None, 0, 1])
    slots, refuses = rng.randrange(1, 4), rng.random() < 0.7
    return Candidate(replica_id, model, NodeId("n"), "n", Address("a:1"), slots, vram, refuses)


@pytest.mark.parametrize("by_chance", [False, True])
@given(seed=st.integers(0, 1000))
@settings(max_examples=examples_to_run(20), deadline=None)
def test_many_keys_keep_their_order_in_small_chunks(by_chance: bool, seed: int) -> None:
    rng, order = Random(seed), RankOrder(by_chance=by_chance)
    filed: dict[ReplicaId, Place] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_order, "CHUNK_MAX", 4)
        for _ in range(200):
            replica_id = ReplicaId(f"r{rng.randrange(60):02}")
            ranked = (
                _plain(replica_id),
                (False, False, False, rng.randrange(3), float(rng.randrange(3)), -rng.randrange(2)),
            )
            if (place := filed.pop(replica_id, None)) is None:
                filed[replica_id] = order.add(ranked)
            elif (moved := order.move(place, ranked)) is not None:
                filed[replica_id] = moved
            else:
                order.remove(place)
            decisive = 4 if by_chance else 6
            ranks = {each: place.key[3][1] for each, place in filed.items()}
            best = min((rank[:decisive] for rank in ranks.values()), default=None)
            tied = sorted(each for each, rank in ranks.items() if rank[:decisive] == best)
            expected = (tied[0] if len(tied) == 1 else Random(seed).choice(tied)) if tied else None
            found = order.best(Random(seed))
            assert (found[0].replica_id if found is not None else None) == expected


def _plain(replica_id: ReplicaId) -> Candidate:
    return Candidate(replica_id, MODELS[0], NodeId("n"), "n", Address("a:1"), 1, None)
