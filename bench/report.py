"""What a measurement found, and the table it is printed in."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import quantiles


@dataclass(frozen=True)
class Figures:
    what: str
    latencies_seconds: list[float]
    elapsed_seconds: float
    tokens: int
    gateway_cpu_seconds: float | None = None
    """CPU time of the gateway process; None where it had no part."""

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
            f"{self.tokens / self.elapsed_seconds:.0f}",
            "-" if cpu is None else f"{cpu / self.requests * 1e6:.0f}",
            "-" if cpu is None else f"{cpu / self.tokens * 1e6:.0f}",
        ]


HEADER = ["what", "req/s", "p50 ms", "p99 ms", "tok/s", "gateway us/req", "gateway us/tok"]


def print_table(figures: Iterable[Figures]) -> None:
    rows = [HEADER, *(each.row() for each in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    for row in rows:
        print(
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
