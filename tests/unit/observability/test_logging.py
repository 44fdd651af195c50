"""What a log line makes of what strangers have sent: bounded, on one line, and no order to a terminal."""

import io
import json
from typing import IO, Any, cast

import pytest
import structlog

from gateway.domain.texts import QUOTED_CHARACTERS_MAX, quoted
from gateway.observability.logging import VALUE_CHARACTERS_MAX, Format, configure_logging


@pytest.fixture(autouse=True)
def _default_logging() -> object:
    yield
    structlog.reset_defaults()


def logged(capsys: pytest.CaptureFixture[str], style: Format, **values: object) -> str:
    configure_logging("info", style)
    structlog.get_logger("test").info("event", **values)
    return capsys.readouterr().err


class Writes(io.RawIOBase):
    """A standard error that keeps each write, as PYTHONUNBUFFERED has it."""

    def __init__(self) -> None:
        self.all: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.all.append(bytes(data))
        return len(data)


def test_a_line_is_one_write_so_that_processes_may_share_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    writes = Writes()
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(cast("IO[bytes]", writes), write_through=True))
    configure_logging("info", "json")
    structlog.get_logger("test").info("one")
    structlog.get_logger("test").info("two")
    assert [json.loads(each)["event"] for each in writes.all] == ["one", "two"]


def test_a_value_is_bounded_and_both_ends_are_kept(capsys: pytest.CaptureFixture[str]) -> None:
    line = logged(capsys, "json", error="begin" + "x" * 100_000 + "end")
    error = json.loads(line)["error"]
    assert len(error) < VALUE_CHARACTERS_MAX + 100
    assert error.startswith("begin")
    assert error.endswith("end")
    assert "83624 characters left out" in error


@pytest.mark.parametrize("name", ["path", "model", "error"])
def test_on_a_terminal_a_value_gives_no_orders(capsys: pytest.CaptureFixture[str], name: str) -> None:
    line = logged(capsys, "console", **{name: "a\x1b[2J\x9b1m\u202eb"})
    assert r"a\x1b[2J\x9b1m\u202eb" in line


def test_on_a_terminal_a_value_begins_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert logged(capsys, "console", path="a\nforged", model="a b\nforged", error="two\nlines").count("\n") == 1


def test_what_is_quoted_says_how_long_it_was() -> None:
    assert quoted("/v1/models") == "/v1/models"
    assert quoted("/" + "a" * 30_000) == "/" + "a" * (QUOTED_CHARACTERS_MAX - 1) + "... (30001 characters)"
    assert quoted("a\r\nb\ud800") == r"a\r\nb\ud800"
