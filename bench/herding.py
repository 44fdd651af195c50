"""What it costs that several gateways share a fleet, with replicas that refuse when they are full and such as can't.

One that refuses is the arbiter of its slots: what gateways do not know of each other costs refused calls. One that
can't queues what it is sent, where no gateway sees it; all that keeps gateways from that is what they tell each other
every 20 ms, and chance where they see a tie. "Inside" are requests that waited in such a queue.
"""

from dataclasses import replace
from itertools import product
from typing import Final

from bench.report import print_table
from bench.routing_quality import (
    ALONE,
    BRIEF_REQUESTS,
    COUNTS_ONLY,
    HARDEST,
    ORACLE,
    OURS,
    QUICK_REQUESTS,
    Run,
    Summaries,
    open_runs,
    print_premises,
    unevenness_cell,
    waits_cell,
)
from bench.workload import Setting

LOADS: Final = (0.85, 0.90, 0.95)
GATEWAYS: Final = (1, 2, 4, 8)
SHARINGS: Final = (OURS, COUNTS_ONLY, ALONE)


def run_herding(*, quick: bool) -> None:
    """Prints its tables; `quick` has the hardest load and the most gateways only, and few requests."""
    print_premises()
    loads, gateways = (LOADS[-1:], GATEWAYS[::3]) if quick else (LOADS, GATEWAYS)
    base = replace(HARDEST, requests=QUICK_REQUESTS if quick else BRIEF_REQUESTS)
    settings = [replace(base, load=load, gateways=several) for load, several in product(loads, gateways)]
    with open_runs() as run:
        _print_waits(run, settings, "Replicas that refuse when they are full")
        _print_waits(run, [replace(each, refuses=False) for each in settings], "Replicas that can't refuse")
        if not quick:
            _print_uneven(run, base)


def _print_waits(run: Run, settings: list[Setting], title: str) -> None:
    found = run(product((ORACLE, *SHARINGS), settings))
    header = ["mean / p99, x oracle", ORACLE, *SHARINGS]
    print_table(title, header, [_wait_row(found, each) for each in settings])
    kind = "refused calls per request" if settings[0].refuses else "inside: share of requests, mean wait"
    header = [f"{kind}; longest / shortest wait of a gateway", *SHARINGS]
    print_table("The same runs", header, [_cost_row(found, each) for each in settings])


def _name(setting: Setting) -> str:
    return f"{setting.load:.0%} load, {setting.gateways} gateways"


def _wait_row(found: Summaries, setting: Setting) -> list[str]:
    oracle = found[ORACLE, setting]
    ours = (waits_cell(found[each, setting], oracle) for each in SHARINGS)
    return [_name(setting), f"{oracle.mean_ms:.1f} / {oracle.p99_ms:.0f}", *ours]


def _cost_row(found: Summaries, setting: Setting) -> list[str]:
    return [_name(setting), *(_cost(found, each, setting) for each in SHARINGS)]


def _cost(found: Summaries, policy: str, setting: Setting) -> str:
    summary = found[policy, setting]
    cost = f"{summary.refusals:.2f}" if setting.refuses else f"{summary.inside:.1%} {summary.inside_ms:.0f} ms"
    return f"{cost}; {unevenness_cell(summary)}"


def _print_uneven(run: Run, base: Setting) -> None:
    policies = (*SHARINGS, ORACLE)
    setting = replace(base, first_share=0.5)
    found = run(product(policies, [setting]))
    rows = [
        [policy, f"{summary.mean_ms:.1f}", f"{summary.p99_ms:.0f}", unevenness_cell(summary)]
        for policy in policies
        for summary in [found[policy, setting]]
    ]
    header = ["", "mean", "p99", "longest / shortest mean wait of a gateway"]
    print_table(f"Half of all requests at one of {base.gateways} gateways; {base.load:.0%} load", header, rows)
