"""The configuration as frozen, typed sections. The names of attributes are the keys of the TOML file.

Durations are seconds and sizes are bytes once they are read. A key that is not set and has no fixed default is None,
and its docstring says what that means. These classes check each value by itself. `load_config` checks what must fit
together and makes the sentences, and it is the only way in which a configuration reaches the gateway.

This file is longer than others because it has every key, so that nobody has to look for one in several places.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from gateway.config.fields import (
    Argument,
    Artifact,
    BodySize,
    Budget,
    Count,
    Duration,
    Flag,
    Host,
    Hosts,
    Labels,
    ModelNameText,
    Name,
    Options,
    Origin,
    PathText,
    Port,
    Ports,
    PositiveCount,
    PositiveDuration,
    PostgresqlUrl,
    ReachableHost,
    RegistryUrl,
    Role,
    Secret,
    SecretSha256,
    Sha256,
    Size,
    VariablePattern,
    Variables,
    nothing,
)
from gateway.config.units import PortRange
from gateway.domain.builtin_backends import LLAMA_CPP
from gateway.domain.host_port import PORT_MAX, is_loopback
from gateway.domain.ids import ModelName
from gateway.domain.model_spec import ModelSpec


class Section(BaseModel):
    """A table of the file. It is immutable and closed: an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        return self


def _next_port(data: dict[str, Any]) -> int:
    port: int = data.get("port", 0)
    if port == 0:
        return 0
    return port + 1 if port < PORT_MAX else port - 1


def _any_port_beside_a_shared_one(data: dict[str, Any]) -> int | None:
    return 0 if data.get("reuse_port") else None


class ServerSection(Section):
    """The `[server]` table: where this gateway listens, and its limits on connections, bodies and times."""

    host: Hosts = "127.0.0.1"
    port: Port = 8080
    worker_port: Port = Field(default_factory=_next_port)
    """The port at which workers of other machines connect. It is opened only if there is a join token."""
    watch_config: Flag = False
    """Whether the gateway reads its configuration file again when it has changed, as at SIGHUP."""
    reuse_port: Flag = False
    """Whether other gateways of this user on this machine may listen on `port` as well (SO_REUSEPORT). The kernel then
    divides the connections between them."""
    peer_port: Port | None = Field(default_factory=_any_port_beside_a_shared_one)
    """The port of a second HTTP listener, at which the other gateways of the fleet reach exactly this one. 0 means any
    free port, and None that they use `port`. Not set means 0 if `reuse_port` is set, and otherwise None."""
    advertise: ReachableHost | None = None
    """The host at which workers can reach this gateway. None means the host at which they registered."""
    data_dir: PathText = Path("data")
    """The folder of the registry, generated secrets and built-in models. A relative path starts in the working
    folder."""
    drain_timeout: Duration = 30.0
    body_timeout: PositiveDuration = 30.0
    """How long a client may take to send one request."""
    write_timeout: PositiveDuration = 30.0
    """How long a client may leave sent data unread."""
    allowed_origins: tuple[Origin, ...] = ()
    """The origins whose web pages may use this gateway from a browser."""
    allowed_hosts: tuple[Host, ...] = ()
    """The names, besides those of the loopback, to which a gateway without keys answers."""
    stream_keepalive: Duration = 15.0
    """How long a streamed answer may be silent before a comment is sent. 0 means that none is sent."""
    max_body: BodySize = 32 * 1024 * 1024
    bodies_max: Size = 256 * 1024 * 1024
    """The memory for the bodies of all open requests."""
    unknown_parameters: Literal["refuse", "ignore"] = "refuse"
    """Whether a request with a parameter that nobody knows is refused, or served without it."""
    connections_max: PositiveCount = 4096
    http2: Flag = True
    """Whether clients may speak HTTP/2. Workers always do, at a separate port."""
    tls_cert: PathText | None = None
    """The certificate (PEM, with its chain) of both listeners, that for HTTP and that for workers. None means no
    TLS."""
    tls_key: PathText | None = None

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses and names at which this gateway listens, at least one."""
        return (self.host,) if isinstance(self.host, str) else self.host

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return all(is_loopback(host) for host in self.hosts)


class ApiKey(Section):
    """A caller. Exactly one of `key` and `key_sha256` is set."""

    name: Name
    key: Secret | None = None
    key_sha256: SecretSha256 | None = None
    role: Role = "inference"

    @model_validator(mode="after")
    def _check_one_key(self) -> Self:
        if (self.key is None) == (self.key_sha256 is None):
            raise ValueError("set one of key and key_sha256")
        return self

    @property
    def digest(self) -> str:
        """The SHA-256 of the key in lower-case hex, whichever way the file gives it."""
        if self.key is not None:
            return hashlib.sha256(self.key.get_secret_value().encode()).hexdigest()
        return self.key_sha256.get_secret_value() if self.key_sha256 is not None else ""


class AuthSection(Section):
    """The `[auth]` table. Once loaded, `join_token` and `cluster_secret` are set even if they came from a file."""

    api_keys: tuple[ApiKey, ...] = ()
    join_token: Secret | None = None
    """The secret with which workers join. None means that no worker of another machine can join."""
    join_token_file: PathText | None = None
    cluster_secret: Secret | None = None
    """The cluster secret. None means that it is generated at the first start and kept in the data folder."""
    cluster_secret_file: PathText | None = None
    allow_anonymous: Flag = False
    auto_approve_nodes: Flag = True


class RegistrySection(Section):
    """The `[registry]` table: the store that the gateways of a fleet share, and how often they exchange state."""

    url: RegistryUrl = Field("", repr=False)
    """The registry's URL. If it is not set, `Config` makes it an SQLite file in the data folder."""
    listen_url: PostgresqlUrl | None = Field(None, repr=False)
    """The URL for notifications. None means the same as `url`."""
    pool_size: PositiveCount = 5
    """The number of connections to PostgreSQL, besides the one for notifications."""
    migrate: Flag = True
    """Whether the gateway migrates the tables of a PostgreSQL registry at its start. If not, `gateway migrate` does."""
    lease_sync_interval: PositiveDuration = 0.02
    """How often several gateways exchange their state while there are requests."""
    gateway_ttl: PositiveDuration = 15.0
    """How long a silent gateway counts as living."""


