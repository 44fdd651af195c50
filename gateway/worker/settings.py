"""What a worker has to know of its machine and its configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from gateway.config.units import PortRange
from gateway.worker.artifacts.gateway_source import GatewaySource
from gateway.worker.process.command import BackendProgram


@dataclass(frozen=True)
class WorkerSettings:
    """What the configuration says to a worker: its folders, ports, addresses, bounds and backend programs."""

    state_folder: Path
    """Holds `processes.json`; one worker per folder."""
    models_dir: Path
    port_range: PortRange
    bind_host: str
    """Where backends listen."""
    advertise_host: str
    """Host under which gateways reach them."""
    drain_timeout_seconds: float
    """How long a draining replica may finish its open requests."""
    stop_timeout_seconds: float = 5.0
    """Between SIGTERM and SIGKILL."""
    memory_limit_bytes: int | None = None
    """Of main memory, for the processes of one replica. None: no limit."""
    backends: Mapping[str, BackendProgram] = field(default_factory=lambda: MappingProxyType({}))
    """The `[backends.NAME]` sections."""
    cache_bytes_max: int | None = None
    """Of fetched files. None: as much as the disk allows."""
    gateway: GatewaySource | None = None
    """Where files are fetched from that only the gateway has. None: it is on this machine."""
    port_lock_folder: Path | None = None
    """None: locks that all workers of this machine share."""
