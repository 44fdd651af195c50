"""Translates records of `domain.session` to messages of worker.proto and back. Pure.

The other side may be older or newer. A field that it does not send has the record's default, and fields that this side
does not know are ignored. `read_*` returns None for a message that holds nothing that this side knows; it is a sign of
life all the same.

Messages of a worker are checked here, and the results are within the bounds of `validation`. A message with an
impossible value is refused (`MessageRefused`), which ends its session. An impossible report says that its replica
failed.

This file is longer than others because the two directions of each message stand side by side.
"""

from collections.abc import Mapping
from dataclasses import asdict
from enum import StrEnum
from types import MappingProxyType
from typing import Any, Final, TypeVar

from gateway.domain.ids import Address, BootId, ModelName, NodeId, ReplicaId
from gateway.domain.inference import INT32_MAX
from gateway.domain.lifecycle import Desired, Observed
from gateway.domain.model_spec import Capabilities, ModelSpec
from gateway.domain.resources import Capacity, Gpu, VramBudget
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
from gateway.transport import validation as bounds
from gateway.transport.advertised import refused_report
from gateway.transport.errors import MessageRefused
from gateway.transport.pb import worker_pb2 as pb

T = TypeVar("T")
E = TypeVar("E", bound=StrEnum)

PROTOCOL: Final = 1
"""The version of the protocol. Only a change that the other side cannot ignore raises it."""


# From the worker


def hello_message(hello: Hello) -> pb.FromWorker:
    """Encodes a worker's first message."""
    return pb.FromWorker(
        hello=pb.Hello(
            protocol=PROTOCOL,
            node_id=hello.node_id,
            name=hello.name,
            boot_id=hello.boot_id,
            labels=hello.labels,
            max_replicas_per_model=hello.max_replicas_per_model,
            capacity=_capacity_message(hello.capacity),
            vram_budget=pb.VramBudget(amount=hello.vram_budget.amount, share=hello.vram_budget.share),
            replicas=[_report_message(report) for report in hello.replicas],
            advertise=hello.advertise,
        )
    )


def read_hello(message: pb.FromWorker) -> Hello | None:
    """Decodes a hello. Returns None if the message is something else, or the hello of an unknown protocol. Raises
    `MessageRefused`."""
    if not message.HasField("hello") or message.hello.protocol != PROTOCOL:
        return None
    hello = message.hello
    return Hello(
        node_id=NodeId(bounds.identifier(hello, "node_id")),
        name=bounds.word(hello.name),
        boot_id=BootId(bounds.identifier(hello, "boot_id")),
        labels=bounds.mapping(bounds.at_most(hello, "labels", bounds.LABELS_MAX)),
        max_replicas_per_model=bounds.whole(hello, "max_replicas_per_model", 1, INT32_MAX, 1),
        capacity=_capacity(hello.capacity),
        vram_budget=VramBudget(
            bounds.whole(hello.vram_budget, "amount", 0, bounds.BYTES_MAX), bounds.share(hello.vram_budget, "share")
        ),
        replicas=tuple(
            report
            for each in bounds.at_most(hello, "replicas", bounds.REPLICAS_MAX)
            if (report := _report(each)) is not None
        ),
        advertise=_optional(hello, "advertise"),
    )


def from_worker_message(record: FromWorker) -> pb.FromWorker:
    """Encodes a message of a worker to the gateway."""
    match record:
        case Report():
            return pb.FromWorker(report=_report_message(record))
        case Heartbeat():
            return pb.FromWorker(heartbeat=pb.Heartbeat())
        case Capacity():
            return pb.FromWorker(capacity=_capacity_message(record))
        case Leaving():
            return pb.FromWorker(leaving=pb.Leaving())
        case LogChunk():
            return pb.FromWorker(log_chunk=_log_chunk_message(record))


def read_from_worker(message: pb.FromWorker) -> FromWorker | None:
    """Decodes a message of a worker. Returns None for a message that only a newer worker knows. Raises
    `MessageRefused`."""
    match message.WhichOneof("message"):
        case "report":
            return _report(message.report)
        case "heartbeat":
            return Heartbeat()
        case "capacity":
            return _capacity(message.capacity)
        case "leaving":
            return Leaving()
        case "log_chunk":
            return _log_chunk(message.log_chunk)
        case _:
            return None


def _report_message(report: Report) -> pb.Report:
    return pb.Report(
        replica_id=report.replica_id,
        observed=report.observed,
        address=report.address,
        pid=report.pid,
        parallel=report.parallel,
        exit_code=report.exit_code,
        error=None if report.error is None else _text(report.error),
        done_bytes=report.done_bytes,
        total_bytes=report.total_bytes,
        ram_bytes=report.ram_bytes,
        vram_bytes=report.vram_bytes,
        capabilities=None if report.capabilities is None else pb.Capabilities(**asdict(report.capabilities)),
    )


