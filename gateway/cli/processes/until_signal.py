"""Runs a command that stays: until a signal, with one line for each way to fail."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVarTuple

import structlog
import trio

from gateway.api.http.listener.open_files import raise_limit
from gateway.cli.outcome import FAILED, OK, print_error
from gateway.data_dir import StartupError
from gateway.domain.causes import leaves
from gateway.observability.task_tree import task_tree
from gateway.registry.protocol import RegistryError

log = structlog.get_logger(__name__)

Ts = TypeVarTuple("Ts")

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SHOW_TASKS: Final = signal.SIGUSR1
RELOAD: Final = signal.SIGHUP
EXPECTED: Final = (StartupError, RegistryError)
"""The errors whose messages are for the user. Any other error is a bug."""


def run_program(main: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> int:
    """Runs `main` with Trio and returns the exit code."""
    raise_limit()
    try:
        trio.run(main, *args)
    except (Exception, BaseExceptionGroup) as error:
        causes = list(leaves(error))
        for cause in causes:
            if isinstance(cause, EXPECTED):
                print_error(str(cause))
        if any(not isinstance(cause, EXPECTED) for cause in causes):
            log.exception("gateway.crashed")
            print_error("internal error; see the log above")
        return FAILED
    return OK


@asynccontextmanager
async def running_until_signal(reload: Callable[[], None] | None = None) -> AsyncIterator[trio.Event]:
    """Yields an event that SIGTERM and SIGINT set. A second one of them ends the process at once, and the kernel ends
    the backends with it (they ask for that at their start). SIGUSR1 prints the tree of tasks, and the process goes on.

    `reload` is called at each SIGHUP. Without it somebody else handles that signal.
    """
    stop = trio.Event()
    numbers = (*STOP_SIGNALS, SHOW_TASKS) if reload is None else (*STOP_SIGNALS, SHOW_TASKS, RELOAD)
    with trio.open_signal_receiver(*numbers) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_signals, signals, stop, reload)
            yield stop
            nursery.cancel_scope.cancel()


async def _watch_signals(signals: AsyncIterator[int], stop: trio.Event, reload: Callable[[], None] | None) -> None:
    async for number in signals:
        if number == RELOAD and reload is not None:
            reload()
        elif number == SHOW_TASKS:
            print(task_tree(), file=sys.stderr, flush=True)
        elif stop.is_set():
            os._exit(128 + number)
        else:
            stop.set()
