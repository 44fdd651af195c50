"""The command line: what serves by default, what is printed, how failures are told."""

import argparse
import io
import json
import re
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from gateway.cli import main
from gateway.cli.fleet.status_tables import duration, share, tables
from gateway.cli.table import print_table, table

GPU: dict[str, Any] = {"vendor": "nvidia", "name": "NVIDIA L4", "uuid": "GPU-1"}
BOX: dict[str, Any] = {
    "id": "n1",
    "name": "box",
    "status": "healthy",
    "labels": {"tier": "gpu", "node.name": "box"},
    "capacity": {
        "gpus": [GPU, GPU],
        "vram_bytes": 48 * 2**30,
        "vram_free_bytes": 10.5 * 2**30,
        "ram_bytes": 64 * 2**30,
        "ram_free_bytes": None,
    },
    "age": 3725.4,
}
BARE: dict[str, Any] = {
    "id": "n2",
    "name": "bare",
    "status": "offline",
    "labels": {},
    "capacity": dict.fromkeys(("vram_bytes", "vram_free_bytes", "ram_bytes", "ram_free_bytes")) | {"gpus": []},
    "age": None,
}
REPLICA: dict[str, Any] = {
    "id": "r1",
    "model": "tiny",
    "node": "box",
    "state": "ready",
    "in_flight": 3,
    "slots": 4,
    "address": "127.0.0.1:20100",
    "pid": 77,
    "age": 42.9,
    "error": None,
}
STATUS: dict[str, Any] = {
    "gateways": [{"id": "g", "leader": True, "url": "http://10.0.0.1:8080"}, {"id": "h", "leader": False, "url": None}],
    "nodes": [BOX, BARE],
    "models": [
        {
            "name": "tiny",
            "status": "load_failed",
            "ready": 0,
            "desired": 0,
            "in_flight": 0,
            "queued": 2,
            "error": "exited with\033[31m code 3\nlast output: boom",
        }
    ],
    "replicas": [REPLICA],
}
ESCAPE = "\033["


class FakeGateway(BaseHTTPRequestHandler):
    """Answers from `replies`: path -> (status, content type, body)."""

    replies: ClassVar[dict[str, tuple[int, str, bytes]]] = {}
    seen: ClassVar[list[tuple[str, dict[str, str], Any]]] = []
    methods: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PATCH(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.methods.append(f"{self.command} {self.path}")
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
    FakeGateway.replies, FakeGateway.seen, FakeGateway.methods = {}, [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeGateway)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))  # looks that often whether it is over
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


def text_chunk(text: str) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}}], "usage": None}


def usage(tokens: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"completion_tokens": tokens}}


@pytest.mark.parametrize("arguments", [[], ["--port", "9000"], ["serve", "--port", "9000"]])
def test_serve_is_the_default_command(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.Namespace] = []

    def serve(parsed: argparse.Namespace) -> int:
        seen.append(parsed)
        return 0

    monkeypatch.setattr("gateway.cli.processes.serve.serve", serve)
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


def lines_of(text: str) -> list[list[str]]:
    """The cells of each line: columns are at least two spaces apart."""
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines() if line]


