"""How long requests wait for a slot, by routing policy, in a simulated fleet that several gateways share.

All policies get the same requests. Figures are means over the seeds, and `x oracle` says how they compare with one
queue for the whole fleet, which no set of gateways can have. Our own policy is the code that serves (late_binding.py).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import product
from statistics import fmean
from typing import Final

from bench.early_binding import (
    at_random,
    least_exact,
    least_stale,
    power_of_two,
    round_robin,
    run_early,
    run_oracle,
    seed_order,
)
from bench.late_binding import NOTHING, Sharing, run_late
from bench.report import print_table
from bench.workload import Outcome, Setting

ORACLE: Final = "oracle: one queue"
OURS: Final = "ours"
COUNTS_ONLY: Final = "ours, without older first"
ALONE: Final = "ours, nothing shared"
POLICIES: Final[Mapping[str, Callable[[Setting], Outcome]]] = {
    ORACLE: run_oracle,
    OURS: run_late,
    COUNTS_ONLY: partial(run_late, sharing=Sharing(lines=False)),
    ALONE: partial(run_late, sharing=NOTHING),
    "least in flight, exact": partial(run_early, choose=least_exact),
    "LocalAI's order, exact": partial(run_early, choose=seed_order),
    "least in flight, stale": partial(run_early, choose=least_stale),
    "power of two, stale": partial(run_early, choose=power_of_two),
    "round robin": partial(run_early, choose=round_robin),
    "random": partial(run_early, choose=at_random),
}
SEEDS: Final = 6
LOADS: Final = (0.5, 0.7, 0.85, 0.9, 0.95)
HEAVY_LOADS: Final = (0.85, 0.95)
SYNC_SECONDS: Final = 0.02
"""As `registry.lease_sync_interval`."""
VIEWS: Final = ((1, SYNC_SECONDS), *product((2, 4, 8), (SYNC_SECONDS, 0.1, 1.0)))
"""Gateways, and how often they publish."""
HARDEST: Final = Setting(load=0.95, gateways=8, stale_seconds=SYNC_SECONDS, seed=0, requests=6_000)
BRIEF_REQUESTS: Final = 2_000
QUICK_REQUESTS: Final = 1_000
TELLING_MS: Final = 0.1
"""Of shorter mean waits, a ratio says nothing."""


@dataclass(frozen=True)
class Summary:
    """Of one run, or the mean of several."""

    mean_ms: float
    p99_ms: float
    refusals: float
    """Per request."""
    unevenness: float
    """The longest mean wait of a gateway over the shortest. Chance alone makes it more than 1."""
    inside: float
    """The share of the requests that waited in a queue inside a replica."""
    inside_ms: float
    """The mean wait there, of those that did."""


Task = tuple[str, Setting]
"""A policy and where it is tried."""
Summaries = Mapping[Task, Summary]
Run = Callable[[Iterable[Task]], Summaries]


def run_routing_quality(*, quick: bool) -> None:
    """Prints its tables; `quick` has the hardest setting only, and few requests."""
    print_premises()
    with open_runs() as run:
        if quick:
            _print_policies(run, replace(HARDEST, requests=QUICK_REQUESTS), (0.85, 0.95))
            return
        _print_policies(run, HARDEST, LOADS)
        _print_views(run, replace(HARDEST, requests=BRIEF_REQUESTS))


def print_premises() -> None:
    print("\nSimulated: 32 replicas of 4 slots, speeds 1 to 4; lengths log-normal (sigma 1), 1 s at mean speed;")
    print(f"a refused call takes 1 ms; {SEEDS} seeds. Waits in ms.")


@contextmanager
def open_runs() -> Iterator[Run]:
    """What runs tasks, on all processors."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        yield partial(_run_all, pool)


def _run_all(pool: ProcessPoolExecutor, tasks: Iterable[Task]) -> Summaries:
    """Each with every seed."""
    tasks = list(tasks)
    single = [(policy, replace(setting, seed=seed)) for policy, setting in tasks for seed in range(SEEDS)]
    found = list(pool.map(_run_one, single))
    return {task: _mean(found[each * SEEDS : (each + 1) * SEEDS]) for each, task in enumerate(tasks)}


def _run_one(task: Task) -> Summary:
    policy, setting = task
    outcome = POLICIES[policy](setting)
    waits = sorted(wait for each in outcome.waits for wait in each)
    means = [max(fmean(each), TELLING_MS / 1e3) for each in outcome.waits]
    return Summary(
        mean_ms=fmean(waits) * 1e3,
        p99_ms=waits[int(len(waits) * 0.99)] * 1e3,
        refusals=outcome.refusals / setting.requests,
        unevenness=max(means) / min(means),
        inside=len(outcome.inside) / len(waits),
        inside_ms=fmean(outcome.inside or [0.0]) * 1e3,
    )


def _mean(summaries: list[Summary]) -> Summary:
    names = (field.name for field in fields(Summary))
    return Summary(**{name: fmean(getattr(each, name) for each in summaries) for name in names})


def _print_policies(run: Run, base: Setting, loads: tuple[float, ...]) -> None:
    settings = [replace(base, load=load) for load in loads]
    policies = [policy for policy in POLICIES if policy not in {COUNTS_ONLY, ALONE}]
    found = run(product(policies, settings))
    header = ["mean / p99, x oracle", *(f"{load:.0%} load" for load in loads)]
    rows = [
        [policy, *(waits_cell(found[policy, each], found[ORACLE, each]) for each in settings)] for policy in policies
    ]
    print_table(f"By policy; {base.gateways} gateways, views {base.stale_seconds * 1e3:.0f} ms old", header, rows)
    unevenness = "longest / shortest mean wait of a gateway"
    rows = [
        ["refused calls per request", *(f"{found[OURS, each].refusals:.2f}" for each in settings)],
        [unevenness, *(unevenness_cell(found[OURS, each]) for each in settings)],
        ["the same of the oracle", *(unevenness_cell(found[ORACLE, each]) for each in settings)],
    ]
    print_table("Ours in the same run", ["", *header[1:]], rows)


def _print_views(run: Run, base: Setting) -> None:
    """Where the age of views matters: the policies that look at them."""
    policies = (ORACLE, OURS, "least in flight, stale", "power of two, stale")
    settings = [
        replace(base, load=load, gateways=gateways, stale_seconds=stale)
        for (gateways, stale), load in product(VIEWS, HEAVY_LOADS)
    ]
    found = run(product(policies, settings))
    rows = [
        [
            f"{each.gateways} gateways, {each.stale_seconds * 1e3:.0f} ms, {each.load:.0%}",
            f"{found[ORACLE, each].mean_ms:.1f} / {found[ORACLE, each].p99_ms:.0f}",
            *(waits_cell(found[policy, each], found[ORACLE, each]) for policy in policies[1:]),
            f"{found[OURS, each].refusals:.2f}",
        ]
        for each in settings
    ]
    print_table("By gateways and age of views", ["mean / p99, x oracle", *policies, "refused/req"], rows)


def waits_cell(summary: Summary, oracle: Summary) -> str:
    ratio = f"{summary.mean_ms / oracle.mean_ms:.1f}" if oracle.mean_ms >= TELLING_MS else "-"
    return f"{summary.mean_ms:.1f} / {summary.p99_ms:.0f}  {ratio:>6}"


def unevenness_cell(summary: Summary) -> str:
    return f"{summary.unevenness:.2f}" if summary.mean_ms >= TELLING_MS else "-"
