"""What the gateway adds to calling a backend directly.

A backend that answers at once is called over gRPC directly and through a gateway over HTTP, with one connection and
with several. The figures of both sides come from the same run on the same machine, so their ratio says more than each.
"""

import sys
import tempfile
from pathlib import Path

from bench.direct import measure_direct
from bench.http_load import Load, measure_http
from bench.report import Figures, print_figures
from tests.integration.harness import ROOT, running_gateway

STREAMED_TOKENS = 200

CONFIG = """
[log]
level = "error"
[backends.instant]
command = [{python!r}, "-m", "bench.instant_backend"]
refuses_when_full = true
env = {{ PYTHONPATH = {root!r}, TOKENS = "{tokens}" }}
[[models]]
name = "instant"
backend = "instant"
parallel = 64
min_replicas = 1
"""


def run_overhead(seconds: float) -> None:
    """`seconds`: per measurement."""
    figures: list[Figures] = []
    for tokens in (1, STREAMED_TOKENS):
        with tempfile.TemporaryDirectory() as folder:
            config = CONFIG.format(python=sys.executable, root=str(ROOT), tokens=tokens)
            with running_gateway(Path(folder), config) as gateway:
                gateway.chat("instant")
                stream = tokens > 1
                for connections in (1, 16, 64) if stream else (1, 32):
                    load = Load(connections, seconds, stream=stream, tokens=tokens)
                    figures.append(measure_direct(gateway, load))
                    figures.append(measure_http(gateway, load))
    print_figures(figures)