def _report(message: pb.Report) -> Report | None:
    """Decodes a report. Returns None for a state that only a newer worker knows; its next report may have a known one.

    Raises `MessageRefused` only for an impossible id. Any other error concerns that replica only.
    """
    replica_id = ReplicaId(bounds.identifier(message, "replica_id"))
    if (observed := _known(Observed, message.observed)) is None:
        return None
    try:
        return _possible_report(message, replica_id, observed)
    except MessageRefused as error:
        return refused_report(Report(replica_id, observed), str(error))


def _possible_report(message: pb.Report, replica_id: ReplicaId, observed: Observed) -> Report:
    """Decodes a report with checked values. Raises `MessageRefused`. `advertised` checks the address, because it knows
    the worker's host."""
    address, error = _optional(message, "address"), _optional(message, "error")
    return Report(
        replica_id=replica_id,
        observed=observed,
        address=None if address is None else Address(address),
        pid=bounds.whole(message, "pid", 0, INT32_MAX),
        parallel=bounds.whole(message, "parallel", 1, bounds.PARALLEL_MAX),
        exit_code=bounds.whole(message, "exit_code", -INT32_MAX, INT32_MAX),
        error=None if error is None else bounds.error(error),
        done_bytes=bounds.whole(message, "done_bytes", 0, bounds.BYTES_MAX),
        total_bytes=bounds.whole(message, "total_bytes", 0, bounds.BYTES_MAX),
        ram_bytes=bounds.whole(message, "ram_bytes", 0, bounds.BYTES_MAX),
        vram_bytes=bounds.whole(message, "vram_bytes", 0, bounds.BYTES_MAX),
        capabilities=_capabilities(message.capabilities) if message.HasField("capabilities") else None,
    )


def _capabilities(message: pb.Capabilities) -> Capabilities:
    return Capabilities(
        generates=_optional(message, "generates"),
        embeds=_optional(message, "embeds"),
        reranks=_optional(message, "reranks"),
        context_tokens=bounds.whole(message, "context_tokens", 0, INT32_MAX),
        tools=_optional(message, "tools"),
        thinking=_optional(message, "thinking"),
        schema=_optional(message, "schema"),
        vision=_optional(message, "vision"),
        infill=_optional(message, "infill"),
    )


def _log_chunk_message(chunk: LogChunk) -> pb.LogChunk:
    lines = [_text(line) for line in chunk.lines]
    return pb.LogChunk(tail=chunk.tail, lines=lines, skipped=chunk.skipped, ended=chunk.ended)


def _log_chunk(message: pb.LogChunk) -> LogChunk:
    """Decodes a chunk of output. Its lines are as the process wrote them."""
    return LogChunk(
        bounds.within("LogChunk.tail", message.tail, 0, bounds.BYTES_MAX),
        tuple(bounds.at_most(message, "lines", bounds.LINES_MAX)),
        bounds.within("LogChunk.skipped", message.skipped, 0, bounds.BYTES_MAX),
        message.ended,
    )


def _capacity_message(capacity: Capacity) -> pb.Capacity:
    return pb.Capacity(
        gpus=[_gpu_message(gpu) for gpu in capacity.gpus],
        ram_bytes=capacity.ram_bytes,
        ram_free_bytes=capacity.ram_free_bytes,
        disk_bytes=capacity.disk_bytes,
        disk_free_bytes=capacity.disk_free_bytes,
        cpu_count=capacity.cpu_count,
        cpu_flags=capacity.cpu_flags,
    )


def _capacity(message: pb.Capacity) -> Capacity:
    return Capacity(
        gpus=tuple(_gpu(gpu) for gpu in bounds.at_most(message, "gpus", bounds.GPUS_MAX)),
        ram_bytes=bounds.whole(message, "ram_bytes", 0, bounds.BYTES_MAX),
        ram_free_bytes=bounds.whole(message, "ram_free_bytes", 0, bounds.BYTES_MAX),
        disk_bytes=bounds.whole(message, "disk_bytes", 0, bounds.BYTES_MAX),
        disk_free_bytes=bounds.whole(message, "disk_free_bytes", 0, bounds.BYTES_MAX),
        cpu_count=bounds.whole(message, "cpu_count", 0, bounds.CPUS_MAX),
        cpu_flags=bounds.words(bounds.at_most(message, "cpu_flags", bounds.CPU_FLAGS_MAX)),
    )


def _gpu_message(gpu: Gpu) -> pb.Gpu:
    return pb.Gpu(
        vendor=gpu.vendor,
        name=gpu.name,
        uuid=gpu.uuid,
        vram_bytes=gpu.vram_bytes,
        vram_free_bytes=gpu.vram_free_bytes,
        unified=gpu.unified,
    )


