"""The differences between the processes of one configuration, and the configurations that they cannot share. Pure."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from gateway.config.fields import is_postgresql
from gateway.config.model import Config
from gateway.data_dir import SECRET_FILE
from gateway.domain.host_port import PORT_MAX

EMBEDDED_WORKER_AT: Final = 0
"""The number of the process that has the embedded worker."""
FIXED: Final = ("host", "port", "reuse_port", "peer_port", "data_dir")
"""The keys of `[server]` that hold from the start of the supervisor to its end."""


def worker_port(config: Config, number: int) -> int:
    """Returns the port for workers of a process: each worker's session is with one process. 0 means any free port."""
    port = config.server.worker_port
    return port + number if port else 0


def peer_port(config: Config, number: int) -> int:
    """Returns the port at which peers reach exactly this process. 0 means any free port."""
    port = config.server.peer_port
    return port + number if port else 0


def data_dir(config: Config, number: int) -> Path:
    """Returns the folder of a process. The first one has the gateway's own, with the identity of its embedded
    worker."""
    folder = config.server.data_dir
    return folder if number == EMBEDDED_WORKER_AT else folder / f"process-{number}"


def overrides_of(config: Config, number: int) -> Mapping[str, object]:
    """Returns the keys that a process reads in another way than they are configured. The first one has none."""
    if number == EMBEDDED_WORKER_AT:
        return {}
    own: dict[str, object] = {
        "server.data_dir": str(data_dir(config, number)),
        "server.worker_port": worker_port(config, number),
        "worker.embedded": False,
        "worker.models_dir": str(config.worker.models_dir),
    }
    if config.auth.cluster_secret is None:
        own["auth.cluster_secret_file"] = str((config.server.data_dir / SECRET_FILE).absolute())
    return own


def refusals(config: Config, count: int) -> Iterator[str]:
    """Yields the reasons for which so many processes cannot run with this configuration, each with its remedy."""
    if count > 1 and not is_postgresql(config.registry.url):
        kind = config.registry.url.partition(":")[0]
        yield (
            f"{count} processes need a registry that several gateways can share, and the {kind} registry serves one; "
            'set registry.url to "postgresql://..." or run one process'
        )
    yield from _clashes(config, count)


def _clashes(config: Config, count: int) -> Iterator[str]:
    """Yields the ports that two listeners would have: those of each process count up from the configured ones."""
    taken = {config.server.port: "server.port"} if config.server.port else {}
    for name, port_of in (("server.worker_port", worker_port), ("server.peer_port", peer_port)):
        ports = [port for number in range(count) if (port := port_of(config, number))]
        if ports and ports[-1] > PORT_MAX:
            yield f"{name} counts up to {ports[-1]} for {count} processes; set it to {PORT_MAX + 1 - count} or less"
        for clash in sorted(taken.keys() & set(ports)):
            yield f"{name} counts up from {ports[0]} to {ports[-1]}, and {clash} belongs to {taken[clash]}; change one"
        taken |= dict.fromkeys(ports, name)


def fixed_changes(before: Config, after: Config) -> list[str]:
    """Returns the keys that differ and that a reload cannot change."""
    return [f"server.{key}" for key in FIXED if getattr(before.server, key) != getattr(after.server, key)]
