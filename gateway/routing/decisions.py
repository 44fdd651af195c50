"""Why requests went where they went: a ring of recent decisions, written as cheaply as they are made.

A pick stores the numbers it compared, nothing more; sentences are made only when somebody asks (`describe`).
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NamedTuple

import trio

from gateway.domain.ids import ModelName, ReplicaId, RequestId
from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate
from gateway.routing.picker import ALONE, LoadView, Policy, Score, score, why_not_chosen

DECISIONS_KEPT: Final = 1024
CANDIDATES_KEPT: Final = 16
"""Per pick, the chosen one included: a fleet of thousands must not make a pick expensive."""
CHANCE: Final = Random(0)  # noqa: S311 - only ties depend on it, and those are told as chance


class Considered(NamedTuple):
    """One candidate as it stood when a pick was made."""

    candidate: Candidate
    standing: Score


@dataclass(slots=True)
class Attempt:
    """One lease of a request, from the pick to how it ended."""

    chosen: Candidate
    considered: tuple[Considered, ...]
    picked_at: float
    registry: str | None = None
    """What the registry said of it in strict mode."""
    probe: str | None = None
    """What a probe said before the call, if one was needed."""
    outcome: str = "running"
    """`running`, `served`, `left` (the client), `failed`, or the cause of a re-route."""
    ended_at: float | None = None

    def end(self, outcome: str) -> None:
        """Records how the lease ended (see `outcome`), and that it ended now (trio clock, seconds)."""
        self.outcome = outcome
        self.ended_at = trio.current_time()


@dataclass(slots=True)
class Decision:
    """One request's way through the router."""

    model: ModelName
    origin: Origin
    asked_at: float
    attempts: list[Attempt] = field(default_factory=list)

    def picked(self, chosen: Candidate, considered: tuple[Considered, ...], now: float) -> Attempt:
        """Records that a replica was picked for the request at `now` (trio clock, seconds); returns the new attempt."""
        attempt = Attempt(chosen, considered, now)
        self.attempts.append(attempt)
        return attempt


class DecisionLog:
    """The newest decisions by request id; a repeated id replaces the older one."""

    def __init__(self, kept: int = DECISIONS_KEPT) -> None:
        self._kept = kept
        self._decisions: OrderedDict[RequestId, Decision] = OrderedDict()

    def open(self, model: ModelName, origin: Origin) -> Decision:
        """Begins the record of a request; the oldest record is dropped if there are too many then."""
        decision = Decision(model, origin, trio.current_time())
        self._decisions[origin.request_id] = decision
        self._decisions.move_to_end(origin.request_id)
        if len(self._decisions) > self._kept:
            self._decisions.popitem(last=False)
        return decision

    def find(self, request_id: RequestId) -> Decision | None:
        """Looks up the record of a request. Returns None if there is none, or newer ones have displaced it."""
        return self._decisions.get(request_id)


def consider(
    candidates: Sequence[Candidate],
    chosen: Candidate | None,
    load_of: Callable[[ReplicaId], LoadView],
    now: float,
    policy: Policy = ALONE,
) -> tuple[Considered, ...]:
    """The numbers of the chosen one and of the first others."""
    kept = list(candidates[:CANDIDATES_KEPT])
    if chosen is not None and all(each.replica_id != chosen.replica_id for each in kept):
        kept[-1] = chosen
    return tuple(Considered(each, score(each, load_of(each.replica_id), now, CHANCE, policy)) for each in kept)


def describe(decision: Decision) -> dict[str, Any]:
    """The decision as `GET /api/decisions/{id}` shows it. Times are seconds since the request asked."""
    return {
        "request_id": decision.origin.request_id,
        "model": decision.model,
        "caller": decision.origin.caller,
        "attempts": [_describe_attempt(attempt, decision.asked_at) for attempt in decision.attempts],
    }


def _describe_attempt(attempt: Attempt, asked_at: float) -> dict[str, Any]:
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
    """Each candidate with its numbers and what it lost by; the chosen one first."""
    ordered = sorted(considered, key=lambda each: (each.candidate != chosen, each.standing))
    for each in ordered:
        standing, winner = each.standing, ordered[0].standing
        is_chosen = each.candidate == chosen
        yield {
            "replica": each.candidate.replica_id,
            "node": each.candidate.node_name,
            "verdict": "chosen" if is_chosen else why_not_chosen(standing, winner) if chosen else "no free slot",
            "load": standing.load,
            "slots": each.candidate.slots,
            "free_slot": not standing.taken,
            "answers": not standing.busy,
            "unused_seconds": None if standing.last_used == float("-inf") else round(now - standing.last_used, 3),
            "free_vram_bytes": each.candidate.free_vram_bytes,
        }
