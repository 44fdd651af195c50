"""The processes that a test has started, among those of its test process."""

from collections.abc import Iterator

import psutil


def own_children() -> list[psutil.Process]:
    """All that live below this process, however deep, but for the PostgreSQL server that its tests share."""
    return [process for child in psutil.Process().children() for process in _below(child)]


def _below(child: psutil.Process) -> Iterator[psutil.Process]:
    """The child and what is below it; nothing if it is the server, or ends while one looks."""
    try:
        family = [child, *child.children(recursive=True)]
        if not any(process.name() == "postgres" for process in family):
            yield from family
    except psutil.NoSuchProcess:
        return
