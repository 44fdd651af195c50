"""What a measurement found, and the table it is printed in."""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Figures:
    what: str
    latencies_seconds: list[float]
    elapsed_seconds: float
    tokens: int
    first_seconds: list[float]
    """From each request to the first piece of its answer."""
    gateway_cpu_seconds: float | None = None
    """CPU time of the gateway process; None where it had no part."""
    gateway_memory_bytes: int = 0
    """Resident, at the end of the load."""

    @property
    def requests(self) -> int:
        return len(self.latencies_seconds)

    def row(self) -> list[str]:
        cuts = quantiles(self.latencies_seconds, n=100)
        cpu = self.gateway_cpu_seconds
        return [
            self.what,
            f"{self.requests / self.elapsed_seconds:.0f}",
            f"{cuts[49] * 1e3:.2f}",
            f"{cuts[98] * 1e3:.2f}",
            f"{median(self.first_seconds) * 1e3:.2f}",
            f"{self.tokens / self.elapsed_seconds:.0f}",
            "-" if cpu is None else f"{cpu / self.requests * 1e6:.0f}",
            "-" if cpu is None else f"{cpu / self.tokens * 1e6:.0f}",
            "-" if cpu is None else f"{self.gateway_memory_bytes / 2**20:.0f}",
        ]


HEADER = ["what", "req/s", "p50 ms", "p99 ms", "first ms", "tok/s", "us/req", "us/tok", "MiB"]


def print_figures(figures: Iterable[Figures]) -> None:
    print_table(
        "Overhead: a backend that answers at once, called directly and through the gateway (its CPU and memory)",
        HEADER,
        [each.row() for each in figures],
    )


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """The first column holds names, the others numbers."""
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    print(f"\n{title}\n")
    for line in lines:
        cells = zip(line, widths, strict=True)
        print("  ".join(cell.rjust(width) if i else cell.ljust(width) for i, (cell, width) in enumerate(cells)))
    sys.stdout.flush()
