"""Decides what the silence of a replica means for calls that wait for it: when it is probed, and when it is given up.
Pure.

Two silences together are evidence, however many calls wait: the silence of the calls and that of Health.

| Health, asked `misses` times in a row or more | the calls are silent for      | then the replica                    |
|-----------------------------------------------|-------------------------------|-------------------------------------|
| answers                                       | any time                      | works: they wait on                 |
| is nowhere, or its machine is not             | `Tolerance.silence_seconds`   | is out of reach: its calls are lost |
| is silent in any way, and its node is offline | any time                      | the same                            |
| is silent, though connections are taken       | `Evidence.hung_after_seconds` | hangs: the same, and it is replaced |

The last row is for replicas that could answer. Many backends of other projects have one thread, which works on the
call. Their silence is no evidence, unless they were silent before they had a call, or have answered beside as many
calls before. From the first unanswered probe on, other replicas are preferred.
"""

from dataclasses import dataclass, field
from enum import StrEnum, auto
from math import inf
from typing import Final

from gateway.domain.cluster import ProbeOutcome

LOOK_SECONDS_MIN: Final = 1.0
"""How long a replica that usually answers sooner may be silent before it is probed."""
LOOK_SECONDS_MAX: Final = 5.0
"""The same for a replica that usually takes longer, or of which nothing is known. It is also the time between an answer
and the next probe."""
AGAIN_SECONDS: Final = 2.0
"""The time between an unanswered probe and the next one."""
SELDOM_SECONDS: Final = 10.0
"""The same, once the silence has lasted for `SELDOM_AFTER_SECONDS`. Each probe may stay in the queue of a listener that
accepts nobody."""
SELDOM_AFTER_SECONDS: Final = 30.0
SILENCE_SECONDS_MIN: Final = 10.0
"""The shortest silence that means something, however short heartbeats are. It is longer than a network takes to find
another way (TCP delivers what was sent meanwhile), and longer than an overloaded machine stalls a process."""
FOREIGN_HUNG_SECONDS: Final = 60.0
"""The least time for a backend of another project, because its behaviour while it works is not known as well."""
FOREIGN_HUNG_SECONDS_MAX: Final = 600.0
"""The time for a replica that was silent without a request, and of which no answer is known to compare with."""
LONGEST_FACTOR: Final = 10
"""The factor on the longest time that a replica has ever taken to begin an answer."""


class Verdict(StrEnum):
    """The meaning of a replica's silence for its calls."""

    SUSPECT = auto()
    """The replica is suspect, and others are preferred."""
    LOST = auto()
    """The replica cannot be reached, and its calls end."""
    HUNG = auto()
    """The replica hangs: its calls end, and it has to be replaced."""


@dataclass(frozen=True)
class Tolerance:
    """The patience with silent replicas. It follows from the settings for silent nodes (`[health]` in the
    configuration)."""

    misses: int
    """The number of unanswered probes in a row before silence means anything."""
    silence_seconds: float


def tolerance(misses: int, heartbeat_seconds: float) -> Tolerance:
    """Derives the patience with silent replicas from the settings for silent nodes (seconds)."""
    return Tolerance(misses, max(misses * heartbeat_seconds, SILENCE_SECONDS_MIN))


@dataclass(frozen=True)
class Evidence:
    """The knowledge about a replica besides its silence."""

    hung_after_seconds: float = inf
    is_offline: bool = False
    """Whether the replica's node is offline: no message has come from the machine for long."""


@dataclass
class Silence:
    """The silence of one replica since its last sign of life. Times are seconds of one monotonic clock."""

    since: float
    ask_at: float
    seen_at: float
    """The last time at which a call was seen to wait in this silence."""
    unanswered: int = 0
    """The number of unanswered probes in a row."""
    _outcome: ProbeOutcome | None = field(default=None, init=False)
    _alike: int = field(default=0, init=False)
    """The number of results in a row that agree whether the machine is there."""
    _alike_since: float = field(default=0.0, init=False)

    def record_answer(self, now: float) -> None:
        """Records that the replica has answered a probe. The next probe is due only when that answer has become old."""
        self.since, self.ask_at, self.unanswered, self._alike = now, now + LOOK_SECONDS_MAX, 0, 0

    def record_silence(self, outcome: ProbeOutcome, now: float) -> None:
        """Records a probe without an answer. `outcome` is any but alive."""
        if not self._alike:
            self._alike_since = self.since
        elif (outcome is ProbeOutcome.BUSY) is not (self._outcome is ProbeOutcome.BUSY):
            self._alike, self._alike_since = 0, now
        self._outcome = outcome
        self._alike += 1
        self.unanswered += 1
        self.ask_at = now + (AGAIN_SECONDS if now - self.since < SELDOM_AFTER_SECONDS else SELDOM_SECONDS)

    def verdict(self, evidence: Evidence, tolerance: Tolerance, now: float) -> Verdict:
        """Returns the verdict after an unanswered probe."""
        if evidence.is_offline and self.unanswered >= tolerance.misses:
            return Verdict.LOST
        if self._alike < tolerance.misses:
            return Verdict.SUSPECT
        silent_seconds = now - self._alike_since
        if self._outcome is ProbeOutcome.BUSY:
            return Verdict.HUNG if silent_seconds >= evidence.hung_after_seconds else Verdict.SUSPECT
        return Verdict.LOST if silent_seconds >= tolerance.silence_seconds else Verdict.SUSPECT


def hung_after_seconds(
    tolerance: Tolerance,
    *,
    answers_always: bool,
    calls: int,
    answered_beside: int,
    silent_when_idle: bool,
    longest_seconds: float,
) -> float:
    """Returns how long a replica with `calls` may be silent while its machine is there.

    `answers_always` says that it answers Health whatever it works on. `answered_beside` is the highest number of calls
    beside which it has answered. `silent_when_idle` says that it was silent before it had any call. `longest_seconds`
    is the longest time that it has taken to begin an answer, or 0 if it never had to.
    """
    if answers_always:
        return tolerance.silence_seconds
    least = max(tolerance.silence_seconds, FOREIGN_HUNG_SECONDS)
    if calls <= answered_beside:
        return least
    if silent_when_idle:
        return max(min(LONGEST_FACTOR * longest_seconds or inf, FOREIGN_HUNG_SECONDS_MAX), least)
    return inf