def test_status_as_tables(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/status", STATUS)
    assert main(["status", "--url", gateway]) == 0
    text = capsys.readouterr().out
    assert ESCAPE not in text
    assert lines_of(text) == [
        ["ID", "LEADER", "URL"],
        ["g", "yes", "http://10.0.0.1:8080"],
        ["h", "no", "-"],
        ["NAME", "STATUS", "GPUS", "VRAM FREE/TOTAL", "RAM FREE/TOTAL", "REPLICAS", "SINCE"],
        ["box", "healthy", "2 x NVIDIA L4", "10.5/48.0 GiB", "?/64.0 GiB", "1", "1h 2m"],
        ["bare", "offline", "-", "-", "-", "0", "-"],
        ["NAME", "STATUS", "READY", "DESIRED", "IN FLIGHT", "QUEUED", "ERROR"],
        ["tiny", "load_failed", "0", "0", "0", "2", "exited with [31m code 3"],
        ["MODEL", "NODE", "STATE", "AGE", "IN FLIGHT/SLOTS", "ADDRESS", "PID", "ID", "ERROR"],
        ["tiny", "box", "ready", "42s", "3/4", "127.0.0.1:20100", "77", "r1", "-"],
    ]


def test_status_of_an_empty_fleet(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/status", {"gateways": [], "nodes": [], "models": [], "replicas": []})
    assert main(["status", "--url", gateway]) == 0
    assert capsys.readouterr().out == "no gateways\n\nno nodes\n\nno models\n\nno replicas\n"


def test_a_terminal_gets_the_same_in_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    columns, rows = ("name", "status"), tables(STATUS)["nodes"]
    print_table("nodes", columns, rows)
    text = screen.getvalue()
    assert f"{ESCAPE}32mhealthy" in text
    assert lines_of(re.sub(r"\033\[[0-9;]*m", "", text)) == lines_of("\n".join(table(columns, rows)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, None), (0, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m 0s"), (3600, "1h 0m"), (90061, "1d 1h")],
)
def test_a_duration_has_its_two_largest_units(seconds: float | None, text: str | None) -> None:
    assert duration(seconds) == text


def test_what_is_not_known_of_an_amount_is_a_question_mark() -> None:
    assert share(None, 2**30) == "?/1.0 GiB"
    assert share(0, None) == "0.0/? GiB"


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
    stream(text_chunk("hel"), text_chunk("lo"), usage(2))
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
    stream(text_chunk("hel"), {"error": {"message": "The backend was lost."}})
    ask(monkeypatch, "hi")
    assert main(["chat", "x", "--url", gateway]) == 1
    captured = capsys.readouterr()
    assert "hel" in captured.out
    assert "The backend was lost." in captured.err


# Nodes


def test_nodes_are_listed(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/status", STATUS)
    assert main(["nodes", "list", "--url", gateway]) == 0
    [header, box, _] = lines_of(capsys.readouterr().out)
    assert header[-2:] == ["LABELS", "ID"]
    assert box[-2:] == ["tier=gpu, node.name=box", "n1"]


@pytest.mark.parametrize("action", ["approve", "drain", "resume"])
def test_a_node_is_administered(gateway: str, capsys: pytest.CaptureFixture[str], action: str) -> None:
    reply(f"/api/nodes/a%2Fb%20c/{action}", {**BOX, "status": "draining"})
    assert main(["nodes", action, "a/b c", "--url", gateway, "--api-key", "k"]) == 0
    assert FakeGateway.methods == [f"POST /api/nodes/a%2Fb%20c/{action}"]
    assert capsys.readouterr().out == "box: draining\n"


@pytest.mark.parametrize(("more", "query"), [([], ""), (["--force"], "?force=true")])
def test_a_node_is_removed(gateway: str, capsys: pytest.CaptureFixture[str], more: list[str], query: str) -> None:
    reply(f"/api/nodes/box{query}", {"removed": "n1"})
    assert main(["nodes", "remove", "box", "--url", gateway, *more]) == 0
    assert FakeGateway.methods == [f"DELETE /api/nodes/box{query}"]
    assert capsys.readouterr().out == "box: removed\n"


def test_a_refused_removal_is_one_line(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/nodes/box", {"error": {"message": "The node 'box' is healthy."}}, status=409)
    assert main(["nodes", "remove", "box", "--url", gateway]) == 1
    assert capsys.readouterr() == ("", "gateway: The node 'box' is healthy.\n")


@pytest.mark.parametrize("arguments", [[], ["drain"], ["explode", "box"], ["drain", "box", "--force"]])
def test_nodes_badly_used(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["nodes", *arguments])
    assert caught.value.code == 2


# Logs


@pytest.mark.parametrize("wanted", ["r1", "tiny"])
def test_logs_of_a_replica_or_of_the_only_one_of_a_model(
    gateway: str, capsys: pytest.CaptureFixture[str], wanted: str
) -> None:
    reply("/api/replicas", {"replicas": [REPLICA, {**REPLICA, "id": "r2", "model": "other"}]})
    FakeGateway.replies["/api/replicas/r1/logs?lines=5"] = (200, "text/plain", "eins\nzwei ü\n".encode())
    assert main(["logs", wanted, "-n", "5", "--url", gateway]) == 0
    assert capsys.readouterr().out == "eins\nzwei ü\n"


def test_logs_that_are_followed_to_the_end(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/replicas", {"replicas": [REPLICA]})
    chunks = [{"lines": ["one", "data: two"], "skipped": 0}, {"lines": ["three"], "skipped": 9}]
    events = [": nothing new\n\n", *(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)]
    body = "".join([*events, 'event: end\ndata: {"lines":[],"skipped":0}\n\n']).encode()
    FakeGateway.replies["/api/replicas/r1/logs?lines=100&follow=true"] = (200, "text/event-stream", body)
    assert main(["logs", "r1", "-f", "--url", gateway]) == 0
    assert capsys.readouterr().out.splitlines() == ["one", "data: two", "... 9 lines left out ...", "three"]


def test_logs_that_end_with_an_error_say_so(gateway: str, capsys: pytest.CaptureFixture[str]) -> None:
    reply("/api/replicas", {"replicas": [REPLICA]})
    body = b'data: {"lines":["one"],"skipped":0}\n\ndata: {"error":{"message":"The node is lost."}}\n\n'
    FakeGateway.replies["/api/replicas/r1/logs?lines=100&follow=true"] = (200, "text/event-stream", body)
    assert main(["logs", "r1", "-f", "--url", gateway]) == 1
    assert capsys.readouterr() == ("one\n", "gateway: The node is lost.\n")


@pytest.mark.parametrize(
    ("wanted", "said"),
    [("tiny", "gateway: 'tiny' has 2 replicas; name one of them: r1, r2\n"), ("x", "no replica has the id 'x'")],
)
def test_logs_of_nobody_in_particular(gateway: str, capsys: pytest.CaptureFixture[str], wanted: str, said: str) -> None:
    reply("/api/replicas", {"replicas": [REPLICA, {**REPLICA, "id": "r2"}]})
    assert main(["logs", wanted, "--url", gateway]) == 1
    assert said in capsys.readouterr().err


def test_logs_of_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["logs", "r1", "-n", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"])
def test_no_proxy_stands_between_the_program_and_this_machine(
    gateway: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(each, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    reply("/api/status", {"gateways": [], "nodes": [], "models": [], "replicas": []})
    assert main(["status", "--json", "--url", gateway]) == 0


@pytest.mark.parametrize("module", ["gateway.cli.fleet.status", "httpx"])
def test_a_failed_import_is_one_line(
    module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for loaded in [
        name for name in sys.modules if name.startswith("gateway.cli.fleet") or name == "gateway.cli.client"
    ]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    assert main(["status"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert module in line
    assert "install" in line
