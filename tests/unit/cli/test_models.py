"""`gateway models`: what is asked of the gateway, what is printed, what is an error."""

import io
import re
from pathlib import Path
from typing import Any

import pytest

from gateway.cli import main
from gateway.cli.models.load_progress import follow_load, status_line
from gateway.cli.models.spec_arguments import BadValue, with_values
from tests.unit.cli.test_cli import ESCAPE, FakeGateway, gateway, lines_of, reply

__all__ = ["gateway"]

MODEL: dict[str, Any] = {
    "name": "org/tiny",
    "status": "ready",
    "revision": "0123456789abcdef",
    "ready": 1,
    "desired": 1,
    "min_replicas": 0,
    "max_replicas": 2,
    "in_flight": 0,
    "queued": 0,
    "source": "api",
    "error": None,
    "spec": {"backend": "llama-cpp", "artifact": "builtin:tiny", "options": {"a": "1"}},
}
READY: dict[str, Any] = {"model": "org/tiny", "state": "ready", "node": "box", "requested": False}
FETCHING: dict[str, Any] = {
    "model": "org/tiny",
    "state": "fetching",
    "node": "box",
    "progress": 0.25,
    "bytes_done": 2**30,
    "bytes_total": 4 * 2**30,
    "eta_seconds": 90.0,
    "requested": True,
}
FAILED: dict[str, Any] = {
    "model": "org/tiny",
    "state": "failed",
    "error": "exit code 3\nlast output",
    "requested": False,
}


def put_body() -> Any:
    [body] = [body for path, _, body in FakeGateway.seen if path == "/api/models/org/tiny"]
    return body


