"""`gateway serve`: runs the gateway, in this process or in several, until a signal ends it."""

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from functools import partial

from gateway.cli.outcome import USAGE, print_error
from gateway.cli.processes.greeting import greeting
from gateway.cli.processes.until_signal import run_program
from gateway.cli.setup.check_config import find_config
from gateway.cli.without_rich import without_rich
from gateway.config.load import load_config
from gateway.config.model import Config
from gateway.config.problems import ConfigError
from gateway.observability.logging import configure_logging
from gateway.process_place import ProcessPlace
from gateway.supervisor.layout import fixed_changes, overrides_of, refusals
from gateway.supervisor.readiness import Notifier
from gateway.supervisor.supervisor import run_processes

Load = Callable[[], Config]
"""Reads the configuration anew. Raises `ConfigError`."""


def serve(arguments: argparse.Namespace) -> int:
    """Runs the gateway until a signal ends it. Returns the exit code, 2 for a bad configuration."""
    place = ProcessPlace.parse(arguments.as_process) if arguments.as_process else None
    load = partial(_load, arguments, place)
    try:
        config = load()
    except ConfigError as error:
        print(error, file=sys.stderr)
        return USAGE
    configure_logging(config.log.level, config.log.format)
    notifier = Notifier(os.environ)
    if arguments.processes is not None:
        return _serve_in_processes(arguments, config, load, notifier)
    with without_rich():
        from gateway.cli.processes.gateway import ConfigSource, serve_here  # here: a supervisor needs nothing of it

    return serve_here(config, ConfigSource(load, find_config(arguments.config)), place, notifier)


def _load(arguments: argparse.Namespace, place: ProcessPlace | None) -> Config:
    """Loads the configuration of this process. Raises `ConfigError`."""
    given = {"server.host": arguments.host, "server.port": arguments.port}
    overrides: Mapping[str, object] = {key: value for key, value in given.items() if value is not None}
    read = partial(load_config, find_config(arguments.config), os.environ)
    config = read(overrides)
    return config if place is None else read({**overrides, **overrides_of(config, place.number)})


def _serve_in_processes(arguments: argparse.Namespace, config: Config, load: Load, notifier: Notifier) -> int:
    """Runs the supervisor. Returns the exit code, 2 if the configuration is none for so many processes."""

    count: int = arguments.processes
    if refused := list(refusals(config, count)):
        for reason in refused:
            print_error(reason)
        return USAGE

    def greet(url: str) -> None:
        """Prints the greeting."""
        print(greeting(config, url), file=sys.stderr, flush=True)

    run = partial(
        run_processes,
        options=_options(arguments),
        environ=os.environ,
        notifier=notifier,
        find_obstacle=partial(_find_obstacle, config, load, count),
        greet=greet,
    )
    return run_program(run, config, count)


def _find_obstacle(before: Config, load: Load, count: int) -> str:
    """Returns why the configuration cannot be reloaded as it is now, or nothing."""
    try:
        after = load()
    except ConfigError as error:
        return str(error)
    changed = fixed_changes(before, after)
    return "; ".join(
        [*refusals(after, count), *([f"{', '.join(changed)} change only at a restart"] if changed else [])]
    )


def _options(arguments: argparse.Namespace) -> list[str]:
    """Returns the options with which a process of the supervisor reads the same configuration."""
    given = {"--config": arguments.config, "--host": arguments.host, "--port": arguments.port}
    return [text for name, value in given.items() if value is not None for text in (name, str(value))]
