"""The changes that a configuration file makes in a gateway that runs. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from gateway.config.model import Config, ModelEntry
from gateway.config.problems import ConfigError, Problem
from gateway.domain.builtin_backends import BUILTIN_BACKENDS

API_KEYS: Final = "auth.api_keys"
MODELS: Final = "models"
LIVE: Final = (MODELS, API_KEYS)
"""The keys that a reload applies. docs/reload.md has the same table."""


@dataclass(frozen=True)
class ConfigChanges:
    """The difference between the configuration that is in force and the one that was read."""

    live: tuple[str, ...]
    """The changed keys that take effect at once, such as `models.demo`."""
    restart: tuple[str, ...]
    """The changed keys that take effect only when the gateway starts again."""
    in_force: Config
    """The configuration once the live keys are applied."""

    @property
    def changes_models(self) -> bool:
        """Whether models were added, changed or removed."""
        return any(key.startswith(f"{MODELS}.") for key in self.live)

    @property
    def changes_api_keys(self) -> bool:
        """Whether the API keys that open the gateway are others."""
        return API_KEYS in self.live


def plan_reload(running: Config, read: Config) -> ConfigChanges:
    """Returns what a reload changes. Raises `ConfigError` for a file that cannot be applied as a whole.

    API keys are live while there are some: a gateway without any trusts its own machine only, which is decided at the
    start.
    """
    _check_backends(running, read.models)
    changed = set(_changed(running, read))
    live_keys = bool(running.auth.api_keys) and bool(read.auth.api_keys)
    live = {key for key in changed if key.startswith(f"{MODELS}.") or (key == API_KEYS and live_keys)}
    auth = running.auth.model_copy(update={"api_keys": read.auth.api_keys}) if live_keys else running.auth
    in_force = running.model_copy(update={"models": read.models, "auth": auth})
    return ConfigChanges(tuple(sorted(live)), tuple(sorted(changed - live)), in_force)


def _check_backends(running: Config, models: tuple[ModelEntry, ...]) -> None:
    """Raises `ConfigError` for a model whose backend this process does not know: a new one needs a restart."""
    problems = [
        Problem(f"models[{index}].backend", f"needs a restart: the backend {entry.backend!r} is new")
        for index, entry in enumerate(models)
        if entry.backend not in BUILTIN_BACKENDS and entry.backend not in running.backends
    ]
    if problems:
        raise ConfigError(problems)


def _changed(running: Config, read: Config) -> Iterator[str]:
    """Yields the changed keys. Models and backends go by their names."""
    for section in Config.model_fields:
        before, after = getattr(running, section), getattr(read, section)
        if section == MODELS:
            before, after = ({entry.name: entry for entry in models} for models in (before, after))
        if not isinstance(before, Mapping):
            before, after = dict(before), dict(after)
        yield from (f"{section}.{key}" for key in before.keys() | after.keys() if before.get(key) != after.get(key))