class RoutingSection(Section):
    """The `[routing]` table: how requests find a replica, how often they are retried and how long they may wait."""

    mode: Literal["snapshot", "strict"] = "snapshot"
    attempts: PositiveCount = 3
    retry_interval: PositiveDuration = 0.02
    probe_ttl: Duration = 30.0
    """How long an answer proves that a replica lives. With 0 every pick probes."""
    probe_timeout: PositiveDuration = 2.0
    load_wait: Duration = 60.0
    """How long a request waits for a load. With 0 it starts the load and is answered at once."""
    queue_max: Count = 256
    queue_timeout: Duration = 60.0
    expose_replica_header: Flag = False


class HealthSection(Section):
    """The `[health]` table: how often workers report, and when a silent node is unhealthy or a failing replica dead."""

    heartbeat: PositiveDuration = 5.0
    stale_after: PositiveDuration = 45.0
    misses: PositiveCount = 3


class WatchdogSection(Section):
    """The `[watchdog]` table: when a backend counts as stuck, or as not worth its memory. 0 and None mean never."""

    busy_timeout: Duration = 0.0
    """How long a replica may have requests without sending any part of an answer."""
    idle_timeout: Duration = 0.0
    """How long a replica above `min_replicas` may have no request."""
    memory_limit: Size | None = None
    """The main memory that the processes of one replica may use."""


class ReconcilerSection(Section):
    """The `[reconciler]` table: how often the leader plans at least, and how long an unused replica is kept."""

    interval: PositiveDuration = 30.0
    scale_down_delay: Duration = 300.0


class WorkerSection(Section):
    """The `[worker]` table: the agent that runs backends on this machine, and the resources that it may use."""

    embedded: Flag = True
    name: Name | None = None
    """The name of the node. None means the machine's host name."""
    advertise: ReachableHost | None = None
    """The host at which gateways can reach this worker's backends. None means the address from which the worker
    connects."""
    bind: Host | None = None
    """The host on which backends listen. None means the loopback for an embedded worker, and otherwise `advertise`."""
    port_range: Ports = PortRange(20100, 20999)
    models_dir: PathText = Path()
    """The folder for fetched models. If it is not set, `Config` makes it `models` in the data folder."""
    cache_size: Size | None = None
    """The size of all fetched files. None means as much as the disk allows."""
    max_replicas_per_model: PositiveCount = 1
    vram_budget: Budget | None = None
    """The GPU memory that models may use. None means all of it."""
    labels: Labels = Field(default_factory=nothing)
    tls_ca: PathText | None = None
    """The certificates (PEM) of authorities that may sign a gateway's. None means those that the system trusts."""


class BackendSection(Section):
    """The program of a backend. `--addr HOST:PORT` is appended to its command."""

    command: Annotated[tuple[Argument, ...], Field(min_length=1)]
    env: Variables = Field(default_factory=nothing, repr=False)
    pass_env: tuple[VariablePattern, ...] = ()
    """The environment variables of the worker that the program gets although they look like secrets."""
    ready_timeout: PositiveDuration = 60.0
    refuses_when_full: Flag = False
    drains_on_term: Flag = False
    """Whether the program takes no new call after SIGTERM, finishes the open ones and ends."""


