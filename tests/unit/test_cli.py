"""The command line: what serves by default, what is printed, how failures are told."""

import argparse
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateway.cli import main
from gateway.cli.status import render

STATUS: dict[str, Any] = {
    "gateways": [{"id": "g", "leader": True}],
    "nodes": [{"id": "n1", "name": "box", "status": "healthy"}],
    "models": [
        {
            "name": "tiny",
            "status": "load_failed",
            "ready": 0,
            "desired": 0,
            "in_flight": 0,
            "queued": 2,
            "error": "exited with code 3\nlast output: boom",
        }
    ],
    "replicas": [],
}


class FakeGateway(BaseHTTPRequestHandler):
    """Answers from `replies`: path -> (status, content type, body)."""

    replies: ClassVar[dict[str, tuple[int, str, bytes]]] = {}
    seen: ClassVar[list[tuple[str, dict[str, str], Any]]] = []

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append((self.path, dict(self.headers), json.loads(body) if body else None))
        status, kind, content = self.replies[self.path]
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Quiet."""


@pytest.fixture
def gateway() -> Iterator[str]:
    FakeGateway.replies, FakeGateway.seen = {}, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeGateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def reply(path: str, document: object, status: int = 200) -> None:
    FakeGateway.replies[path] = (status, "application/json", json.dumps(document).encode())


def stream(*chunks: object) -> None:
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
    body = "".join([*events, "data: [DONE]\n\n"]).encode()
    FakeGateway.replies["/v1/chat/completions"] = (200, "text/event-stream", body)


def piece(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}], "usage": None}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


@pytest.mark.parametrize("arguments", [[], ["--port", "9000"], ["serve", "--port", "9000"]])
def test_serve_is_the_default_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []

    def serve(parsed: argparse.Namespace) -> int:
        seen.append(parsed)
        return 0

    monkeypatch.setattr("gateway.cli.serve.serve", serve)
    assert main(arguments) == 0
    assert seen[0].port == (9000 if arguments else None)


@pytest.mark.parametrize("arguments", [["nonsense"], ["serve", "--nonsense"], ["backend", "llama-cpp"]])
def test_bad_usage_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_check_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.toml", tmp_path / "bad.toml"
    good.write_text("[server]\nport = 9000\n")
    bad.write_text("[server]\nport = 99999\nhots = 1\n")
    assert main(["check-config", str(good)]) == 0
    assert capsys.readouterr().out == "ok\n"
    assert main(["check-config", str(bad)]) == 2
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 2
    assert problems[0].startswith(f"{bad}:2: server.port: ")
    assert problems[1].startswith(f"{bad}:3: server.hots: ")


def test_status_as_tables() -> None:
    text = "\n".join(render(STATUS))
    assert "box   healthy  n1" in text
    assert "exited with code 3" in text
    assert "boom" not in text, "one line per row"
    assert "no replicas" in text


def test_status_as_json(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/status", STATUS)
    assert main(["status", "--json", "--url", gateway, "--api-key", "k"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS
    assert FakeGateway.seen[0][1]["authorization"] == "Bearer k"


def test_a_refusal_is_one_line(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/status", {"error": {"message": "The API key is not valid."}}, status=401)
    assert main(["status", "--url", gateway]) == 1
    assert capsys.readouterr().err == "gateway: The API key is not valid.\n"


def test_nobody_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--url", "http://127.0.0.1:1"]) == 1
    assert capsys.readouterr().err.startswith("gateway: can't reach a gateway at http://127.0.0.1:1")


def test_something_else_there_is_one_line(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    FakeGateway.replies["/api/status"] = (200, "text/html", b"<html>")
    assert main(["status", "--url", gateway]) == 1
    assert "is not a gateway" in capsys.readouterr().err


def ask(monkeypatch: pytest.MonkeyPatch, *questions: str) -> None:
    waiting = iter(questions)

    def answer(*_prompt: str) -> str:
        try:
            return next(waiting)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", answer)


def test_chat_streams_and_remembers(
    gateway: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reply("/v1/models", {"data": [{"id": "a"}, {"id": "demo"}]})
    stream(piece("hel"), piece("lo"), usage(2))
    ask(monkeypatch, "hi", "", "again")
    assert main(["chat", "--url", gateway]) == 0
    shown = capsys.readouterr().out
    assert shown.count("hello") == 2
    assert "[2 tokens, first after " in shown
    first, second = [body for path, _, body in FakeGateway.seen if path == "/v1/chat/completions"]
    assert first["model"] == "demo"
    assert [message["content"] for message in second["messages"]] == ["hi", "hello", "again"]


def test_chat_says_what_went_wrong(
    gateway: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reply("/v1/chat/completions", {"error": {"message": "The model 'x' does not exist."}}, status=404)
    ask(monkeypatch, "hi")
    assert main(["chat", "x", "--url", gateway]) == 1
    assert "The model 'x' does not exist." in capsys.readouterr().err


def test_chat_says_what_went_wrong_in_the_middle(
    gateway: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stream(piece("hel"), {"error": {"message": "The backend was lost."}})
    ask(monkeypatch, "hi")
    assert main(["chat", "x", "--url", gateway]) == 1
    captured = capsys.readouterr()
    assert "hel" in captured.out
    assert "The backend was lost." in captured.err
