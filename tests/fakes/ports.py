"""Ports of this machine for those who have to know theirs before anybody listens there, or keep it over a restart."""

import os
import random
import re
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

PORTS: Final = range(10000, 20000)
"""Below those that the kernel gives to clients and to who asks for any: nobody takes the port of a server that is down
for a while."""
SHARES: Final = 10
"""Of the ports, one for each process of a test run, so that two of them do not find the same one free."""


def free_port() -> int:
    """One that nobody uses, and that was not given before for as long as possible."""
    for _ in range(len(PORTS)):
        port = next(_TURN)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no free port")


def _turn() -> Iterator[int]:
    """This process's share again and again, in an order that a test run beside this one does not have."""
    number = int("0" + re.sub(r"\D", "", os.environ.get("PYTEST_XDIST_WORKER", "")))
    share = list(PORTS[number % SHARES :: SHARES])
    random.SystemRandom().shuffle(share)
    while True:
        yield from share


_TURN: Final = _turn()