class LogSection(Section):
    """The `[log]` table: the least severe level that is written, and the format of the lines."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = "auto"
    """The format. `auto` means console on a terminal, and otherwise json."""


def _at_least_the_minimum(data: dict[str, Any]) -> int:
    minimum: int = data.get("min_replicas", 0)
    return max(1, minimum)


class ModelEntry(Section):
    """One `[[models]]` entry; `ModelSpec` says what the fields mean."""

    name: ModelNameText
    backend: Name
    artifact: Artifact = ""
    sha256: Sha256 | None = None
    context_size: PositiveCount | None = None
    gpu_layers: Count | None = None
    parallel: PositiveCount | None = None
    options: Options = Field(default_factory=nothing)
    reproducible: Flag = False
    """Whether equal requests get equal answers. A request can say otherwise for itself."""
    prompt_cache: Size | None = None
    """The main memory for prompts of past requests. None means the backend's choice."""
    min_replicas: Count = 0
    max_replicas: Count = Field(default_factory=_at_least_the_minimum)
    """The largest number of replicas. 0 means as many as there is room for. Not set means 1, or `min_replicas` if that
    is more."""
    replicas: Literal["all"] | None = None
    """`"all"` means one replica on each node that the selector allows, instead of the two counts."""
    selector: Labels = Field(default_factory=nothing)
    exclusive_group: Name | None = None
    pinned: Flag = False
    """Whether replicas stay once they are loaded; see `ModelSpec.pinned`."""
    load_timeout: PositiveDuration | None = None
    """How long a load may take. None means that it depends on the size of the artifact."""
    rollout: Literal["replace", "surge"] = "replace"
    """The way in which a changed model replaces its old replicas; see `ModelSpec.rollout`."""

    def to_spec(self) -> ModelSpec:
        """Converts this entry to the `ModelSpec` that the planner and the registry use."""
        return ModelSpec(
            name=ModelName(self.name),
            backend=self.backend,
            artifact=self.artifact,
            sha256=self.sha256,
            context_size=self.context_size,
            gpu_layers=self.gpu_layers,
            parallel=self.parallel,
            options=self.options,
            reproducible=self.reproducible,
            prompt_cache=self.prompt_cache,
            min_replicas=self.min_replicas,
            max_replicas=self.max_replicas,
            on_every_node=self.replicas == "all",
            selector=self.selector,
            exclusive_group=self.exclusive_group,
            pinned=self.pinned,
            load_timeout_seconds=self.load_timeout,
            rollout=self.rollout,
        )


DEMO: Final = ModelEntry(name="demo", backend=LLAMA_CPP, artifact="builtin:demo")
"""The entry of the built-in model that answers questions about this gateway. It comes with the package."""
TINY: Final = ModelEntry(name="tiny", backend=LLAMA_CPP, artifact="builtin:tiny")
"""The entry of a model with random weights, which are made when it is loaded. It is for tests and measurements."""
DEFAULT_MODELS: Final = (DEMO, TINY)
"""The models that are served if the configuration has none."""


class Config(Section):
    """All sections. Defaults that follow from another section (`registry.url`, `worker.models_dir`) are filled in."""

    server: ServerSection = ServerSection()
    auth: AuthSection = AuthSection()
    registry: RegistrySection = Field(RegistrySection(), validate_default=True)
    routing: RoutingSection = RoutingSection()
    health: HealthSection = HealthSection()
    watchdog: WatchdogSection = WatchdogSection()
    reconciler: ReconcilerSection = ReconcilerSection()
    worker: WorkerSection = Field(WorkerSection(), validate_default=True)
    log: LogSection = LogSection()
    backends: Annotated[Mapping[Name, BackendSection], AfterValidator(MappingProxyType)] = Field(
        default_factory=lambda: MappingProxyType({})
    )
    models: tuple[ModelEntry, ...] = DEFAULT_MODELS

    @field_validator("registry")
    @classmethod
    def _keep_registry_in_data_dir(cls, registry: RegistrySection, info: ValidationInfo) -> RegistrySection:
        if "url" in registry.model_fields_set or "server" not in info.data:
            return registry
        return registry.model_copy(update={"url": f"sqlite:///{info.data['server'].data_dir / 'registry.db'}"})

    @field_validator("worker")
    @classmethod
    def _keep_models_in_data_dir(cls, worker: WorkerSection, info: ValidationInfo) -> WorkerSection:
        if "models_dir" in worker.model_fields_set or "server" not in info.data:
            return worker
        return worker.model_copy(update={"models_dir": info.data["server"].data_dir / "models"})

    def specs(self) -> tuple[ModelSpec, ...]:
        """Returns the models as the planner and the registry know them."""
        return tuple(model.to_spec() for model in self.models)
