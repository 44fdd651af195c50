"""What is run for a backend: its command line, environment and folder. Secrets go by environment, never by argument."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from gateway.backends.metadata import TOKEN_VARIABLE
from gateway.domain.builtin_backends import BUILTIN_BACKENDS
from gateway.domain.ids import Address
from gateway.domain.model_spec import NOTHING
from gateway.worker.process.environment import backend_environment

DEFAULTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "HF_HUB_OFFLINE": "1",  # artifacts are here before the load; a backend that downloads does it unseen (L23)
        "PYTHONUNBUFFERED": "1",  # the last words of a crashing process would be lost in a buffer
    }
)


class UnknownBackend(Exception):
    """No program of that name: neither ours nor under `[backends.NAME]`."""


@dataclass(frozen=True)
class BackendProgram:
    """A program that speaks backend.proto and takes `--addr HOST:PORT`."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: NOTHING, repr=False)
    ready_timeout_seconds: float = 60.0
    """From its start until Health answers."""
    drains_on_term: bool = False
    """After SIGTERM it turns new calls away, finishes the open ones and ends. SIGTERM is the end of open calls of any
    other."""
    pass_env: tuple[str, ...] = ()
    """Variables of the worker's environment that it gets although they look like secrets: names, or patterns."""


OUR_PROGRAMS: Final[Mapping[str, BackendProgram]] = MappingProxyType(
    {
        name: BackendProgram((sys.executable, "-m", "gateway", "backend", name), drains_on_term=ours.drains_on_term)
        for name, ours in BUILTIN_BACKENDS.items()
    }
)


def program_of(backend: str, configured: Mapping[str, BackendProgram]) -> BackendProgram:
    """A configured program takes the place of ours of the same name. Raises `UnknownBackend`."""
    program = configured.get(backend) or OUR_PROGRAMS.get(backend)
    if program is None:
        known = ", ".join(sorted({*configured, *OUR_PROGRAMS}))
        raise UnknownBackend(f"this worker has no backend {backend!r}; it has {known}")
    return program


def command_line(program: BackendProgram, listen: Address) -> tuple[str, ...]:
    """Returns the command that starts the program and has it listen on `listen`."""
    return (*program.command, "--addr", listen)


def environment(program: BackendProgram, token: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """What the worker inherited without secrets, then the defaults, the program's section, the token."""
    passed_on = backend_environment(inherited, program.pass_env)
    return {**DEFAULTS, **passed_on, **program.env, TOKEN_VARIABLE: token}


def working_folder(program: BackendProgram) -> Path | None:
    """A foreign backend runs beside its program, as its start script expects; None: where the worker runs."""
    if program in OUR_PROGRAMS.values() or not Path(program.command[0]).is_absolute():
        return None
    return Path(program.command[0]).parent
