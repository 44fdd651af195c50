"""The programs of the bench speak what clients and backends speak, and each of its sections runs."""

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
import h2.config
import h2.connection
import h2.events
import pytest

from bench.serving.programs import ROOT, Programs, open_programs, wait_load
from bench.serving.run import Options, run_serving
from bench.serving.sections import SECTIONS, Effort
from gateway.backends.metadata import FINISH_REASON
from gateway.backends.pb import backend_pb2 as pb
from tests.fakes.ports import free_port
from tests.integration.harness import WAIT_SECONDS, environment, wait_for

IN_C: Final = pytest.param(None, marks=pytest.mark.needs_programs("cc"), id="C")
IN_PYTHON: Final = pytest.param("", id="Python")
BRIEF: Final = Effort(0.1)
MORE_THAN_A_WINDOW: Final = 4000
"""Tokens of a stream that are more than 64 KiB."""
WINDOW: Final = 65535
NO_FIELDS: Final = bytes(5)
"""A gRPC message without fields."""


@pytest.fixture(scope="module", params=[IN_C, IN_PYTHON])
def programs(request: pytest.FixtureRequest) -> Iterator[Programs]:
    with open_programs(0, compiler=request.param) as found:
        yield found


@contextmanager
def upstream_at(programs: Programs, option: str) -> Iterator[int]:
    """Yields the port of an upstream, on any core."""
    port = free_port()
    command = [*programs.upstream, option, f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, env=environment({"PYTHONPATH": str(ROOT)}))
    try:
        wait_for(lambda: _listens(port), "the upstream to listen")
        yield port
    finally:
        process.kill()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _request(prompt: str = "hello") -> pb.PredictOptions:
    return pb.PredictOptions(Prompt=prompt)


def _unary(channel: Any, method: str, request: Any, reply: Any) -> Any:
    call = channel.unary_unary(
        f"/backend.Backend/{method}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=reply.FromString,
    )
    return call.with_call(request, timeout=WAIT_SECONDS)


def _stream(channel: Any, prompt: str) -> Any:
    call = channel.unary_stream(
        "/backend.Backend/PredictStream",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=pb.Reply.FromString,
    )
    return call(_request(prompt), timeout=WAIT_SECONDS)


def test_the_upstream_speaks_backend_proto(programs: Programs) -> None:
    with upstream_at(programs, "--addr") as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        health, _ = _unary(channel, "Health", pb.HealthMessage(), pb.Reply)
        loaded, _ = _unary(channel, "LoadModel", pb.ModelOptions(), pb.Result)
        reply, call = _unary(channel, "Predict", _request(), pb.Reply)
    assert health.message == b"OK"
    assert loaded.success
    assert (reply.tokens, reply.prompt_tokens) == (12, 5)
    assert dict(call.trailing_metadata())[FINISH_REASON] == "stop"


@pytest.mark.parametrize("shape", [f"tokens={MORE_THAN_A_WINDOW}", "tokens=5 rate=500"], ids=["burst", "paced"])
def test_a_stream_has_the_shape_that_its_request_asks_for(programs: Programs, shape: str) -> None:
    with upstream_at(programs, "--addr") as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = _stream(channel, shape)
        replies = list(call)
        trailers = dict(call.trailing_metadata())
    count = int(shape.partition(" ")[0].removeprefix("tokens="))
    stamps = [int(reply.message.removeprefix(b"t")) for reply in replies]
    assert [reply.tokens for reply in replies] == list(range(1, count + 1))
    assert stamps == sorted(stamps)
    assert trailers[FINISH_REASON] == "stop"


def test_a_method_that_the_upstream_does_not_have_is_unimplemented(programs: Programs) -> None:
    with (
        upstream_at(programs, "--addr") as port,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
        pytest.raises(grpc.RpcError) as error,
    ):
        _unary(channel, "Embedding", _request(), pb.EmbeddingResult)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize("tokens", [0, 7], ids=["unary", "streams"])
def test_load_and_upstream_understand_each_other_without_a_gateway(programs: Programs, tokens: int) -> None:
    with upstream_at(programs, "--http") as port:
        options = {"port": port, "connections": 3, "seconds": 0.1, "tokens": tokens}
        result = wait_load(programs.start_load(options))
    assert result.errors == 0
    assert result.done >= 3
    assert result.tokens == result.done * tokens
    assert result.latency is not None
    assert (result.first_token is not None) == (tokens > 0)


def test_load_counts_requests_that_nobody_answers(programs: Programs) -> None:
    with socket.socket() as hangs_up:
        hangs_up.bind(("127.0.0.1", 0))
        hangs_up.listen()
        process = programs.start_load({"port": hangs_up.getsockname()[1], "connections": 1, "seconds": 0})
        connection, _ = hangs_up.accept()
        connection.recv(65536)
        connection.close()
        result = wait_load(process)
    assert (result.done, result.errors) == (0, 1)


# HTTP/2 of the upstream in C: what gRPC's own clients do not send


def headers(method: str) -> list[tuple[str, str]]:
    path = (":path", f"/backend.Backend/{method}")
    return [(":method", "POST"), (":scheme", "http"), path, (":authority", "x"), ("te", "trailers")]


