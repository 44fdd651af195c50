"""The settings of a worker: what it has to know of its machine and its configuration."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from gateway.config.model import Config
from gateway.config.units import PortRange, vram_budget
from gateway.domain.ids import BootId, NodeId
from gateway.domain.resources import ALL_VRAM, Capacity
from gateway.domain.session import Hello
from gateway.worker.artifacts.source import GatewaySource
from gateway.worker.process.command import BackendProgram


@dataclass(frozen=True)
class WorkerSettings:
    """The settings of one worker: its folders, ports, addresses, limits and backend programs."""

    state_folder: Path
    """The folder of `processes.json`. Each worker has its own."""
    models_dir: Path
    port_range: PortRange
    bind_host: str
    """The host on which backends listen."""
    advertise_host: str
    """The host at which gateways can reach them."""
    drain_timeout_seconds: float
    """How long a draining replica may finish its open requests."""
    stop_timeout_seconds: float = 5.0
    """The time between SIGTERM and SIGKILL."""
    memory_limit_bytes: int | None = None
    """The limit of main memory for the processes of one replica. None means no limit."""
    backends: Mapping[str, BackendProgram] = field(default_factory=lambda: MappingProxyType({}))
    """The backend programs of the `[backends.NAME]` sections."""
    cache_bytes_max: int | None = None
    """The limit for all fetched files together. None means as much as the disk allows."""
    gateway: GatewaySource | None = None
    """The source of files that only the gateway has. None if the gateway is on this machine."""
    port_lock_folder: Path | None = None
    """The folder of the port locks. None means the one that all workers of this machine share."""


def worker_settings(
    config: Config, state_folder: Path, *, bind: str, advertise: str, gateway: GatewaySource | None = None
) -> WorkerSettings:
    """Returns the settings of a worker. `bind` and `advertise` are the hosts that it uses where the configuration names
    none."""
    worker = config.worker
    return WorkerSettings(
        state_folder=state_folder,
        models_dir=worker.models_dir,
        port_range=worker.port_range,
        bind_host=bind,
        advertise_host=advertise,
        drain_timeout_seconds=config.server.drain_timeout,
        memory_limit_bytes=config.watchdog.memory_limit,
        cache_bytes_max=worker.cache_size,
        gateway=gateway,
        backends=backend_programs(config),
    )


def worker_name(config: Config) -> str:
    """Returns the node's name: `worker.name` of the configuration, else the machine's host name."""
    return config.worker.name or socket.gethostname()


def hello_of(config: Config, node_id: NodeId, boot_id: BootId, capacity: Capacity) -> Hello:
    """Returns the first message of a session, from the configuration, the node's ids and its capacity."""
    worker = config.worker
    return Hello(
        node_id=node_id,
        name=worker_name(config),
        boot_id=boot_id,
        labels=worker.labels,
        max_replicas_per_model=worker.max_replicas_per_model,
        capacity=capacity,
        vram_budget=ALL_VRAM if worker.vram_budget is None else vram_budget(worker.vram_budget),
    )


def backend_programs(config: Config) -> Mapping[str, BackendProgram]:
    """Returns the backend programs of the `[backends.NAME]` sections, by their names."""
    programs = {
        name: BackendProgram(
            section.command,
            section.env,
            section.ready_timeout,
            pass_env=section.pass_env,
            drains_on_term=section.drains_on_term,
        )
        for name, section in config.backends.items()
    }
    return MappingProxyType(programs)
