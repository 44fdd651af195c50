"""Whatever a worker sends: a message is refused by a sentence, or what comes out is within its bounds."""

from math import inf, isfinite, nan
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.host_port import split_address
from gateway.domain.lifecycle import Observed
from gateway.domain.resources import Capacity, Gpu
from gateway.domain.session import Hello, LogChunk, Report
from gateway.transport import codec as wire
from gateway.transport import validation as bounds
from gateway.transport.advertised import AdvertisedHost
from gateway.transport.errors import MessageRefused
from gateway.transport.pb import worker_pb2 as pb

MOST: Final = 2**63 - 1
TEXT = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(
    ["127.0.0.1:80", "\x1b[2J", "a\nb", "x" * 100_000, "[::1]:9", "169.254.169.254:80", "\u202e"]
)
WHOLE = st.sampled_from([0, 1, -1, 4096, 4097, MOST, -MOST - 1]) | st.integers(-MOST - 1, MOST)
NUMBER = st.none() | WHOLE
FLOAT = st.none() | st.floats()
STATES = st.sampled_from([*Observed, "", "READY"])

REPORTS = st.builds(
    pb.Report,
    replica_id=TEXT,
    observed=STATES,
    address=st.none() | TEXT,
    pid=NUMBER,
    parallel=NUMBER,
    exit_code=NUMBER,
    error=st.none() | TEXT,
    done_bytes=NUMBER,
    total_bytes=NUMBER,
    ram_bytes=NUMBER,
    vram_bytes=NUMBER,
)
GPUS = st.builds(pb.Gpu, vendor=TEXT, name=TEXT, uuid=TEXT, vram_bytes=NUMBER, vram_free_bytes=NUMBER)
CAPACITIES = st.builds(
    pb.Capacity,
    gpus=st.lists(GPUS, max_size=2),
    ram_bytes=NUMBER,
    ram_free_bytes=NUMBER,
    disk_bytes=NUMBER,
    disk_free_bytes=NUMBER,
    cpu_count=NUMBER,
    cpu_flags=st.lists(TEXT, max_size=2),
)
HELLOS = st.builds(
    pb.Hello,
    protocol=st.just(wire.PROTOCOL),
    node_id=TEXT,
    name=TEXT,
    boot_id=TEXT,
    labels=st.dictionaries(TEXT, TEXT, max_size=2),
    max_replicas_per_model=NUMBER,
    capacity=CAPACITIES,
    vram_budget=st.builds(pb.VramBudget, amount=NUMBER, share=FLOAT),
    replicas=st.lists(REPORTS, max_size=2),
    advertise=st.none() | TEXT,
)
CHUNKS = st.builds(
    pb.LogChunk,
    tail=WHOLE,
    lines=st.lists(TEXT, max_size=2),
    skipped=WHOLE,
)
SAID = (
    st.builds(lambda report: pb.FromWorker(report=report), REPORTS)
    | st.builds(lambda capacity: pb.FromWorker(capacity=capacity), CAPACITIES)
    | st.builds(lambda chunk: pb.FromWorker(log_chunk=chunk), CHUNKS)
)


def check_number(value: int | None, low: int = 0, high: int = MOST) -> None:
    assert value is None or low <= value <= high


def check_word(text: str) -> None:
    assert text.isprintable()
    assert len(text) <= 10 * bounds.WORD_CHARACTERS_MAX  # an escape has up to ten characters


def check_report(report: Report) -> None:
    check_number(report.parallel, 1, 4096)
    check_number(report.pid, 0, 2**31 - 1)
    check_number(report.exit_code, -(2**31) + 1, 2**31 - 1)
    for amount in (report.done_bytes, report.total_bytes, report.ram_bytes, report.vram_bytes):
        check_number(amount)
    if report.error is not None:
        assert report.error.replace("\n", "").replace("\t", "").isprintable()
        assert len(report.error) <= 10 * bounds.ERROR_CHARACTERS_MAX
    if report.address is not None:
        _, port = split_address(report.address)
        assert 1 <= port <= 65535


def check_gpu(gpu: Gpu) -> None:
    for word in (gpu.vendor, gpu.name, gpu.uuid):
        check_word(word)
    check_number(gpu.vram_bytes, 0, 2**50)
    check_number(gpu.vram_free_bytes, 0, 2**50)


def check_capacity(capacity: Capacity) -> None:
    for gpu in capacity.gpus:
        check_gpu(gpu)
    for flag in capacity.cpu_flags:
        check_word(flag)
    amounts = capacity.ram_bytes, capacity.ram_free_bytes, capacity.disk_bytes, capacity.disk_free_bytes
    for amount in (*amounts, capacity.cpu_count):
        check_number(amount)
    check_number(capacity.vram_bytes)


