"""What a load generator has measured, as it prints it: one JSON object."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Self

SHARES: Final = {"p50": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}


@dataclass(frozen=True)
class Percentiles:
    """Of one kind of time, in microseconds."""

    p50: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class LoadResult:
    """One run of the load generator. A kind of time is None if there was no sample of it."""

    done: int
    errors: int
    tokens: int
    seconds: float
    latency: Percentiles | None
    """From the request to the end of its answer."""
    first_token: Percentiles | None
    """From the request to the first token of a stream."""
    delay: Percentiles | None
    """Of each token, from the upstream's stamp on."""
    jitter: Percentiles | None
    """By how much the time between two tokens differs from that at the upstream."""
    silence: Percentiles | None
    """The time without any event on any connection."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises `ValueError` if that is not what a load generator prints."""
        fields = json.loads(text)
        times = ("latency", "first_token", "delay", "jitter", "silence")
        return cls(
            done=int(fields["done"]),
            errors=int(fields["errors"]),
            tokens=int(fields["tokens"]),
            seconds=float(fields["seconds"]),
            **{name: None if fields[name] is None else Percentiles(**fields[name]) for name in times},
        )


def percentiles(samples: Sequence[float]) -> dict[str, float] | None:
    """Returns what a load generator prints of one kind of time, or None if there is no sample."""
    if not samples:
        return None
    in_order = sorted(samples)
    return {name: in_order[min(int(len(in_order) * share), len(in_order) - 1)] for name, share in SHARES.items()}


def metric_in(exposition: str, name: str) -> float | None:
    """Returns the value of a series without labels in Prometheus' text format, or None if it is not there."""
    found = re.search(rf"^{re.escape(name)} (\S+)$", exposition, re.MULTILINE)
    return float(found[1]) if found else None