def _gpu(message: pb.Gpu) -> Gpu:
    return Gpu(
        vendor=bounds.word(message.vendor),
        name=bounds.word(message.name),
        uuid=bounds.word(message.uuid),
        vram_bytes=bounds.whole(message, "vram_bytes", 0, bounds.VRAM_BYTES_MAX),
        vram_free_bytes=bounds.whole(message, "vram_free_bytes", 0, bounds.VRAM_BYTES_MAX),
        unified=message.unified,
    )


# To the worker


def to_worker_message(record: ToWorker) -> pb.ToWorker:
    """Encodes a message of the gateway to a worker."""
    match record:
        case DesiredSet():
            replicas = [_desired_replica_message(replica) for replica in record.replicas]
            return pb.ToWorker(desired_set=pb.DesiredSet(epoch=record.epoch, replicas=replicas))
        case Heartbeat():
            return pb.ToWorker(heartbeat=pb.Heartbeat())
        case TailLogs(tail, replica_id, lines, follow):
            return pb.ToWorker(tail_logs=pb.TailLogs(tail=tail, replica_id=replica_id, lines=lines, follow=follow))
        case EndTail():
            return pb.ToWorker(end_tail=pb.EndTail(tail=record.tail))


def read_to_worker(message: pb.ToWorker) -> ToWorker | None:
    """Decodes a message of the gateway to a worker. Returns None for a message that only a newer gateway knows."""
    match message.WhichOneof("message"):
        case "desired_set":
            replicas = tuple(_desired_replica(replica) for replica in message.desired_set.replicas)
            return DesiredSet(message.desired_set.epoch, replicas)
        case "heartbeat":
            return Heartbeat()
        case "tail_logs":
            asked = message.tail_logs
            return TailLogs(asked.tail, ReplicaId(asked.replica_id), asked.lines, asked.follow)
        case "end_tail":
            return EndTail(message.end_tail.tail)
        case _:
            return None


def _desired_replica_message(replica: DesiredReplica) -> pb.DesiredReplica:
    return pb.DesiredReplica(
        replica_id=replica.replica_id,
        spec=_spec_message(replica.spec),
        desired=replica.desired,
        token=replica.token,
    )


def _desired_replica(message: pb.DesiredReplica) -> DesiredReplica:
    """Decodes one entry of a desired set. An unknown desired state is read as a drain: nothing is started, and open
    requests finish."""
    desired = _known(Desired, message.desired) or Desired.DRAIN
    return DesiredReplica(ReplicaId(message.replica_id), _spec(message.spec), desired, message.token)


def _spec_message(spec: ModelSpec) -> pb.ModelSpec:
    return pb.ModelSpec(
        name=spec.name,
        backend=spec.backend,
        artifact=spec.artifact,
        sha256=spec.sha256,
        context_size=spec.context_size,
        gpu_layers=spec.gpu_layers,
        parallel=spec.parallel,
        options=spec.options,
        reproducible=spec.reproducible,
        prompt_cache=spec.prompt_cache,
        min_replicas=spec.min_replicas,
        max_replicas=spec.max_replicas,
        on_every_node=spec.on_every_node,
        selector=spec.selector,
        exclusive_group=spec.exclusive_group,
        load_timeout_seconds=spec.load_timeout_seconds,
        rollout=spec.rollout,
        source=spec.source,
    )


def _spec(message: pb.ModelSpec) -> ModelSpec:
    return ModelSpec(
        name=ModelName(message.name),
        backend=message.backend,
        artifact=message.artifact,
        sha256=_optional(message, "sha256"),
        context_size=_optional(message, "context_size"),
        gpu_layers=_optional(message, "gpu_layers"),
        parallel=_optional(message, "parallel"),
        options=_mapping(message.options),
        reproducible=message.reproducible,
        prompt_cache=_optional(message, "prompt_cache"),
        min_replicas=message.min_replicas,
        max_replicas=_optional(message, "max_replicas", 1),
        on_every_node=message.on_every_node,
        selector=_mapping(message.selector),
        exclusive_group=_optional(message, "exclusive_group"),
        load_timeout_seconds=_optional(message, "load_timeout_seconds"),
        rollout="surge" if message.rollout == "surge" else "replace",
        source="api" if message.source == "api" else "file",
    )


# Both


def _optional(message: Any, name: str, absent: T | None = None) -> Any:  # noqa: ANN401 - the field's type
    """Returns the field's value, or `absent`. proto3 records whether an `optional` scalar was set."""
    return getattr(message, name) if message.HasField(name) else absent


def _known(states: type[E], word: str) -> E | None:
    try:
        return states(word)
    except ValueError:
        return None


def _mapping(field: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(field))


def _text(words: str) -> str:
    """Returns the text without what protobuf cannot encode, since a process may have written bytes that are no text."""
    return words.encode("utf-8", "replace").decode()