class Http2Client:
    """One connection to the upstream."""

    def __init__(self, port: int) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=WAIT_SECONDS)
        self._events: list[h2.events.Event] = []
        self.h2.initiate_connection()
        self.flush()

    def close(self) -> None:
        self._socket.close()

    def flush(self) -> None:
        self._socket.sendall(self.h2.data_to_send())

    def open_window(self, stream: int | None) -> None:
        """Of a stream, or of the connection."""
        self.h2.increment_flow_control_window(1 << 20, stream_id=stream)
        self.flush()

    def received(self) -> int:
        """Bytes of all data that has come."""
        return sum(len(event.data) for event in self._events if isinstance(event, h2.events.DataReceived))

    def send_raw(self, data: bytes) -> None:
        self._socket.sendall(data)

    def open_call(self, stream: int, method: str, message: bytes = NO_FIELDS) -> None:
        self.h2.send_headers(stream, headers(method))
        self.h2.send_data(stream, message, end_stream=True, pad_length=9)
        self.flush()

    def wait(self, kind: type[h2.events.Event], stream: int | None = None) -> h2.events.Event:
        """Reads up to the first event of this kind, of this stream if one is given."""
        while True:
            for event in self._events:
                if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None)):
                    self._events.remove(event)
                    return event
            data = self._socket.recv(65536)
            assert data, "the upstream closed the connection"
            self._events += self.h2.receive_data(data)
            self.flush()


@pytest.fixture(scope="module")
def programs_in_c() -> Iterator[Programs]:
    with open_programs(0) as found:
        yield found


@pytest.fixture
def client(programs_in_c: Programs) -> Iterator[Http2Client]:
    with upstream_at(programs_in_c, "--addr") as port:
        client = Http2Client(port)
        yield client
        client.close()


def _message(prompt: str) -> bytes:
    body = _request(prompt).SerializeToString()
    return b"\0" + len(body).to_bytes(4, "big") + body


@pytest.mark.needs_programs("cc")
def test_a_ping_is_answered(client: Http2Client) -> None:
    client.h2.ping(b"12345678")
    client.flush()
    answer = client.wait(h2.events.PingAckReceived)
    assert isinstance(answer, h2.events.PingAckReceived)
    assert answer.ping_data == b"12345678"


@pytest.mark.needs_programs("cc")
def test_a_header_block_may_come_in_several_frames(client: Http2Client) -> None:
    long = [(f"x-{number}", "v" * 5000) for number in range(5)]  # more than one frame holds
    client.h2.send_headers(1, [*headers("Health"), *long])
    client.h2.send_data(1, NO_FIELDS, end_stream=True)
    client.flush()
    client.wait(h2.events.StreamEnded, 1)


@pytest.mark.needs_programs("cc")
@pytest.mark.parametrize("limit", ["stream", "connection"])
def test_a_stream_stops_at_each_window_and_goes_on(client: Http2Client, limit: str) -> None:
    windows = {"stream": 1, "connection": None}
    client.open_call(1, "PredictStream", _message(f"tokens={MORE_THAN_A_WINDOW}"))
    client.open_window(next(stream for name, stream in windows.items() if name != limit))
    client.h2.ping(b"whats up")
    client.flush()
    client.wait(h2.events.PingAckReceived)  # all that the upstream could send has come
    assert WINDOW - 100 < client.received() <= WINDOW
    client.open_window(windows[limit])
    client.wait(h2.events.StreamEnded, 1)


@pytest.mark.needs_programs("cc")
def test_a_stream_that_is_reset_ends_and_the_connection_serves_on(client: Http2Client) -> None:
    client.open_call(1, "PredictStream", _message("tokens=1000000 rate=1000"))
    client.wait(h2.events.DataReceived, 1)
    client.h2.reset_stream(1)
    client.open_call(3, "Predict")
    client.wait(h2.events.StreamEnded, 3)


@pytest.mark.needs_programs("cc")
@pytest.mark.parametrize("frame", ["ffffff000000000001", "000001010d0000000105", "000001010500000001ff"])
def test_a_frame_that_is_wrong_ends_the_connection(client: Http2Client, frame: str) -> None:
    """One that is too long, one with more padding than bytes, a header block that names an entry that is not there."""
    client.send_raw(bytes.fromhex(frame))
    with pytest.raises(AssertionError, match="closed"):
        client.wait(h2.events.StreamEnded)


# All of it


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [IN_C, IN_PYTHON])
def test_each_section_measures_the_gateway(
    compiler: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "figures.json"
    options = Options(rounds=1, effort=BRIEF, against=ROOT, peers=tmp_path, processes=2, json=saved)
    results = run_serving(options, compiler=compiler)
    assert list(results) == [each.name for each in SECTIONS]
    for section in SECTIONS:
        assert {"direct", "ours", "ours x 2", "against"} <= set(results[section.name])
        for name, rounds in results[section.name].items():
            assert [figures.get("errors", 0) for figures in rounds] == [0], (section.name, name)
    table = capsys.readouterr().out
    assert all(column.title in table for section in SECTIONS for column in section.columns)
    assert "ours is" in table
    assert saved.stat().st_size > 0
