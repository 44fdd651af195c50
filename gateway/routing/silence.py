"""What it means that a replica says nothing to calls that wait for it: when it is asked, and when it is given up. Pure.

Two silences together are evidence, whoever waits and however many: that of the calls and that of Health.

| Health, asked `misses` times in a row or more | the calls are silent for     | then the replica                    |
|-----------------------------------------------|------------------------------|-------------------------------------|
| answers                                       | any time                     | works: they wait on                 |
| is nowhere, or its machine is not             | `Patience.silence_seconds`   | is out of reach: its calls are lost |
| is silent in any way, and its node is offline | any time                     | the same                            |
| is silent, though connections are taken       | `Witness.hung_after_seconds` | hangs: the same, and it is replaced |

The last row is for replicas that could answer. Many backends of other projects have one thread, which works on the
call: their silence is no evidence, unless they were silent before they had one, or have answered beside as many calls.
From the first question without an answer on, others are preferred.
"""

from dataclasses import dataclass, field
from enum import StrEnum, auto
from math import inf
from typing import Final

from gateway.domain.cluster import ProbeOutcome

LOOK_SECONDS_MIN: Final = 1.0
"""How long a replica that usually answers sooner may be silent before it is asked."""
LOOK_SECONDS_MAX: Final = 5.0
"""The same, of one that usually takes longer, or of which nothing is known; and from an answer to the next question."""
AGAIN_SECONDS: Final = 2.0
"""From a question without an answer to the next one."""
SELDOM_SECONDS: Final = 10.0
"""The same, once the silence has lasted for `SELDOM_AFTER_SECONDS`: each question may stay in the queue of a listener
that accepts nobody."""
SELDOM_AFTER_SECONDS: Final = 30.0
SILENCE_SECONDS_MIN: Final = 10.0
"""However short heartbeats are: longer than a network takes to find another way (TCP hands over what was sent
meanwhile), and longer than a machine that has too much to do stalls a process."""
FOREIGN_HUNG_SECONDS: Final = 60.0
"""At least, for any other one: what it does while it works is not known as well."""
FOREIGN_HUNG_SECONDS_MAX: Final = 600.0
"""For one that was silent without a request, and of which no answer is known to compare with."""
LONGEST_FACTOR: Final = 10
"""So many times the longest that a replica has ever taken to begin an answer."""


class Verdict(StrEnum):
    """Says what the silence of a replica means for its calls."""

    SUSPECT = auto()
    """Others are preferred."""
    LOST = auto()
    """It is out of reach: its calls end."""
    HUNG = auto()
    """The same, and it has to be replaced."""


@dataclass(frozen=True)
class Patience:
    """With silent replicas: the same as with silent nodes (`[health]` in the configuration)."""

    misses: int
    """Questions in a row without an answer, before silence means anything."""
    silence_seconds: float


def patience(misses: int, heartbeat_seconds: float) -> Patience:
    """Derives how long a replica may be silent from the settings for silent nodes (seconds)."""
    return Patience(misses, max(misses * heartbeat_seconds, SILENCE_SECONDS_MIN))


@dataclass
class FirstAnswers:
    """How long one replica takes to begin an answer, estimated as TCP does it with round trips (RFC 6298)."""

    longest_seconds: float = 0.0
    _mean_seconds: float | None = None
    _deviation_seconds: float = 0.0

    def note(self, seconds: float) -> None:
        """Takes in how many seconds the replica took to begin one more answer."""
        self.longest_seconds = max(self.longest_seconds, seconds)
        if self._mean_seconds is None:
            self._mean_seconds, self._deviation_seconds = seconds, seconds / 2
            return
        error = seconds - self._mean_seconds
        self._deviation_seconds += (abs(error) - self._deviation_seconds) / 4
        self._mean_seconds += error / 8

    @property
    def expected_seconds(self) -> float:
        """A silence that is longer is worth a question."""
        if self._mean_seconds is None:
            return LOOK_SECONDS_MAX
        return min(max(self._mean_seconds + 4 * self._deviation_seconds, LOOK_SECONDS_MIN), LOOK_SECONDS_MAX)


@dataclass(frozen=True)
class Witness:
    """What is known of a replica besides its silence."""

    hung_after_seconds: float = inf
    is_offline: bool = False
    """Its node is: nobody has heard of the machine for long."""


@dataclass
class Silence:
    """Follows the silence of one replica from its last sign of life on. Times are seconds of one monotonic clock."""

    since: float
    ask_at: float
    seen_at: float
    """When a call was last seen to wait in it."""
    unanswered: int = 0
    """Questions in a row."""
    _outcome: ProbeOutcome | None = field(default=None, init=False)
    _alike: int = field(default=0, init=False)
    """Answers in a row that say the same of the machine: that it is there, or that it is not."""
    _alike_since: float = field(default=0.0, init=False)

    def note_answer(self, now: float) -> None:
        """The replica has answered: it works. A next question is due only when that has become old."""
        self.since, self.ask_at, self.unanswered, self._alike = now, now + LOOK_SECONDS_MAX, 0, 0

    def note_silence(self, outcome: ProbeOutcome, now: float) -> None:
        """`outcome`: of a question, any but alive."""
        if not self._alike:
            self._alike_since = self.since
        elif (outcome is ProbeOutcome.BUSY) is not (self._outcome is ProbeOutcome.BUSY):
            self._alike, self._alike_since = 0, now
        self._outcome = outcome
        self._alike += 1
        self.unanswered += 1
        self.ask_at = now + (AGAIN_SECONDS if now - self.since < SELDOM_AFTER_SECONDS else SELDOM_SECONDS)

    def verdict(self, witness: Witness, patience: Patience, now: float) -> Verdict:
        """After a question that was not answered."""
        if witness.is_offline and self.unanswered >= patience.misses:
            return Verdict.LOST
        if self._alike < patience.misses:
            return Verdict.SUSPECT
        silent_seconds = now - self._alike_since
        if self._outcome is ProbeOutcome.BUSY:
            return Verdict.HUNG if silent_seconds >= witness.hung_after_seconds else Verdict.SUSPECT
        return Verdict.LOST if silent_seconds >= patience.silence_seconds else Verdict.SUSPECT


def hung_after_seconds(
    patience: Patience,
    *,
    answers_always: bool,
    calls: int,
    answered_beside: int,
    silent_when_idle: bool,
    longest_seconds: float,
) -> float:
    """How long a replica that has `calls` may be silent while its machine is there.

    `answers_always`: it answers Health whatever it works on. `answered_beside`: so many calls at a time have not kept
    it from doing so. `silent_when_idle`: it was silent before it had any. `longest_seconds`: it has taken so long to
    begin an answer; 0: it never had to.
    """
    if answers_always:
        return patience.silence_seconds
    least = max(patience.silence_seconds, FOREIGN_HUNG_SECONDS)
    if calls <= answered_beside:
        return least
    if silent_when_idle:
        return max(min(LONGEST_FACTOR * longest_seconds or inf, FOREIGN_HUNG_SECONDS_MAX), least)
    return inf
