"""How a process says that it serves, to the supervisor and to systemd."""

import os
import socket
from pathlib import Path

import pytest
import trio

from gateway.supervisor.readiness import NOTIFY_VARIABLE, READY, STOPPING, Notifier, open_readiness


async def test_the_supervisor_hears_when_a_process_is_ready(tmp_path: Path) -> None:
    with open_readiness(tmp_path / "1") as readiness:
        environ = {NOTIFY_VARIABLE: str(readiness.path), "OTHER": "stays"}
        notifier = Notifier(environ)
        assert environ == {"OTHER": "stays"}, "no child process speaks for this one"
        notifier.notify("STATUS=starting")
        notifier.notify(f"STATUS=ready\n{READY}")
        with trio.fail_after(10):
            await readiness.wait_ready()
    assert not readiness.path.exists()


async def test_what_is_not_ready_is_not_taken_for_it(tmp_path: Path) -> None:
    with open_readiness(tmp_path / "1") as readiness:
        notifier = Notifier({NOTIFY_VARIABLE: str(readiness.path)})
        for state in ("READY=10", "NOT_READY=1", STOPPING, "\xff"):
            notifier.notify(state)
        with trio.move_on_after(0.1) as scope:
            await readiness.wait_ready()
        assert scope.cancelled_caught


def test_an_abstract_address_is_understood() -> None:
    name = f"gateway-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        Notifier({NOTIFY_VARIABLE: f"@{name}"}).notify(READY)
        assert listening.recv(100) == READY.encode()


@pytest.mark.parametrize("environ", [{}, {NOTIFY_VARIABLE: "/nowhere/socket"}])
def test_nobody_who_listens_is_no_error(environ: dict[str, str]) -> None:
    Notifier(environ).notify(READY)
