from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FromWorker(_message.Message):
    __slots__ = ("hello", "report", "heartbeat", "capacity", "leaving", "log_chunk")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    LOG_CHUNK_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    report: Report
    heartbeat: Heartbeat
    capacity: Capacity
    leaving: Leaving
    log_chunk: LogChunk
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., report: _Optional[_Union[Report, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., leaving: _Optional[_Union[Leaving, _Mapping]] = ..., log_chunk: _Optional[_Union[LogChunk, _Mapping]] = ...) -> None: ...

class ToWorker(_message.Message):
    __slots__ = ("desired_set", "heartbeat", "tail_logs", "end_tail")
    DESIRED_SET_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    TAIL_LOGS_FIELD_NUMBER: _ClassVar[int]
    END_TAIL_FIELD_NUMBER: _ClassVar[int]
    desired_set: DesiredSet
    heartbeat: Heartbeat
    tail_logs: TailLogs
    end_tail: EndTail
    def __init__(self, desired_set: _Optional[_Union[DesiredSet, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., tail_logs: _Optional[_Union[TailLogs, _Mapping]] = ..., end_tail: _Optional[_Union[EndTail, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "node_id", "name", "boot_id", "labels", "max_replicas_per_model", "capacity", "vram_budget", "replicas", "advertise")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BOOT_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLICAS_PER_MODEL_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_FIELD_NUMBER: _ClassVar[int]
    VRAM_BUDGET_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ADVERTISE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    node_id: str
    name: str
    boot_id: str
    labels: _containers.ScalarMap[str, str]
    max_replicas_per_model: int
    capacity: Capacity
    vram_budget: VramBudget
    replicas: _containers.RepeatedCompositeFieldContainer[Report]
    advertise: str
    def __init__(self, protocol: _Optional[int] = ..., node_id: _Optional[str] = ..., name: _Optional[str] = ..., boot_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ..., max_replicas_per_model: _Optional[int] = ..., capacity: _Optional[_Union[Capacity, _Mapping]] = ..., vram_budget: _Optional[_Union[VramBudget, _Mapping]] = ..., replicas: _Optional[_Iterable[_Union[Report, _Mapping]]] = ..., advertise: _Optional[str] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("replica_id", "observed", "address", "pid", "parallel", "exit_code", "error", "done_bytes", "total_bytes", "ram_bytes", "vram_bytes", "capabilities")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    RAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    VRAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    observed: str
    address: str
    pid: int
    parallel: int
    exit_code: int
    error: str
    done_bytes: int
    total_bytes: int
    ram_bytes: int
    vram_bytes: int
    capabilities: Capabilities
    def __init__(self, replica_id: _Optional[str] = ..., observed: _Optional[str] = ..., address: _Optional[str] = ..., pid: _Optional[int] = ..., parallel: _Optional[int] = ..., exit_code: _Optional[int] = ..., error: _Optional[str] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., ram_bytes: _Optional[int] = ..., vram_bytes: _Optional[int] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("generates", "embeds", "reranks", "context_tokens", "tools", "thinking", "schema", "vision", "infill")
    GENERATES_FIELD_NUMBER: _ClassVar[int]
    EMBEDS_FIELD_NUMBER: _ClassVar[int]
    RERANKS_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    THINKING_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    VISION_FIELD_NUMBER: _ClassVar[int]
    INFILL_FIELD_NUMBER: _ClassVar[int]
    generates: bool
    embeds: bool
    reranks: bool
    context_tokens: int
    tools: bool
    thinking: bool
    schema: bool
    vision: bool
    infill: bool
    def __init__(self, generates: _Optional[bool] = ..., embeds: _Optional[bool] = ..., reranks: _Optional[bool] = ..., context_tokens: _Optional[int] = ..., tools: _Optional[bool] = ..., thinking: _Optional[bool] = ..., schema: _Optional[bool] = ..., vision: _Optional[bool] = ..., infill: _Optional[bool] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Leaving(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Capacity(_message.Message):
    __slots__ = ("gpus", "ram_bytes", "ram_free_bytes", "disk_bytes", "disk_free_bytes", "cpu_count", "cpu_flags")
    GPUS_FIELD_NUMBER: _ClassVar[int]
    RAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    RAM_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CPU_COUNT_FIELD_NUMBER: _ClassVar[int]
    CPU_FLAGS_FIELD_NUMBER: _ClassVar[int]
    gpus: _containers.RepeatedCompositeFieldContainer[Gpu]
    ram_bytes: int
    ram_free_bytes: int
    disk_bytes: int
    disk_free_bytes: int
    cpu_count: int
    cpu_flags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, gpus: _Optional[_Iterable[_Union[Gpu, _Mapping]]] = ..., ram_bytes: _Optional[int] = ..., ram_free_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., disk_free_bytes: _Optional[int] = ..., cpu_count: _Optional[int] = ..., cpu_flags: _Optional[_Iterable[str]] = ...) -> None: ...

class Gpu(_message.Message):
    __slots__ = ("vendor", "name", "uuid", "vram_bytes", "vram_free_bytes", "unified")
    VENDOR_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    VRAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    VRAM_FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    UNIFIED_FIELD_NUMBER: _ClassVar[int]
    vendor: str
    name: str
    uuid: str
    vram_bytes: int
    vram_free_bytes: int
    unified: bool
    def __init__(self, vendor: _Optional[str] = ..., name: _Optional[str] = ..., uuid: _Optional[str] = ..., vram_bytes: _Optional[int] = ..., vram_free_bytes: _Optional[int] = ..., unified: _Optional[bool] = ...) -> None: ...

class VramBudget(_message.Message):
    __slots__ = ("amount", "share")
    AMOUNT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    amount: int
    share: float
    def __init__(self, amount: _Optional[int] = ..., share: _Optional[float] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("tail", "lines", "skipped", "ended")
    TAIL_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    tail: int
    lines: _containers.RepeatedScalarFieldContainer[str]
    skipped: int
    ended: bool
    def __init__(self, tail: _Optional[int] = ..., lines: _Optional[_Iterable[str]] = ..., skipped: _Optional[int] = ..., ended: _Optional[bool] = ...) -> None: ...

class DesiredSet(_message.Message):
    __slots__ = ("epoch", "replicas")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    replicas: _containers.RepeatedCompositeFieldContainer[DesiredReplica]
    def __init__(self, epoch: _Optional[int] = ..., replicas: _Optional[_Iterable[_Union[DesiredReplica, _Mapping]]] = ...) -> None: ...

class DesiredReplica(_message.Message):
    __slots__ = ("replica_id", "spec", "desired", "token")
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    DESIRED_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    replica_id: str
    spec: ModelSpec
    desired: str
    token: str
    def __init__(self, replica_id: _Optional[str] = ..., spec: _Optional[_Union[ModelSpec, _Mapping]] = ..., desired: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class ModelSpec(_message.Message):
    __slots__ = ("name", "backend", "artifact", "sha256", "context_size", "gpu_layers", "parallel", "options", "min_replicas", "max_replicas", "on_every_node", "selector", "exclusive_group", "load_timeout_seconds", "source", "rollout", "reproducible", "prompt_cache")
    class OptionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class SelectorEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    NAME_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_SIZE_FIELD_NUMBER: _ClassVar[int]
    GPU_LAYERS_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    MIN_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    ON_EVERY_NODE_FIELD_NUMBER: _ClassVar[int]
    SELECTOR_FIELD_NUMBER: _ClassVar[int]
    EXCLUSIVE_GROUP_FIELD_NUMBER: _ClassVar[int]
    LOAD_TIMEOUT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ROLLOUT_FIELD_NUMBER: _ClassVar[int]
    REPRODUCIBLE_FIELD_NUMBER: _ClassVar[int]
    PROMPT_CACHE_FIELD_NUMBER: _ClassVar[int]
    name: str
    backend: str
    artifact: str
    sha256: str
    context_size: int
    gpu_layers: int
    parallel: int
    options: _containers.ScalarMap[str, str]
    min_replicas: int
    max_replicas: int
    on_every_node: bool
    selector: _containers.ScalarMap[str, str]
    exclusive_group: str
    load_timeout_seconds: float
    source: str
    rollout: str
    reproducible: bool
    prompt_cache: int
    def __init__(self, name: _Optional[str] = ..., backend: _Optional[str] = ..., artifact: _Optional[str] = ..., sha256: _Optional[str] = ..., context_size: _Optional[int] = ..., gpu_layers: _Optional[int] = ..., parallel: _Optional[int] = ..., options: _Optional[_Mapping[str, str]] = ..., min_replicas: _Optional[int] = ..., max_replicas: _Optional[int] = ..., on_every_node: _Optional[bool] = ..., selector: _Optional[_Mapping[str, str]] = ..., exclusive_group: _Optional[str] = ..., load_timeout_seconds: _Optional[float] = ..., source: _Optional[str] = ..., rollout: _Optional[str] = ..., reproducible: _Optional[bool] = ..., prompt_cache: _Optional[int] = ...) -> None: ...

class TailLogs(_message.Message):
    __slots__ = ("tail", "replica_id", "lines", "follow")
    TAIL_FIELD_NUMBER: _ClassVar[int]
    REPLICA_ID_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    tail: int
    replica_id: str
    lines: int
    follow: bool
    def __init__(self, tail: _Optional[int] = ..., replica_id: _Optional[str] = ..., lines: _Optional[int] = ..., follow: _Optional[bool] = ...) -> None: ...

class EndTail(_message.Message):
    __slots__ = ("tail",)
    TAIL_FIELD_NUMBER: _ClassVar[int]
    tail: int
    def __init__(self, tail: _Optional[int] = ...) -> None: ...
