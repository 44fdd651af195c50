"""Records why requests went where they went, in a ring of recent decisions. Recording is as cheap as deciding.

A pick stores only the numbers that it compared. `describe` makes a table and sentences of them when somebody asks.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import trio

from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate
from gateway.routing.picker import (
    ALONE,
    CANDIDATES_KEPT,
    Choice,
    Considered,
    LoadView,
    Policy,
    consider,
    why_not_chosen,
)

DECISIONS_KEPT: Final = 1024
CHANCE: Final = Random(0)  # noqa: S311 - only ties depend on it, and those are told as chance


@dataclass(slots=True)
class AttemptRecord:
    """The record of one lease of a request, from the pick to its end."""

    chosen: Candidate
    choice: Choice
    """The pick. If the registry has moved the lease since, `considered_then` has the numbers that count."""
    picked_at: float
    """When the replica was picked (Trio's clock, seconds)."""
    registry: str | None = None
    """The registry's answer in strict mode. None in the other mode."""
    probe: str | None = None
    """The result of the probe before the call. None if no probe was needed."""
    outcome: str = "running"
    """One of `running`, `served`, `left` (by the client), `failed`, or the cause of a retry."""
    ended_at: float | None = None

    considered_then: tuple[Considered, ...] | None = None
    """The numbers of the candidates when the lease was moved. None if it was not."""

    @property
    def considered(self) -> tuple[Considered, ...]:
        """The numbers that were compared. They are computed here, because nobody asks for most of them."""
        return self.choice.considered if self.considered_then is None else self.considered_then

    def move(self, chosen: Candidate, considered: tuple[Considered, ...]) -> None:
        """Records that the registry has moved the lease to another replica."""
        self.registry = f"moved from {self.chosen.replica_id}"
        self.chosen, self.considered_then = chosen, considered

    def end(self, outcome: str) -> None:
        """Records the outcome of the lease (see `outcome`) and that it ended now (Trio's clock, seconds)."""
        self.outcome = outcome
        self.ended_at = trio.current_time()


@dataclass(slots=True)
class Decision:
    """The record of one request: when it asked, and each replica that it was sent to."""

    model: ModelName
    origin: Origin
    asked_at: float
    attempts: list[AttemptRecord] = field(default_factory=list)


class DecisionLog:
    """The newest decisions by request id; a repeated id replaces the older one."""

    def __init__(self, kept: int = DECISIONS_KEPT) -> None:
        self._kept = kept
        self._decisions: OrderedDict[RequestId, Decision] = OrderedDict()

    def open(self, model: ModelName, origin: Origin, now: float) -> Decision:
        """Begins the record of a request that asks now (Trio's clock, seconds). If there are too many records, the
        oldest one is dropped."""
        decision, decisions = Decision(model, origin, now), self._decisions
        decisions[origin.request_id] = decision
        decisions.move_to_end(origin.request_id)
        if len(decisions) > self._kept:
            decisions.popitem(last=False)
        return decision

    def find(self, request_id: RequestId) -> Decision | None:
        """Looks up the record of a request. Returns None if there is none, or newer ones have displaced it."""
        return self._decisions.get(request_id)


def score_all(
    candidates: Sequence[Candidate],
    chosen: Candidate | None,
    load_of: Callable[[ReplicaId], LoadView],
    now: float,
    policy: Policy = ALONE,
) -> tuple[Considered, ...]:
    """Returns the numbers of the chosen candidate and of the first others."""
    kept = list(candidates[:CANDIDATES_KEPT])
    if chosen is not None and all(each.replica_id != chosen.replica_id for each in kept):
        kept[-1] = chosen
    return tuple(consider(each, load_of(each.replica_id), now, CHANCE, policy) for each in kept)


def describe(decision: Decision) -> dict[str, Any]:
    """Returns the decision as `GET /api/decisions/{id}` shows it. Times are seconds since the request arrived."""
    return {
        "request_id": decision.origin.request_id,
        "model": decision.model,
        "caller": decision.origin.caller,
        "attempts": [_describe_attempt(attempt, decision.asked_at) for attempt in decision.attempts],
    }


def _describe_attempt(attempt: AttemptRecord, asked_at: float) -> dict[str, Any]:
    return {
        "replica": attempt.chosen.replica_id,
        "node": attempt.chosen.node_name,
        "registry": attempt.registry,
        "probe": attempt.probe,
        "outcome": attempt.outcome,
        "picked_after": round(attempt.picked_at - asked_at, 6),
        "ended_after": None if attempt.ended_at is None else round(attempt.ended_at - asked_at, 6),
        "candidates": list(describe_candidates(attempt.considered, attempt.chosen, attempt.picked_at)),
    }


def describe_candidates(
    considered: Iterable[Considered], chosen: Candidate | None, now: float
) -> Iterator[dict[str, Any]]:
    """Yields each candidate with its numbers and the reason why it lost. The chosen one comes first."""
    ordered = sorted(considered, key=lambda each: (each.candidate != chosen, each.score))
    for each in ordered:
        score, winner = each.score, ordered[0].score
        is_chosen = each.candidate == chosen
        yield {
            "replica": each.candidate.replica_id,
            "node": each.candidate.node_name,
            "verdict": "chosen" if is_chosen else why_not_chosen(score, winner) if chosen else "no free slot",
            "load": score.load,
            "slots": each.candidate.slots,
            "free_slot": not score.taken,
            "answers": not score.busy,
            "unused_seconds": None if score.last_used == float("-inf") else round(now - score.last_used, 3),
            "free_vram_bytes": each.candidate.free_vram_bytes,
        }
