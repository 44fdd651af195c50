"""What the configuration says to the worker, in the worker's own words; the same for an embedded and a remote one."""

import socket
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from gateway.config.model import Config
from gateway.config.units import Percent
from gateway.domain.ids import BootId, NodeId
from gateway.domain.resources import ALL_VRAM, Capacity, VramBudget
from gateway.domain.session import Hello
from gateway.worker.artifacts.gateway_source import GatewaySource
from gateway.worker.process.command import BackendProgram
from gateway.worker.settings import WorkerSettings


def worker_settings(
    config: Config, state_folder: Path, *, bind: str, advertise: str, gateway: GatewaySource | None = None
) -> WorkerSettings:
    """`bind` and `advertise`: hosts, as they follow for this kind of worker where the configuration says nothing."""
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
        vram_budget=vram_budget(config),
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


def vram_budget(config: Config) -> VramBudget:
    """Returns how much GPU memory models may use by `worker.vram_budget`: all of it if that is not set."""
    budget = config.worker.vram_budget
    if budget is None:
        return ALL_VRAM
    return VramBudget(share=budget.value / 100) if isinstance(budget, Percent) else VramBudget(amount=budget)
