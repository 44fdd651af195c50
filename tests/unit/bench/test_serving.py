"""The arithmetic of the bench, and the readers of what its programs print and send."""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import hpack
import pytest

from bench.serving.http_reader import AnswerReader
from bench.serving.load_result import LoadResult, metric_in, percentiles
from bench.serving.peers import find_program
from bench.serving.processes import cpu_clock
from bench.serving.programs import compile_program, find_compiler
from bench.serving.run import add_options, read_options
from bench.serving.sections import SECTIONS
from bench.serving.summary import Summary, differences, ratios, summarize

PRINTED = {"done": 3, "errors": 1, "tokens": 0, "seconds": 0.5, "first_token": None, "delay": None, "jitter": None}
TIMES = {"p50": 10, "p99": 20, "p999": 30, "max": 40}


def test_a_summary_is_the_median_with_its_range() -> None:
    assert summarize([5.0, 1.0, 3.0]) == Summary(3.0, 1.0, 5.0)
    assert summarize([1234.56, 1.0, 2000.0]).show(1) == "1,234.6 (1.0-2,000.0)"


def test_rounds_are_compared_with_the_same_round_of_the_base() -> None:
    assert differences([3.0, 5.0], [1.0, 2.0]) == [2.0, 3.0]
    assert ratios([3.0, 5.0], [1.0, 2.0]) == [3.0, 2.5]


def test_rounds_without_a_value_are_left_out() -> None:
    assert differences([3.0, None, 5.0], [1.0, 1.0, None]) == [2.0]
    assert ratios([3.0, None, 5.0], [0.0, 1.0, None]) == []


def test_percentiles_are_samples() -> None:
    thousand = [float(number) for number in range(1000)]
    Random(1).shuffle(thousand)
    assert percentiles(thousand) == {"p50": 500, "p99": 990, "p999": 999, "max": 999}
    assert percentiles([7.0]) == {"p50": 7, "p99": 7, "p999": 7, "max": 7}
    assert percentiles([]) is None


def test_the_line_of_a_load_generator_is_read() -> None:
    found = LoadResult.parse(json.dumps({**PRINTED, "latency": TIMES, "silence": TIMES}))
    assert (found.done, found.errors, found.seconds) == (3, 1, 0.5)
    assert found.latency is not None
    assert found.latency.p999 == 30
    assert found.delay is None


def test_a_line_that_is_cut_off_is_refused() -> None:
    with pytest.raises(ValueError, match="delimiter"):
        LoadResult.parse('{"done":3')


def test_a_metric_is_found_by_its_whole_name() -> None:
    text = "# HELP lag_seconds Lag.\nlag_seconds_total 3\nlag_seconds 0.25\n"
    assert metric_in(text, "lag_seconds") == 0.25
    assert metric_in(text, "lag") is None


def test_the_cpu_clock_of_a_process_is_that_of_the_process() -> None:
    before = time.clock_gettime(cpu_clock(os.getpid()))
    first = time.process_time()
    assert before <= first <= time.clock_gettime(cpu_clock(os.getpid()))


def test_the_options_of_a_command_line_are_read() -> None:
    parser = argparse.ArgumentParser()
    add_options(parser.add_argument_group("serving"))
    options = read_options(parser.parse_args(["--rounds", "2", "--effort", "0.1", "--section", "many"]))
    assert [each.name for each in options.chosen()] == ["many"]
    assert (options.rounds, options.effort.seconds(2.0), options.effort.count(1000, 50)) == (2, 0.2, 100)
    assert len(read_options(parser.parse_args([])).chosen()) == len(SECTIONS)
    assert [read_options(parser.parse_args(each)).processes for each in ([], ["--processes", "2"])] == [0, 2]


def test_peers_are_found_in_any_environment_below_the_folder(tmp_path: Path) -> None:
    program = tmp_path / "routers" / "bin" / "no-such-program"
    assert find_program(tmp_path, "no-such-program") is None
    program.parent.mkdir(parents=True)
    program.touch()
    assert find_program(tmp_path, "no-such-program") == str(program)


# Answers over HTTP/1.1


def _stream(*stamps: int) -> bytes:
    events = [f'data: {{"choices":[{{"delta":{{"content":"t{stamp} "}}}}]}}\n\n' for stamp in stamps]
    halves = "".join(events)
    parts = [halves[:30], halves[30:], ""]  # an event in two chunks
    body = "".join(f"{len(part):x}\r\n{part}\r\n" for part in parts)
    return f"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}".encode()


def _split(data: bytes, size: int) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 1000])
def test_a_stream_is_read_however_its_bytes_come(size: int) -> None:
    reader, stamps = AnswerReader(), list[int]()
    for part in _split(_stream(11, 12, 13), size):
        assert not reader.ended
        reader.feed(part)
        stamps += reader.stamps
    assert reader.ended
    assert stamps == [11, 12, 13]


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_a_whole_answer_ends_with_its_length(size: int) -> None:
    reader = AnswerReader()
    for part in _split(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", size):
        assert not reader.ended
        reader.feed(part)
    assert reader.ended


def test_an_answer_with_another_status_is_an_error() -> None:
    with pytest.raises(ConnectionError, match="503"):
        AnswerReader().feed(b"HTTP/1.1 503 Service Unavailable\r\n\r\n")


# Header blocks, by the decoder of the upstream in C

Headers = Sequence[tuple[str, str]]


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_program(find_compiler() or "cc", "hpack_dump", tmp_path_factory.mktemp("native"))


def _decode(decoder: Path, blocks: Sequence[bytes]) -> list[str]:
    lines = "".join(f"{block.hex()}\n" for block in blocks)
    done = subprocess.run([str(decoder)], input=lines, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.split("\n")


def _shown(headers: Headers) -> list[str]:
    return [*(f"{name}\t{value}" for name, value in headers), ""]


def _random_headers(rng: Random) -> Headers:
    text = "".join(chr(rng.randrange(33, 127)) for _ in range(rng.randrange(400)))
    path = f"/backend.Backend/{rng.choice(['Predict', 'Health'])}"
    return [(":method", "POST"), (":path", path), (f"x-{rng.randrange(40)}", text), ("te", "trailers")]


@pytest.mark.needs_programs("cc")
@pytest.mark.parametrize("table_bytes", [0, 100, 4096])
def test_header_blocks_of_one_connection_are_decoded(decoder: Path, table_bytes: int) -> None:
    rng, encoder = Random(table_bytes), hpack.Encoder()
    requests = [_random_headers(rng) for _ in range(200)]
    blocks = []
    for number, headers in enumerate(requests):
        if number == 100:
            encoder.header_table_size = table_bytes
        blocks.append(encoder.encode(headers, huffman=rng.random() < 0.7))
    assert _decode(decoder, blocks) == [*(line for each in requests for line in _shown(each)), ""]


@pytest.mark.needs_programs("cc")
@pytest.mark.parametrize(
    "block",
    [b"\x80", b"\xff\xff\xff\xff\xff\xff", b"\xfe", b"\x40", b"\x40\x05ab", b"\x00\x81\x00\x00", b"\x3f\xff\xff\x03"],
    ids=["index 0", "endless number", "no such entry", "no name", "cut off", "bad padding", "table too large"],
)
def test_a_wrong_header_block_is_an_error(decoder: Path, block: bytes) -> None:
    assert _decode(decoder, [block])[-2] == "error"
