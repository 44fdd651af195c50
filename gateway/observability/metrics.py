"""The Prometheus series. Events are counted here, and states are read from `statistics()` at scrape time.

Each gateway has a registry of its own, not the library's global one, so that several gateways can live in one process
(tests, the simulation). Labels come from configured models and fixed words only, never from a client.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Final, Generic, NoReturn, TypeVar

import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call] # they are a second series per counter that nobody asked for

LATENCY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10)
LOAD_BUCKETS = (0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
UNKNOWN_MODEL = "unknown"
"""The label's value for requests for a model that does not exist."""


M = TypeVar("M", Counter, Histogram)


class Labelled(Generic[M]):
    """A metric with labels whose series are looked up once: `labels` of the library checks and locks each time.

    Its labels come from models and fixed words, so there are only as many series as the metric itself keeps.
    """

    def __init__(self, metric: M) -> None:
        self.labels: Callable[..., M] = cache(metric.labels)
        """Returns the series with these values of the labels."""


class RequestMetrics:
    """The series about requests, written when something happens to one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.requests = Labelled(
            Counter(
                "gateway_requests",
                "Requests that have ended, by model, route and outcome (HTTP status, or `cancelled`).",
                ("model", "route", "outcome"),
                registry=registry,
            )
        )
        self.duration = Labelled(
            Histogram(
                "gateway_request_duration_seconds",
                "From the request's head to the last byte of its answer.",
                ("route",),
                buckets=LATENCY_BUCKETS,
                registry=registry,
            )
        )
        self.first_token = Labelled(
            Histogram(
                "gateway_time_to_first_token_seconds",
                "From the parsed request to the first piece of its answer.",
                ("model",),
                buckets=LATENCY_BUCKETS,
                registry=registry,
            )
        )
        self.inter_token = Labelled(
            Histogram(
                "gateway_inter_token_seconds",
                "Between two pieces of a streamed answer; pieces that came together share the time since the one "
                "before.",
                ("model",),
                buckets=TOKEN_BUCKETS,
                registry=registry,
            )
        )
        self.queue_wait = Labelled(
            Histogram(
                "gateway_queue_wait_seconds",
                "From asking for a replica to getting one, loads included.",
                ("model",),
                buckets=LATENCY_BUCKETS,
                registry=registry,
            )
        )
        self.tokens = Labelled(
            Counter(
                "gateway_tokens",
                "Tokens read (`prompt`) and written (`completion`).",
                ("model", "kind"),
                registry=registry,
            )
        )


class LoadMetrics:
    """The series about loads, written when one has ended."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.loads = Counter(
            "gateway_loads",
            "Loads that have ended, by model and outcome (`ready`, `failed`, `stopped`).",
            ("model", "outcome"),
            registry=registry,
        )
        self.seconds = Histogram(
            "gateway_load_seconds",
            "From a load's first report to its end.",
            buckets=LOAD_BUCKETS,
            registry=registry,
        )


@dataclass(frozen=True)
class Reading:
    """One value of a gauge or counter that some part of the gateway reports of itself."""

    name: str
    help: str
    labels: tuple[str, ...]
    values: tuple[tuple[tuple[str, ...], float], ...]
    """The pairs of label values and the value."""
    is_counter: bool = False

    def as_metric(self) -> Metric:
        """Returns the reading as a Prometheus metric family."""
        family = (CounterMetricFamily if self.is_counter else GaugeMetricFamily)(
            self.name, self.help, labels=self.labels
        )
        for label_values, value in self.values:
            family.add_metric(label_values, value)
        return family


class _Readings(Collector):
    """The readings of one scrape, as `prometheus_client` asks for them."""

    def __init__(self, readings: Iterable[Reading]) -> None:
        self._readings = readings

    def collect(self) -> Iterator[Metric]:
        """Yields the readings as metrics of `prometheus_client`."""
        return (reading.as_metric() for reading in self._readings)


class Metrics:
    """All series of one gateway."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = RequestMetrics(self._registry)
        self.loads = LoadMetrics(self._registry)

    def exposition(self, readings: Iterable[Reading]) -> bytes:
        """Returns all series in the text format that Prometheus scrapes: counters and histograms, and the gauges in
        `readings`."""
        now = CollectorRegistry()
        now.register(_Readings(readings))
        return generate_latest(self._registry) + generate_latest(now)


PERIOD_SECONDS: Final = 0.25
FORGET_SHARE: Final = 0.1
"""The share of the worst lag that is forgotten in each period, so that a scrape every 15 s still sees a spike."""


class LoopLag:
    """Measures how late Trio wakes a sleeping task, in seconds."""

    def __init__(self) -> None:
        self.seconds = 0.0
        """The worst recent lateness, which fades."""

    async def run(self) -> NoReturn:
        """Measures until cancelled."""
        while True:
            due = trio.current_time() + PERIOD_SECONDS
            await trio.sleep_until(due)
            self.seconds = max(trio.current_time() - due, self.seconds * (1 - FORGET_SHARE))
