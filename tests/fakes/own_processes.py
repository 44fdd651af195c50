"""The processes that a test has started, among those of its test process."""

from collections.abc import Iterator
from typing import Final

import psutil

PRELOADED: Final = "tests.integration.preloaded"
"""Runs in the process that the gateways of a test run are forked from, and in each of them."""


def own_children() -> list[psutil.Process]:
    """All that live below this process, however deep, but for the PostgreSQL server that its tests share, and for the
    process that has the program imported with the gateways that came of it."""
    return [process for child in psutil.Process().children() for process in _below(child)]


def _below(child: psutil.Process) -> Iterator[psutil.Process]:
    """The child and what is below it; nothing if tests share it, or if it ends while one looks."""
    try:
        if PRELOADED in child.cmdline():
            return
        family = [child, *child.children(recursive=True)]
        if not any(process.name() == "postgres" for process in family):
            yield from family
    except psutil.NoSuchProcess:
        return
