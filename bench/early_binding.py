"""Policies that send each request to a replica when it arrives, where it then waits; and the oracle, which does not.

The oracle is one queue for the whole fleet: a request waits only while every slot is taken.
"""

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count
from random import Random

from bench.workload import SLOTS, Job, Outcome, Setting


class Fleet:
    """Replicas that queue what they are sent. Each gateway sees its own requests, and the others' as published."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.speeds = setting.speeds()
        self.in_flight = [0] * setting.replicas
        self.last_used = [0.0] * setting.replicas
        self.rng = Random(f"policy {setting.seed}")
        self.turn = count()
        self.mine = [[0] * setting.replicas for _ in range(setting.gateways)]
        self.seen = [[0] * setting.replicas for _ in range(setting.gateways)]
        """What each gateway takes for each replica's load."""
        self._published = [[0] * setting.replicas for _ in range(setting.gateways)]
        self._next_publish = [(self.rng.random() * setting.stale_seconds, each) for each in range(setting.gateways)]
        self._free_at = [[0.0] * SLOTS for _ in range(setting.replicas)]
        self._ends: list[tuple[float, int, int]] = []

    def advance(self, now: float) -> None:
        """Ends what has ended and publishes what was due by `now`."""
        publishes = self.setting.stale_seconds > 0 and self.setting.gateways > 1
        while publishes and self._next_publish[0][0] <= now:
            at, gateway = self._next_publish[0]
            self._end_until(at)
            self._publish(gateway)
            heapq.heapreplace(self._next_publish, (at + self.setting.stale_seconds, gateway))
        self._end_until(now)

    def _end_until(self, now: float) -> None:
        while self._ends and self._ends[0][0] <= now:
            _, replica, gateway = heapq.heappop(self._ends)
            self._count(replica, gateway, -1)

    def _publish(self, gateway: int) -> None:
        self._published[gateway] = list(self.mine[gateway])
        others = [each for number, each in enumerate(self._published) if number != gateway]
        self.seen[gateway] = [sum(each) for each in zip(self.mine[gateway], *others, strict=True)]

    def _count(self, replica: int, gateway: int, change: int) -> None:
        self.in_flight[replica] += change
        self.mine[gateway][replica] += change
        self.seen[gateway][replica] += change

    def send(self, job: Job, replica: int) -> float:
        """Returns how long it will wait there."""
        slots = self._free_at[replica]
        start = max(job.at, slots[0])
        end = start + job.work_seconds / self.speeds[replica]
        heapq.heapreplace(slots, end)
        heapq.heappush(self._ends, (end, replica, job.gateway))
        self._count(replica, job.gateway, +1)
        self.last_used[replica] = job.at
        return start - job.at


Choose = Callable[[Fleet, Job], int]
"""The replica for a request."""


def at_random(fleet: Fleet, _job: Job) -> int:
    return int(fleet.rng.random() * len(fleet.in_flight))


def round_robin(fleet: Fleet, _job: Job) -> int:
    return next(fleet.turn) % len(fleet.in_flight)


def power_of_two(fleet: Fleet, job: Job) -> int:
    """The less loaded, as this gateway sees it, of two at random."""
    seen = fleet.in_flight if fleet.setting.stale_seconds == 0 else fleet.seen[job.gateway]
    first, second = at_random(fleet, job), at_random(fleet, job)
    return first if seen[first] <= seen[second] else second


def least_exact(fleet: Fleet, _job: Job) -> int:
    """As if all gateways picked under one lock."""
    return _least(fleet.in_flight, fleet.rng)


def least_stale(fleet: Fleet, job: Job) -> int:
    return _least(fleet.in_flight if fleet.setting.stale_seconds == 0 else fleet.seen[job.gateway], fleet.rng)


def seed_order(fleet: Fleet, _job: Job) -> int:
    """LocalAI's: fewest in flight, then longest unused, then most VRAM (here alike), under one lock."""
    return min(range(len(fleet.in_flight)), key=lambda replica: (fleet.in_flight[replica], fleet.last_used[replica]))


def _least(loads: list[int], rng: Random) -> int:
    least = min(loads)
    return rng.choice([replica for replica, load in enumerate(loads) if load == least])


def run_early(setting: Setting, choose: Choose) -> Outcome:
    fleet, outcome = Fleet(setting), Outcome(setting)
    for job in setting.jobs():
        fleet.advance(job.at)
        outcome.note(job, fleet.send(job, choose(fleet, job)))
    return outcome


def run_oracle(setting: Setting) -> Outcome:
    """One queue; a free slot of the least loaded replica, whose speed it does not know either."""
    speeds, rng, outcome = setting.speeds(), Random(f"policy {setting.seed}"), Outcome(setting)
    in_flight, ends, waiting = [0] * setting.replicas, list[tuple[float, int]](), deque[Job]()

    def start(now: float, job: Job) -> None:
        replica = _least(in_flight, rng)
        in_flight[replica] += 1
        heapq.heappush(ends, (now + job.work_seconds / speeds[replica], replica))
        outcome.note(job, now - job.at)

    def end_until(now: float) -> None:
        while ends and ends[0][0] <= now:
            at, replica = heapq.heappop(ends)
            in_flight[replica] -= 1
            if waiting:
                start(at, waiting.popleft())

    for job in setting.jobs():
        end_until(job.at)
        if min(in_flight) < SLOTS:
            start(job.at, job)
        else:
            waiting.append(job)
    end_until(float("inf"))
    return outcome
