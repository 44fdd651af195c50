"""Durations, sizes, shares and port ranges: what is read, and what is said of the rest."""

import pytest

from gateway.config.units import (
    Percent,
    PortRange,
    describe,
    kind,
    parse_budget,
    parse_duration,
    parse_port_range,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("500ms", 0.5), ("30s", 30.0), ("5m", 300.0), ("2h", 7200.0), ("1.5s", 1.5), ("0s", 0.0), ("8760h", 31_536_000.0)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("value", [30, 1.5, True, "", "30", "30 s", "-1s", "1e3s", "1d", "s", "٣s", "1h30m", [], None])
def test_no_durations(value: object) -> None:
    with pytest.raises(ValueError, match=r'^expected a duration such as "500ms", "30s", "5m" or "2h", got .+'):
        parse_duration(value)


def test_a_duration_of_more_than_a_year_is_a_slip() -> None:
    with pytest.raises(ValueError, match="at most a year"):
        parse_duration("8761h")


@pytest.mark.parametrize(
    ("value", "size"),
    [
        ("12GiB", 12 * 2**30),
        ("32MiB", 32 * 2**20),
        ("500MB", 500_000_000),
        ("1.5KiB", 1536),
        ("7B", 7),
        ("2TB", 2 * 10**12),
        (4096, 4096),
        (0, 0),
    ],
)
def test_sizes(value: object, size: int) -> None:
    assert parse_size(value) == size


@pytest.mark.parametrize(
    "value", ["", "12", "12G", "12Gi", "12 GiB", "-1MiB", 1.5, True, -1, 2**63, "9999999999TiB", {}]
)
def test_no_sizes(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected a size .+, got .+"):
        parse_size(value)


def test_a_budget_is_a_size_or_a_share() -> None:
    assert parse_budget("10GiB") == 10 * 2**30
    assert parse_budget("80%") == Percent(80.0)
    assert str(Percent(80.0)) == "80%"
    assert Percent(80.0).of(10) == 8


@pytest.mark.parametrize("value", ["0%", "101%", "%", "-5%", "x%"])
def test_no_shares(value: str) -> None:
    with pytest.raises(ValueError, match=r"^expected a share above 0% and up to 100%"):
        parse_budget(value)


def test_a_port_range_has_both_ends() -> None:
    assert parse_port_range("20100-20999") == PortRange(20100, 20999)
    assert str(PortRange(20100, 20999)) == "20100-20999"


@pytest.mark.parametrize("value", ["20100", "9-1", "0-5", "1-65536", "a-b", 20100, "1-2-3"])
def test_no_port_ranges(value: object) -> None:
    with pytest.raises(ValueError, match=r"^expected (a range of )?ports"):
        parse_port_range(value)


def test_a_value_is_described_on_one_short_line() -> None:
    assert describe("a\nb") == r'"a\nb"'
    assert describe("ä") == '"ä"'
    assert describe("\u2028") == r'"\u2028"'
    assert len(describe("x" * 1000)) < 100
    assert describe(True) == "true"
    assert describe([1]) == "an array"
    assert describe(1 << 20_000) == "a number of more than 64 bits"
    assert kind(5) == "a whole number"
