"""Shows the progress of a load: a bar on a terminal, one line per change anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any, Final

from gateway.cli.fleet.status_tables import duration
from gateway.cli.table import printable
from gateway.domain.resources import format_bytes

POLL_SECONDS: Final = 0.5
Status = Mapping[str, Any]


def follow_load(status: Status, ask: Callable[[], Status], *, poll_seconds: float = POLL_SECONDS) -> Status:
    """Waits for the end of a load and returns its last status: the model is ready, or no load is requested any more.
    Shows every status before."""
    with _shown() as show:
        while not _is_over(status):
            show(status)
            time.sleep(poll_seconds)
            status = ask()
        show(status)
    return status


def _is_over(status: Status) -> bool:
    """Returns whether the load is over. An earlier failure is not the end while the load is still requested."""
    return status["state"] in {"ready", "unsatisfiable"} or not (status["requested"] or _moves(status))


def _moves(status: Status) -> bool:
    return status["state"] not in {"failed", "not_loaded"}


def status_line(status: Status) -> str:
    """Returns everything that is known, on one line. Pure."""
    parts = [status["state"], *_amounts(status)]
    if "node" in status:
        parts.append(f"on {status['node']}")
    if (cause := status.get("error") or status.get("reason")) is not None:
        parts.append(cause.partition("\n")[0])
    if "retry_at" in status:
        parts.append(f"next try at {datetime.fromtimestamp(status['retry_at']).astimezone():%H:%M:%S}")
    return printable(f"{status['model']}: {', '.join(parts)}")


def _amounts(status: Status) -> Iterator[str]:
    if "progress" in status:
        yield f"{status['progress']:.0%} of {format_bytes(status['bytes_total'])}"
    if "eta_seconds" in status:
        yield f"{duration(status['eta_seconds'])} to go"


@contextmanager
def _shown() -> Iterator[Callable[[Status], None]]:
    if sys.stdout.isatty():
        with _bar() as show:
            yield show
    else:
        yield _print_changes()


def _print_changes() -> Callable[[Status], None]:
    """Returns a function that prints each state once, whatever its progress, because a log is no screen."""
    seen = ""

    def show(status: Status) -> None:
        """Prints the state if it differs from the last one."""
        nonlocal seen
        state = status_line(
            {key: status[key] for key in ("model", "state", "node", "error", "reason") if key in status}
        )
        if state != seen:
            print(status_line(status), flush=True)
            seen = state

    return show


@contextmanager
def _bar() -> Iterator[Callable[[Status], None]]:
    from rich.progress import BarColumn, Progress, TextColumn

    with Progress(TextColumn("{task.description}", markup=False), BarColumn(), transient=False) as progress:
        task = progress.add_task("", total=None)

        def show(status: Status) -> None:
            """Moves the bar to the state's share."""
            share = 1.0 if status["state"] == "ready" else status.get("progress")
            # Without a known share the bar only shows that something is going on.
            progress.update(
                task, description=status_line(status), total=None if share is None else 1.0, completed=share or 0
            )

        yield show
