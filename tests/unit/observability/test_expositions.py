"""One exposition of several processes: each series once for each, with its label, below the head of its family."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from gateway.observability.expositions import UP, join_expositions

ODD: str = 'a"b\\c} d{\n,='
"""A label's value that looks like everything else."""


def exposition(value: float, *, label: str = "m", extra: bool = False) -> str:
    registry = CollectorRegistry()
    Counter("requests", "Requests.", ("model",), registry=registry).labels(label).inc(value)
    Gauge("lag", "Lag.", registry=registry).set(value)
    Histogram("wait", "Wait.", ("model",), buckets=(1, 2), registry=registry).labels(label).observe(value)
    if extra:
        Gauge("extra", "Only one has it.", registry=registry).set(value)
    return generate_latest(registry).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_each_series_is_there_once_for_each_process() -> None:
    texts = {0: exposition(1.0, label=ODD), 1: exposition(3.0, label=ODD, extra=True)}
    expected = {
        (name, labels | {("process", str(number))}): value
        for number, text in texts.items()
        for (name, labels), value in samples(text).items()
    }
    found = samples(join_expositions(texts))
    ups = {key: value for key, value in found.items() if key[0] == UP}
    assert {key: value for key, value in found.items() if key not in ups} == expected
    assert list(ups.values()) == [1.0, 1.0]


def test_each_family_has_one_head_and_its_series_stand_together() -> None:
    joined = join_expositions({0: exposition(1.0), 1: exposition(3.0, extra=True)})
    families = [family.name for family in text_string_to_metric_families(joined)]
    assert len(families) == len(set(families)) == 5


def test_a_process_without_an_answer_is_counted_and_nothing_else() -> None:
    found = samples(join_expositions({0: exposition(1.0), 1: None}))
    assert found[UP, frozenset({("process", "1")})] == 0.0
    assert [name for name, labels in found if ("process", "1") in labels] == [UP]
