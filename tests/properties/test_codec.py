"""Records survive the wire whole, and neither an older nor a newer peer is a surprise."""

from types import MappingProxyType
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st

from gateway.domain.ids import Address, BootId, ModelName, NodeId, ReplicaId
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import Capabilities, ModelSpec
from gateway.domain.resources import UNKNOWN, Capacity, Gpu, VramBudget
from gateway.domain.session import (
    DesiredReplica,
    DesiredSet,
    EndTail,
    FromWorker,
    Heartbeat,
    Hello,
    Leaving,
    LogChunk,
    Report,
    TailLogs,
    ToWorker,
)
from gateway.transport import codec as wire
from gateway.transport.pb import worker_pb2 as pb

TEXT = st.text(st.characters(codec="utf-8"), max_size=8)
NUMBER = st.integers(-(2**63), 2**63 - 1)
WORD = st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=8).filter(str.isprintable)
AMOUNT, MAYBE_AMOUNT = st.integers(0, 2**63 - 1), st.none() | st.integers(0, 2**63 - 1)
MAYBE_VRAM = st.none() | st.integers(0, 2**50)
MAYBE_SHARE = st.none() | st.floats(0, 1, exclude_min=True)
LABELS = st.dictionaries(WORD, WORD, max_size=3).map(MappingProxyType)
MAPPING = st.dictionaries(TEXT, TEXT, max_size=3).map(MappingProxyType)
MAYBE_TEXT, MAYBE_NUMBER = st.none() | TEXT, st.none() | NUMBER
MAYBE_FLOAT = st.none() | st.floats(allow_nan=False)

GPUS = st.builds(Gpu, WORD, WORD, WORD, MAYBE_VRAM, MAYBE_VRAM, st.booleans())
CAPACITIES = st.builds(
    Capacity,
    gpus=st.lists(GPUS, max_size=3).map(tuple),
    ram_bytes=MAYBE_AMOUNT,
    ram_free_bytes=MAYBE_AMOUNT,
    disk_bytes=MAYBE_AMOUNT,
    disk_free_bytes=MAYBE_AMOUNT,
    cpu_count=st.none() | st.integers(0, 2**20),
    cpu_flags=st.lists(WORD, max_size=3).map(tuple),
)
MAYBE = st.none() | st.booleans()
CAPABILITIES = st.builds(
    Capabilities,
    generates=MAYBE,
    embeds=MAYBE,
    reranks=MAYBE,
    context_tokens=st.none() | st.integers(0, 2**31 - 1),
    tools=MAYBE,
    thinking=MAYBE,
    schema=MAYBE,
    vision=MAYBE,
    infill=MAYBE,
)
REPORTS = st.builds(
    Report,
    replica_id=WORD.map(ReplicaId),
    observed=st.sampled_from(Observed),
    address=st.none() | TEXT.map(Address),
    pid=st.none() | st.integers(0, 2**31 - 1),
    parallel=st.none() | st.integers(1, 4096),
    exit_code=st.none() | st.integers(-64, 255),
    error=st.none() | WORD,
    done_bytes=MAYBE_AMOUNT,
    total_bytes=MAYBE_AMOUNT,
    ram_bytes=MAYBE_AMOUNT,
    vram_bytes=MAYBE_AMOUNT,
    capabilities=st.none() | CAPABILITIES,
)
HELLOS = st.builds(
    Hello,
    node_id=WORD.map(NodeId),
    name=WORD,
    boot_id=WORD.map(BootId),
    labels=LABELS,
    max_replicas_per_model=st.integers(1, 2**31 - 1),
    capacity=CAPACITIES,
    vram_budget=st.builds(VramBudget, MAYBE_AMOUNT, MAYBE_SHARE),
    replicas=st.lists(REPORTS, max_size=3).map(tuple),
    advertise=st.none() | WORD,
)
LOG_CHUNKS = st.builds(LogChunk, AMOUNT, st.lists(TEXT, max_size=3).map(tuple), AMOUNT, st.booleans())
FROM_WORKER: st.SearchStrategy[FromWorker] = (
    REPORTS | st.just(Heartbeat()) | CAPACITIES | st.just(Leaving()) | LOG_CHUNKS
)
SPECS = st.builds(
    ModelSpec,
    name=TEXT.map(ModelName),
    backend=TEXT,
    artifact=TEXT,
    sha256=MAYBE_TEXT,
    context_size=MAYBE_NUMBER,
    gpu_layers=MAYBE_NUMBER,
    parallel=MAYBE_NUMBER,
    options=MAPPING,
    reproducible=st.booleans(),
    prompt_cache=MAYBE_NUMBER,
    min_replicas=NUMBER,
    max_replicas=NUMBER,
    on_every_node=st.booleans(),
    selector=MAPPING,
    exclusive_group=MAYBE_TEXT,
    load_timeout_seconds=MAYBE_FLOAT,
    rollout=st.sampled_from(["replace", "surge"]),
    source=st.sampled_from(["file", "api"]),
)
DESIRED_SETS = st.builds(
    DesiredSet,
    epoch=NUMBER,
    replicas=st.lists(
        st.builds(DesiredReplica, TEXT.map(ReplicaId), SPECS, st.sampled_from(Desired), TEXT), max_size=3
    ).map(tuple),
)
TO_WORKER: st.SearchStrategy[ToWorker] = (
    DESIRED_SETS
    | st.just(Heartbeat())
    | st.builds(TailLogs, NUMBER, TEXT.map(ReplicaId), NUMBER, st.booleans())
    | st.builds(EndTail, NUMBER)
)
BEYOND = b"\xfa\x3e\x03new"
"""A field (number 1007) of a later version, as any message may end with."""


