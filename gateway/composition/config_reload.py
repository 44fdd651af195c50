"""Applies a changed configuration file to a gateway that runs: the planner does the rest, and no request is cut."""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import structlog
import trio

from gateway.api.http.auth import Authenticator
from gateway.composition.http_settings import api_keys
from gateway.concurrency import Wake
from gateway.config.changes import plan_reload
from gateway.config.model import Config
from gateway.config.problems import ConfigError
from gateway.registry.protocol import ModelRegistry, RegistryError

log = structlog.get_logger(__name__)

WATCH_SECONDS: Final = 1.0
"""How often a watched file is looked at."""

Read = Callable[[], Config]
"""Reads the configuration anew. Raises `ConfigError`."""


class ConfigReload:
    """Reads the configuration whenever `wanted` is set, and applies what can change while the gateway runs."""

    def __init__(self, config: Config, read: Read, *, authenticator: Authenticator, registry: ModelRegistry) -> None:
        self._config = config
        self._read = read
        self._authenticator = authenticator
        self._registry = registry

    async def run(self, wanted: Wake) -> None:
        """Reloads until cancelled."""
        while True:
            await wanted.wait()
            await self.reload()

    async def reload(self) -> None:
        """Applies the file as it is now, or nothing of it: a bad file, or a registry that takes no models, leaves
        everything as it was, and the log says why."""
        try:
            changes = plan_reload(self._config, self._read())
            if changes.changes_models:
                await self._registry.declare_models([entry.to_spec() for entry in changes.in_force.models])
        except (ConfigError, RegistryError) as error:
            log.error("config.reload_refused", reason=str(error))  # noqa: TRY400 - no traceback is for the operator
            return
        if changes.changes_api_keys:
            self._authenticator.replace_keys(api_keys(changes.in_force))
        self._config = changes.in_force
        log.info("config.reloaded", changed=changes.live, needs_restart=changes.restart)


async def run_file_watch(path: Path, changed: Wake) -> None:
    """Sets `changed` whenever the file has become another one, until cancelled. A file that is missing for a moment is
    being written."""
    seen = _mark(path)
    while True:
        await trio.sleep(WATCH_SECONDS)
        found = _mark(path)
        if found not in (None, seen):
            seen = found
            changed.set()


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Returns what tells two versions of a file apart, or None if there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