def check_hello(hello: Hello) -> None:
    for word in (hello.name, hello.node_id, hello.boot_id, *hello.labels, *hello.labels.values()):
        check_word(word)
    check_number(hello.max_replicas_per_model, 1, 2**31 - 1)
    check_number(hello.vram_budget.amount)
    share = hello.vram_budget.share
    assert share is None or (isfinite(share) and 0 < share <= 1)
    check_capacity(hello.capacity)


@given(HELLOS)
def test_any_hello_is_refused_or_within_its_bounds(message: pb.Hello) -> None:
    try:
        hello = wire.read_hello(pb.FromWorker(hello=message))
        assert hello is not None
        advertised = AdvertisedHost.of_hello(hello, "127.0.0.1")
    except MessageRefused as refusal:
        check_word(str(refusal))
        return
    check_hello(hello)
    for report in hello.replicas:
        check_report(advertised.checked(report))


@given(SAID)
def test_anything_else_that_a_worker_says_is_refused_or_within_its_bounds(message: pb.FromWorker) -> None:
    try:
        record = wire.read_from_worker(message)
    except MessageRefused as refusal:
        check_word(str(refusal))
        return
    match record:
        case Report():
            check_report(AdvertisedHost(None, "127.0.0.1").checked(record))
        case Capacity():
            check_capacity(record)
        case LogChunk(tail, _, skipped):
            check_number(tail)
            check_number(skipped)


def hello(**fields: Any) -> pb.FromWorker:
    return pb.FromWorker(hello=pb.Hello(protocol=wire.PROTOCOL, node_id="n", name="x", boot_id="b", **fields))


@pytest.mark.parametrize("share", [nan, inf, -inf, 0.0, -1e300, 1e300, 1.0000001])
def test_a_share_of_what_is_no_part_is_refused(share: float) -> None:
    with pytest.raises(MessageRefused, match=r"VramBudget.share has to be above 0 and at most 1"):
        wire.read_hello(hello(vram_budget=pb.VramBudget(share=share)))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_replicas_per_model": 0}, "Hello.max_replicas_per_model"),
        ({"max_replicas_per_model": MOST}, "Hello.max_replicas_per_model"),
        ({"capacity": pb.Capacity(ram_bytes=-1)}, "Capacity.ram_bytes"),
        ({"capacity": pb.Capacity(cpu_count=MOST)}, "Capacity.cpu_count"),
        ({"capacity": pb.Capacity(gpus=[pb.Gpu(vram_bytes=MOST)])}, "Gpu.vram_bytes"),
        ({"capacity": pb.Capacity(gpus=[pb.Gpu()] * 65)}, "Capacity.gpus"),
        ({"capacity": pb.Capacity(cpu_flags=["f"] * 1025)}, "Capacity.cpu_flags"),
        ({"labels": {str(number): "" for number in range(1025)}}, "Hello.labels"),
    ],
)
def test_what_can_not_be_is_refused_by_its_name(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(MessageRefused, match=named):
        wire.read_hello(hello(**fields))


@pytest.mark.parametrize("parallel", [MOST, -MOST, 0, 4097])
def test_a_replica_that_serves_so_many_requests_at_a_time_has_failed(parallel: int) -> None:
    said = pb.Report(replica_id="r", observed="ready", address="127.0.0.1:9", parallel=parallel)
    report = wire.read_from_worker(pb.FromWorker(report=said))
    assert isinstance(report, Report)
    assert (report.observed, report.parallel, report.address) == (Observed.FAILED, None, None)
    assert report.error is not None
    assert "Report.parallel has to be from 1 to 4096" in report.error


def test_what_a_terminal_would_obey_is_escaped() -> None:
    read = wire.read_hello(hello(labels={"a\nb\x1b[31m": "x\r\n\u202e"}))
    assert read is not None
    assert dict(read.labels) == {"a\\nb\\x1b[31m": "x\\r\\n\\u202e"}
    said = pb.Report(replica_id="r", observed="failed", error="E\x00\x1b[31m\nits last output:\n\tline")
    report = wire.read_from_worker(pb.FromWorker(report=said))
    assert isinstance(report, Report)
    assert report.error == "E\\x00\\x1b[31m\nits last output:\n\tline"


def test_an_error_without_end_keeps_its_cause_and_its_last_lines() -> None:
    said = pb.Report(replica_id="r", observed="failed", error=f"the cause{'e' * 1_000_000}the end")
    report = wire.read_from_worker(pb.FromWorker(report=said))
    assert isinstance(report, Report)
    assert report.error is not None
    assert (report.error[:9], report.error[-7:]) == ("the cause", "the end")
    assert len(report.error) < 17_000
