"""`python -m bench` (or `make bench`): measurements of the gateway; without a name, nearly all of them in brief.

overhead -- what the gateway adds to calling a backend directly
pick     -- what it costs to decide where a request goes
quality  -- how long requests wait with our routing and with others, simulated
herding  -- the same for several gateways of one fleet, whose backends refuse when they are full or can't, simulated
fleet    -- gateways of one fleet as real processes on PostgreSQL; only when asked for by name
estimate -- how far estimates of memory are from what llama.cpp reserves
path     -- how many functions of ours, in how many files, one chat runs; only when asked for by name
"""

import argparse

from bench.estimate_error import run_estimate_error
from bench.fleet import run_fleet
from bench.herding import run_herding
from bench.overhead import run_overhead
from bench.pick_cost import run_pick_cost
from bench.request_path import run_request_path
from bench.routing_quality import run_routing_quality


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("overhead", "pick", "quality", "herding", "fleet", "estimate", "path"),
        help="default: all but `fleet` and `path`, in brief",
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="of `overhead`, per measurement")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer settings, which are the hardest of `quality` and `herding`, or requests (`fleet`)",
    )
    options = parser.parse_args()
    what: str | None = options.what
    if what in ("overhead", None):
        run_overhead(options.seconds if what else 1.0)
    if what in ("pick", None):
        run_pick_cost()
    if what in ("quality", None):
        run_routing_quality(quick=options.quick or what is None)
    if what in ("herding", None):
        run_herding(quick=options.quick or what is None)
    if what == "fleet":
        run_fleet(quick=options.quick)
    if what == "path":
        run_request_path(every=not options.quick)
    if what in ("estimate", None):
        run_estimate_error(quick=options.quick or what is None)


if __name__ == "__main__":
    main()