def test_models_are_listed(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    everywhere = {**MODEL, "name": "b", "max_replicas": 0, "spec": {"replicas": "all"}}
    pinned = {**MODEL, "name": "c", "spec": {"pinned": True}}
    reply("/api/models", {"models": [MODEL, {**MODEL, "name": "a", "max_replicas": 0}, everywhere, pinned]})
    assert main(["models", "list", "--url", gateway]) == 0
    header, *rows = lines_of(capsys.readouterr().out)
    at = header.index("MIN/MAX")
    assert [(row[0], row[at]) for row in rows] == [
        ("org/tiny", "0/2"),
        ("a", "0/any"),
        ("b", "every node"),
        ("c", "0/2 pinned"),
    ]


@pytest.mark.parametrize(
    ("action", "request_line", "said"),
    [
        ("unload", "POST /api/models/org/tiny/unload", "org/tiny: unloads once its requests have ended\n"),
        ("remove", "DELETE /api/models/org/tiny", "org/tiny: removed\n"),
    ],
)
def test_a_model_is_loaded_unloaded_and_changed(
    gateway: str, capsys: pytest.CaptureFixture[str], action: str, request_line: str, said: str
) -> None:
    reply(request_line.partition(" ")[2], MODEL)
    assert main(["models", action, "org/tiny", "--url", gateway]) == 0
    assert FakeGateway.methods == [request_line]
    assert capsys.readouterr().out == said


def test_a_name_is_quoted_in_its_path(gateway: str) -> None:
    reply("/api/models/a%3Fb%20c/unload", MODEL)
    assert main(["models", "unload", "a?b c", "--url", gateway]) == 0


def test_a_refusal_is_one_line(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/models/tiny", {"error": {"message": "It is declared in the file."}}, status=409)
    assert main(["models", "remove", "tiny", "--url", gateway]) == 1
    assert capsys.readouterr() == ("", "gateway: It is declared in the file.\n")


# Loading


def test_a_load_is_waited_for(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/models/org/tiny/load", {**READY, "state": "placed", "requested": True}, status=202)
    reply("/api/models/org/tiny/load-status", READY)
    assert main(["models", "load", "org/tiny", "--url", gateway]) == 0
    assert capsys.readouterr().out.splitlines() == ["org/tiny: placed, on box", "org/tiny: ready, on box"]


def test_a_load_is_not_waited_for(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/models/org/tiny/load", FETCHING, status=202)
    assert main(["models", "load", "org/tiny", "--no-wait", "--url", gateway]) == 0
    assert FakeGateway.methods == ["POST /api/models/org/tiny/load"]
    assert capsys.readouterr().out == "org/tiny: fetching, 25% of 4 GiB, 1m 30s to go, on box\n"


def test_l10_a_load_that_fails_says_why(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/models/org/tiny/load", {**FETCHING}, status=202)
    reply("/api/models/org/tiny/load-status", FAILED)
    assert main(["models", "load", "org/tiny", "--url", gateway]) == 1
    assert capsys.readouterr().err == "gateway: org/tiny: failed, exit code 3\n"


@pytest.mark.parametrize(
    "end", [{**FAILED, "state": "unsatisfiable", "requested": True}, {**FAILED, "state": "not_loaded"}, READY, FAILED]
)
def test_l9_an_earlier_failure_is_not_the_end_of_a_load_that_is_wanted(end: dict[str, Any]) -> None:
    states = iter([{**FAILED, "requested": True}, {**FAILED, "state": "not_loaded", "requested": True}, FETCHING, end])
    assert follow_load({**FAILED, "requested": True}, lambda: next(states), poll_seconds=0) == end


def test_progress_alone_is_no_new_line(capsys: pytest.CaptureFixture[str]) -> None:
    states = iter([{**FETCHING, "progress": 0.5}, {**FETCHING, "progress": 0.75}, READY])
    follow_load(FETCHING, lambda: next(states), poll_seconds=0)
    assert [line.partition(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "org/tiny: fetching",
        "org/tiny: ready",
    ]


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    states = iter([FETCHING, READY])
    follow_load({**FETCHING, "progress": 0.1}, lambda: next(states), poll_seconds=0)
    text = re.sub(rf"{ESCAPE}[0-9;?]*[a-zA-Z]".replace("[", r"\[", 1), "", screen.getvalue())
    assert "━" in text
    assert "org/tiny: ready, on box" in text


def test_a_status_line_steers_no_terminal() -> None:
    line = status_line({**FAILED, "error": "boom\033[31m", "retry_at": 0.0})
    assert ESCAPE not in line
    assert line.startswith("org/tiny: failed, boom")
    assert "next try at " in line


# Changing


def test_a_spec_comes_from_a_file(gateway: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "spec.toml"
    file.write_text('name = "org/tiny"\nbackend = "llama-cpp"\n[options]\na = 2\n')
    reply("/api/models/org/tiny", MODEL, status=201)
    assert main(["models", "set", "org/tiny", "--file", str(file), "--url", gateway]) == 0
    assert put_body() == {"backend": "llama-cpp", "options": {"a": 2}}
    assert capsys.readouterr().out == "org/tiny: ready, revision 0123456789ab\n"


def test_a_spec_comes_from_the_standard_input(gateway: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'backend = "other"\n')))
    reply("/api/models/org/tiny", MODEL)
    assert main(["models", "set", "org/tiny", "--file", "-", "--url", gateway]) == 0
    assert put_body() == {"backend": "other"}


def test_values_change_what_there_is(gateway: str) -> None:
    reply("/api/models", {"models": [MODEL]})
    reply("/api/models/org/tiny", MODEL)
    values = ["context_size=4096", "options.a=", "options.b=x y", "artifact=file:m.gguf", "load_timeout=5m"]
    assert main(["models", "set", "org/tiny", *values, "--url", gateway]) == 0
    assert put_body() == {
        "backend": "llama-cpp",
        "artifact": "file:m.gguf",
        "options": {"b": "x y"},
        "context_size": 4096,
        "load_timeout": "5m",
    }


def test_values_make_a_new_model(gateway: str) -> None:
    reply("/api/models", {"models": []})
    reply("/api/models/org/tiny", MODEL, status=201)
    assert main(["models", "set", "org/tiny", "backend=other", "--url", gateway]) == 0
    assert put_body() == {"backend": "other"}


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        ("x", "expected KEY=VALUE"),
        ("=x", "expected KEY=VALUE"),
        ("a.b=1", "a is no table"),
        ("c=1979-05-27", "c: is a"),
    ],
)
def test_values_badly_given(pair: str, said: str) -> None:
    with pytest.raises(BadValue, match=said):
        with_values({"a": 1}, [pair])


@pytest.mark.parametrize(
    ("text", "said"),
    [('name = "b"', "is of another model"), ("name = ", "is not valid TOML"), ("a = 1979-05-27", "a: is a date")],
)
def test_a_file_badly_written_is_bad_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    file = tmp_path / "spec.toml"
    file.write_text(text)
    assert main(["models", "set", "a", "--file", str(file)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["a=1", "--file", "x"], ["--file", "/nowhere/spec.toml"]])
def test_neither_or_both_or_nothing_there_is_bad_usage(arguments: list[str]) -> None:
    assert main(["models", "set", "a", *arguments]) == 2


@pytest.mark.parametrize("arguments", [[], ["load"], ["explode", "a"], ["unload", "a", "--wait"]])
def test_models_badly_used(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["models", *arguments])
    assert caught.value.code == 2
