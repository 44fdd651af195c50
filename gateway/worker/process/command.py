"""The command line, environment and folder of a backend. Secrets are passed by environment, never by argument."""

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
        "HF_HUB_OFFLINE": "1",  # Artifacts are here before the load; a backend that downloads does it unseen (L23).
        "PYTHONUNBUFFERED": "1",  # The last output of a crashing process would be lost in a buffer.
    }
)


class UnknownBackend(Exception):
    """There is no program of that name, neither a built-in one nor one of `[backends.NAME]`."""


@dataclass(frozen=True)
class BackendProgram:
    """A program that speaks backend.proto and takes `--addr HOST:PORT`."""

    command: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=lambda: NOTHING, repr=False)
    ready_timeout_seconds: float = 60.0
    """The time from its start until Health answers."""
    drains_on_term: bool = False
    """Whether the program drains after SIGTERM: it refuses new calls, finishes the open ones and ends. SIGTERM ends the
    open calls of any other program."""
    pass_env: tuple[str, ...] = ()
    """The variables of the worker's environment that it gets although they look like secrets: names or patterns."""


OUR_PROGRAMS: Final[Mapping[str, BackendProgram]] = MappingProxyType(
    {
        name: BackendProgram((sys.executable, "-m", "gateway", "backend", name), drains_on_term=ours.drains_on_term)
        for name, ours in BUILTIN_BACKENDS.items()
    }
)


def program_of(backend: str, configured: Mapping[str, BackendProgram]) -> BackendProgram:
    """Returns the program of a backend. A configured program replaces a built-in one of the same name. Raises
    `UnknownBackend`."""
    program = configured.get(backend) or OUR_PROGRAMS.get(backend)
    if program is None:
        known = ", ".join(sorted({*configured, *OUR_PROGRAMS}))
        raise UnknownBackend(f"this worker has no backend {backend!r}; it has {known}")
    return program


def command_line(program: BackendProgram, listen: Address) -> tuple[str, ...]:
    """Returns the command that starts the program and has it listen on `listen`."""
    return (*program.command, "--addr", listen)


def environment(program: BackendProgram, token: str, inherited: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment: the worker's without secrets, then the defaults, the program's section, and the
    token."""
    passed_on = backend_environment(inherited, program.pass_env)
    return {**DEFAULTS, **passed_on, **program.env, TOKEN_VARIABLE: token}


def working_folder(program: BackendProgram) -> Path | None:
    """Returns the working folder. A foreign backend runs in the folder of its program, as its start script expects.
    None means the worker's folder."""
    if program in OUR_PROGRAMS.values() or not Path(program.command[0]).is_absolute():
        return None
    return Path(program.command[0]).parent