def over(message: Any) -> Any:
    """As it comes out at the other side."""
    return type(message).FromString(message.SerializeToString())


def newer(message: Message) -> Any:
    """As a later version would send it: with more in it, at every level."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field, value in copy.ListFields():
        if field.message_type is None or field.message_type.GetOptions().map_entry:
            continue
        for inner in value if field.is_repeated else [value]:
            inner.CopyFrom(newer(inner))
    return type(message).FromString(copy.SerializeToString() + BEYOND)


@given(HELLOS)
def test_a_hello_survives(hello: Hello) -> None:
    assert wire.read_hello(over(wire.hello_message(hello))) == hello


@given(FROM_WORKER)
def test_what_a_worker_says_survives(record: FromWorker) -> None:
    assert wire.read_from_worker(over(wire.from_worker_message(record))) == record


@given(TO_WORKER)
def test_what_a_gateway_says_survives(record: ToWorker) -> None:
    assert wire.read_to_worker(over(wire.to_worker_message(record))) == record


@given(SPECS)
def test_a8_a_spec_keeps_its_revision(spec: ModelSpec) -> None:
    wanted = DesiredSet(1, (DesiredReplica(ReplicaId("r"), spec, Desired.RUN, "t"),))
    read = wire.read_to_worker(over(wire.to_worker_message(wanted)))
    assert isinstance(read, DesiredSet)
    assert read.replicas[0].spec.revision == spec.revision


@given(HELLOS, FROM_WORKER, TO_WORKER)
def test_a_newer_peer_is_understood_as_far_as_we_know(hello: Hello, said: FromWorker, asked: ToWorker) -> None:
    assert wire.read_hello(newer(wire.hello_message(hello))) == hello
    assert wire.read_from_worker(newer(wire.from_worker_message(said))) == said
    assert wire.read_to_worker(newer(wire.to_worker_message(asked))) == asked


def test_a_member_that_we_do_not_know_is_nothing() -> None:
    assert wire.read_from_worker(pb.FromWorker.FromString(BEYOND)) is None
    assert wire.read_to_worker(pb.ToWorker.FromString(BEYOND)) is None
    assert wire.read_hello(pb.FromWorker.FromString(BEYOND)) is None


def test_a_second_hello_is_nothing() -> None:
    hello = wire.hello_message(Hello(NodeId("n"), "n", BootId("b")))
    assert wire.read_from_worker(hello) is None


@pytest.mark.parametrize("protocol", [0, wire.PROTOCOL + 1])
def test_a_hello_of_another_protocol_is_refused(protocol: int) -> None:
    message = wire.hello_message(Hello(NodeId("n"), "n", BootId("b")))
    message.hello.protocol = protocol
    assert wire.read_hello(message) is None


def test_an_older_worker_has_the_defaults() -> None:
    message = pb.FromWorker(hello=pb.Hello(protocol=wire.PROTOCOL, node_id="n", name="x", boot_id="b"))
    assert wire.read_hello(message) == Hello(NodeId("n"), "x", BootId("b"))
    assert wire.read_from_worker(pb.FromWorker(capacity=pb.Capacity())) == UNKNOWN
    report = pb.FromWorker(report=pb.Report(replica_id="r", observed="ready"))
    assert wire.read_from_worker(report) == Report(ReplicaId("r"), Observed.READY)


def test_an_older_gateway_has_the_defaults() -> None:
    spec = pb.ModelSpec(name="m", backend="b", artifact="a")
    wanted = pb.DesiredSet(epoch=1, replicas=[pb.DesiredReplica(replica_id="r", spec=spec, desired="run", token="t")])
    read = wire.read_to_worker(pb.ToWorker(desired_set=wanted))
    expected = DesiredReplica(ReplicaId("r"), ModelSpec(ModelName("m"), "b", "a"), Desired.RUN, "t")
    assert read == DesiredSet(1, (expected,))


@pytest.mark.parametrize("word", ["", "sideways", "SURGE"])
def test_a_rollout_that_we_do_not_know_replaces(word: str) -> None:
    spec = pb.ModelSpec(name="m", backend="b", artifact="a", rollout=word)
    wanted = pb.DesiredSet(replicas=[pb.DesiredReplica(replica_id="r", spec=spec, desired="run")])
    read = wire.read_to_worker(pb.ToWorker(desired_set=wanted))
    assert isinstance(read, DesiredSet)
    assert read.replicas[0].spec.rollout == "replace"


@pytest.mark.parametrize("word", ["", "hibernate", "RUN"])
def test_a_desired_state_that_we_do_not_know_drains(word: str) -> None:
    wanted = pb.DesiredSet(replicas=[pb.DesiredReplica(replica_id="r", desired=word)])
    read = wire.read_to_worker(pb.ToWorker(desired_set=wanted))
    assert isinstance(read, DesiredSet)
    assert read.replicas[0].desired is Desired.DRAIN


def test_a_report_of_a_state_that_we_do_not_know_is_left_out() -> None:
    unknown, known = pb.Report(replica_id="a", observed="hibernating"), pb.Report(replica_id="b", observed="ready")
    assert wire.read_from_worker(pb.FromWorker(report=unknown)) is None
    hello = pb.Hello(protocol=wire.PROTOCOL, node_id="n", boot_id="b", replicas=[unknown, known])
    read = wire.read_hello(pb.FromWorker(hello=hello))
    assert read is not None
    assert read.replicas == (Report(ReplicaId("b"), Observed.READY),)


def test_what_is_no_text_does_not_end_the_session() -> None:
    report = Report(ReplicaId("r"), Observed.FAILED, error="can't open \udcff.gguf")
    read = wire.read_from_worker(over(wire.from_worker_message(report)))
    assert isinstance(read, Report)
    assert read.error == "can't open ?.gguf"
    chunk = wire.read_from_worker(over(wire.from_worker_message(LogChunk(1, ("\ud800",)))))
    assert chunk == LogChunk(1, ("?",))


def test_a_token_is_not_shown() -> None:
    assert "secret" not in repr(
        DesiredReplica(ReplicaId("r"), ModelSpec(ModelName("m"), "b", "a"), Desired.RUN, "secret")
    )
