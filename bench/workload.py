"""What all simulated policies have in common: an uneven fleet, requests of heavy-tailed length, what is measured."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random
from statistics import fmean
from typing import Final

SLOTS: Final = 4
"""Requests that a replica serves at a time."""
ROUND_TRIP_SECONDS: Final = 0.001
"""How long a refused call takes."""
WARM_UP: Final = 0.1
"""The share of the requests, the first ones, that is not measured."""
SIGMA: Final = 1.0
"""Of the log-normal lengths: the longest tenth of the requests is more than a third of the work."""


@dataclass(frozen=True)
class Setting:
    """One simulated situation. The same setting has the same requests, whatever the policy."""

    load: float
    """The share of the fleet's capacity that the requests need."""
    gateways: int
    stale_seconds: float
    """How often each gateway publishes its leases and reads those of the others: their mean age. 0: always exact."""
    seed: int
    requests: int
    replicas: int = 32
    first_share: float | None = None
    """The share of the requests that the first gateway gets; None: all gateways get alike."""
    refuses: bool = True
    """Replicas turn away what they have no slot for. Else they queue it, where no gateway sees it."""
    spread: float = 4.0
    """How many times as fast the fastest replica is as the slowest; the others are spaced evenly in ratio."""

    def speeds(self) -> list[float]:
        """Seconds of work that each replica's slots do in a second; the mean is 1."""
        raw = [self.spread ** (number / max(1, self.replicas - 1)) for number in range(self.replicas)]
        mean = fmean(raw)
        return [speed / mean for speed in raw]

    def jobs(self) -> Iterator["Job"]:
        """Independent arrivals, each at any of the gateways. The mean job is one second of work."""
        rng, now = Random(f"jobs {self.seed}"), 0.0
        rate = self.load * self.replicas * SLOTS
        for number in range(self.requests):
            now += rng.expovariate(rate)
            gateway = self._gateway(rng.random())
            yield Job(number, now, gateway, rng.lognormvariate(-SIGMA * SIGMA / 2, SIGMA))

    def _gateway(self, chance: float) -> int:
        share = self.first_share
        if share is None or self.gateways == 1:
            return int(chance * self.gateways)
        return 0 if chance < share else 1 + int((chance - share) / (1 - share) * (self.gateways - 1))


@dataclass(frozen=True, slots=True)
class Job:
    number: int
    at: float
    gateway: int
    work_seconds: float
    """At speed 1."""


@dataclass
class Outcome:
    """How long requests waited until a slot was theirs."""

    setting: Setting
    waits: list[list[float]] = field(default_factory=list)
    """Seconds, of each gateway's requests."""
    refusals: int = 0
    inside: list[float] = field(default_factory=list)
    """Seconds that requests waited inside a replica; of those that did."""

    def __post_init__(self) -> None:
        self.waits = [[] for _ in range(self.setting.gateways)]

    def note(self, job: Job, waited_seconds: float) -> None:
        if self._counts(job):
            self.waits[job.gateway].append(waited_seconds)

    def note_inside(self, job: Job, waited_seconds: float) -> None:
        if self._counts(job):
            self.inside.append(waited_seconds)

    def _counts(self, job: Job) -> bool:
        return job.number >= WARM_UP * self.setting.requests
