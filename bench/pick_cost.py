"""What it costs to decide where a request goes: CPU time of this process, the best of several rounds."""

import time
from collections.abc import Callable
from random import Random
from typing import Final

import trio

from bench.report import print_table
from gateway.domain.ids import RequestId
from gateway.domain.inference import Origin
from gateway.domain.routability import Candidate
from gateway.routing.admission import Admission, AdmissionLimits
from gateway.routing.decisions import score_all
from gateway.routing.load_tracker import LoadTracker
from gateway.routing.picker import Policy, pick
from tests.fakes.fleet import MODEL, replica, spec, view

FLEETS: Final = (1, 4, 10, 100, 1_000, 10_000)
WARM_FLEETS: Final = FLEETS
ROUNDS: Final = 5
ROUND_SECONDS: Final = 0.05
SLOTS: Final = 4
ORIGIN: Final = Origin(RequestId("bench"))
LIMITS: Final = AdmissionLimits(60, 60, 100, 0.02)


def run_pick_cost() -> None:
    rows = [[f"{size:,}", *(f"{each:.2f}" for each in _pick_costs(size))] for size in FLEETS]
    header = ["replicas", "pick", "several gateways", "all taken", "consider"]
    print_table("Pick cost, microseconds", header, rows)
    rows = [[f"{size:,}", f"{_warm_cost(size):.2f}"] for size in WARM_FLEETS]
    title = "A warm request's way through admission, microseconds: ticket, pick, decision log, lease and its end"
    print_table(title, ["replicas", "wait_lease"], rows)


def _pick_costs(size: int) -> list[float]:
    """Alone, among several gateways, with every slot taken, and what the decision log keeps of a pick."""
    candidates = _candidates(size)
    loads, rng, now = _table(candidates, lambda number: number % SLOTS), Random(1), float(size)
    full = _table(candidates, lambda _number: SLOTS)
    several = Policy(tie_break_by_chance=True)
    return [
        _microseconds(lambda: pick(candidates, loads.load_of, now, rng)),
        _microseconds(lambda: pick(candidates, loads.load_of, now, rng, several)),
        _microseconds(lambda: pick(candidates, full.load_of, now, rng)),
        _microseconds(lambda: score_all(candidates, candidates[-1], loads.load_of, now)),
    ]


def _candidates(size: int) -> tuple[Candidate, ...]:
    of = spec(parallel=SLOTS)
    fleet = (replica(f"r{number:05}", of, slot=number) for number in range(size))
    return view(*fleet, specs=[of]).candidates[MODEL]


def _table(candidates: tuple[Candidate, ...], leases_of: Callable[[int], int]) -> LoadTracker:
    loads = LoadTracker()
    for number, candidate in enumerate(candidates):
        for _ in range(leases_of(number)):
            loads.lease(candidate, ORIGIN, float(number))
    return loads


def _warm_cost(size: int) -> float:
    of = spec(parallel=SLOTS)
    fleet = view(*(replica(f"r{number}", of, slot=number) for number in range(size)), specs=[of])

    async def measure() -> float:
        admission = Admission(lambda: fleet, LIMITS, wall_clock=time.time, rng=Random(1))

        def once() -> None:
            waiting = admission.wait_lease(admission.open_request(MODEL, ORIGIN))
            try:
                waiting.send(None)  # a warm one does not even yield
            except StopIteration as got:
                got.value.release()

        return _microseconds(once)

    return trio.run(measure)


def _microseconds(call: Callable[[], object]) -> float:
    """Per call."""
    calls = 1
    while (took := _time(call, calls)) < ROUND_SECONDS:
        calls = max(calls * 2, int(calls * ROUND_SECONDS / max(took, 1e-9)))
    return min(_time(call, calls) for _ in range(ROUNDS)) / calls * 1e6


def _time(call: Callable[[], object], calls: int) -> float:
    began = time.process_time()
    for _ in range(calls):
        call()
    return time.process_time() - began
