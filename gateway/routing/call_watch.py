"""Watches open calls, and ends those whose replica cannot be reached or hangs.

A call that waits for its backend shows both. A call that waits for its client shows only that nobody is there any more:
a backend that may send nothing at the moment is silent without any fault of its own.

One loop watches all calls of this gateway, so a call costs nothing beyond its entry in `OpenCalls`. `silence` decides
what each silence means; this module asks the replicas and acts on the verdict.
"""

from collections.abc import Callable, Collection, Iterable
from typing import Final

import structlog
import trio

from gateway.domain.cluster import ProbeOutcome
from gateway.domain.ids import ReplicaId
from gateway.routing.load_tracker import NEVER, LoadTracker
from gateway.routing.open_calls import OpenCall, OpenCalls
from gateway.routing.probe_cache import ProbeCache
from gateway.routing.silence import (
    AGAIN_SECONDS,
    LOOK_SECONDS_MIN,
    Evidence,
    Silence,
    Tolerance,
    Verdict,
    hung_after_seconds,
)

log = structlog.get_logger(__name__)

LOOK_PAUSE_SECONDS: Final = 1.0
"""The pause between two looks at the open calls."""
ASIDE_SECONDS: Final = 3.0
"""How long other replicas are preferred to one that is being probed or has not answered. Each look renews it."""
FORGET_SECONDS: Final = 10.0
"""The age at which a silence is forgotten if no call is open in it: what was observed may have changed."""


class CallWatch:
    """`run` watches until it is cancelled."""

    def __init__(
        self,
        calls: OpenCalls,
        loads: LoadTracker,
        probes: ProbeCache,
        *,
        tolerance: Tolerance,
        is_offline: Callable[[ReplicaId], bool],
    ) -> None:
        """`is_offline` says whether the node of a replica is offline."""
        self._calls = calls
        self._loads = loads
        self._probes = probes
        self._tolerance = tolerance
        self._is_offline = is_offline
        self._silences: dict[ReplicaId, Silence] = {}
        self._asked: set[ReplicaId] = set()
        """The replicas that are being probed now."""
        self._answered_beside: dict[ReplicaId, int] = {}
        """The highest number of calls that each replica had while it answered Health."""

    async def run(self) -> None:
        """Probes replicas whose calls are silent, and ends the calls of those that are lost; runs until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._calls.wait_some_open()
                for replica_id in self._due(trio.current_time()):
                    nursery.start_soon(self._ask, replica_id, self._silences[replica_id])
                await trio.sleep(LOOK_PAUSE_SECONDS)

    def keep_only(self, fleet: Iterable[ReplicaId]) -> None:
        """Forgets replicas that are not in the fleet any more, and ends their calls."""
        known = frozenset(fleet)
        self._calls.keep_only(known)
        self._answered_beside = {each: calls for each, calls in self._answered_beside.items() if each in known}

    def _due(self, now: float) -> list[ReplicaId]:
        """Returns the replicas that have to be probed now."""
        due = [replica_id for replica_id in self._calls.open if self._is_due(replica_id, now)]
        self._silences = {
            each: silence for each, silence in self._silences.items() if now - silence.seen_at < FORGET_SECONDS
        }
        return due

    def _is_due(self, replica_id: ReplicaId, now: float) -> bool:
        silence = self._silence_of(replica_id, self._watched(replica_id))
        silence.seen_at = now
        due = now >= silence.ask_at and replica_id not in self._asked
        if silence.unanswered or (due and self._calls.waiting_for(replica_id)):
            self._loads.record_busy(replica_id, now + ASIDE_SECONDS)
        return due

    def _watched(self, replica_id: ReplicaId) -> Collection[OpenCall]:
        """Returns the calls that wait for the replica, or if there are none, those that wait for their clients."""
        return self._calls.waiting_for(replica_id) or self._calls.open.get(replica_id, ())

    def _silence_of(self, replica_id: ReplicaId, calls: Iterable[OpenCall]) -> Silence:
        """Returns the silence of the replica. A silence begins with the last sign of life or with the first wait, and
        no other wait begins or ends it."""
        last_contact_at, known = self._probes.last_contact_at(replica_id), self._silences.get(replica_id)
        if known is not None and last_contact_at <= known.since:
            return known
        since = max(last_contact_at, min(call.waiting_since for call in calls))
        expected = self._calls.first_answers[replica_id].expected_seconds
        silence = self._silences[replica_id] = Silence(since, since + expected, seen_at=since)
        return silence

    async def _ask(self, replica_id: ReplicaId, silence: Silence) -> None:
        calls, waited = tuple(self._watched(replica_id)), bool(self._calls.waiting_for(replica_id))
        if not calls:
            return
        settled = {
            call: call.waiting_since for call in calls if trio.current_time() - call.waiting_since >= LOOK_SECONDS_MIN
        }
        self._asked.add(replica_id)
        try:
            outcome = await self._probes.ask(calls[0].target)
        finally:
            self._asked.discard(replica_id)
        if outcome is ProbeOutcome.ALIVE:
            self._record_alive(replica_id, silence, settled)
        elif outcome is ProbeOutcome.BUSY and not waited:
            silence.ask_at = trio.current_time() + AGAIN_SECONDS  # It may be unable to go on before a client reads.
        elif self._probes.last_contact_at(replica_id) <= silence.since:
            silence.record_silence(outcome, trio.current_time())
            self._apply_outcome(calls[0], silence, outcome)

    def _record_alive(self, replica_id: ReplicaId, silence: Silence, settled: dict[OpenCall, float]) -> None:
        """Records that the replica answered. `settled` has the calls that had arrived there before the probe; the
        replica works on those that still wait."""
        still = self._calls.waiting_for(replica_id)
        beside = sum(call in still and call.waiting_since == since for call, since in settled.items())
        self._answered_beside[replica_id] = max(beside, self._answered_beside.get(replica_id, 0))
        self._loads.record_busy(replica_id, NEVER)
        silence.record_answer(trio.current_time())

    def _apply_outcome(self, asked_for: OpenCall, silence: Silence, outcome: ProbeOutcome) -> None:
        """Acts on a failed probe. A call need not be waiting at this moment: the one that waited may have left, and the
        next one is on its way."""
        replica_id, now = asked_for.target.replica_id, trio.current_time()
        verdict = silence.verdict(self._evidence(asked_for), self._tolerance, now)
        if silence.unanswered == 1:
            log.info("calls.replica_suspect", replica_id=replica_id, probe=outcome.value)
        if verdict is Verdict.SUSPECT:
            return
        # A request that arrives before the replica is out of routing does not wait as long again.
        silence.ask_at = now + AGAIN_SECONDS
        because = f"neither its calls nor Health were answered for {now - silence.since:.0f} s"
        ended = self._calls.end_lost(replica_id, because)
        log.warning("calls.lost", replica_id=replica_id, verdict=verdict.value, because=because, calls=ended)
        if verdict is Verdict.HUNG:
            self._probes.report_broken(replica_id, f"it hangs: {because}")

    def _evidence(self, call: OpenCall) -> Evidence:
        replica_id = call.target.replica_id
        after = hung_after_seconds(
            self._tolerance,
            answers_always=call.answers_always,
            calls=self._loads.in_flight(replica_id),
            answered_beside=self._answered_beside.get(replica_id, 0),
            silent_when_idle=self._probes.was_silent_when_idle(replica_id),
            longest_seconds=self._calls.first_answers[replica_id].longest_seconds,
        )
        return Evidence(after, self._is_offline(replica_id))
