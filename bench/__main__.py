"""`python -m bench` (or `make bench`): measurements of the gateway; without a name, nearly all of them in brief.

serving  -- what the gateway costs and adds, beside its upstream alone, another checkout and peers
pick     -- what it costs to decide where a request goes
quality  -- how long requests wait with our routing and with others, simulated
herding  -- the same for several gateways of one fleet, whose backends refuse when they are full or can't, simulated
fleet    -- gateways of one fleet as real processes on PostgreSQL; only when asked for by name
estimate -- how far estimates of memory are from what llama.cpp reserves
path     -- how many functions of ours, in how many files, one chat runs; only when asked for by name
"""

import argparse
import signal
import sys

from bench.estimate_error import run_estimate_error
from bench.fleet import run_fleet
from bench.herding import run_herding
from bench.pick_cost import run_pick_cost
from bench.request_path import run_request_path
from bench.routing_quality import run_routing_quality
from bench.serving.run import add_options, read_options, run_serving


def main() -> None:
    """Measures what the command line names."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was started is ended then, too
    parser = argparse.ArgumentParser(
        prog="python -m bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "what",
        nargs="?",
        choices=("serving", "pick", "quality", "herding", "fleet", "estimate", "path"),
        help="default: all but `fleet` and `path`, in brief",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="fewer settings, which are the hardest of `quality` and `herding`, or requests (`fleet`)",
    )
    add_options(parser.add_argument_group("serving"))
    options = parser.parse_args()
    what: str | None = options.what
    if what in ("serving", None):
        run_serving(read_options(options))
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
