"""Keeps the last lines that a backend process wrote, which explain its end (L22), and lets readers follow along."""

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import trio

from gateway.domain.session import LOG_LINES_MAX

LINE_BYTES_MAX: Final = 4096
"""A longer line is cut: a process that writes without line ends must not fill our memory."""
LINES_IN_REPORT: Final = 20
LINES_PER_TAKE: Final = 200
"""What a follower gets at a time, at most."""

_LINE_END: Final = re.compile(rb"[\r\n]+")
"""A carriage return ends a line too: progress bars are written that way."""


class Taken(NamedTuple):
    """Lines that a `Follower` has taken, oldest first."""

    lines: tuple[str, ...]
    skipped: int
    """Lines that were lost before these because the follower did not keep up."""
    ended: bool
    """Nothing more will come."""


class Follower:
    """One reader of the output. It loses lines rather than hold up the process that writes them."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = deque(lines, LOG_LINES_MAX)
        self._skipped = 0
        self._ended = False
        self._changed = trio.Event()
        self._changed.set()

    def put(self, lines: list[str]) -> None:
        """Adds lines and never blocks; beyond `LOG_LINES_MAX` the oldest are dropped and counted as skipped."""
        self._skipped += max(0, len(self._lines) + len(lines) - LOG_LINES_MAX)
        self._lines.extend(lines)
        self._changed.set()

    def end(self) -> None:
        """Marks the output as ended, since the process has closed it."""
        self._ended = True
        self._changed.set()

    async def take(self) -> Taken:
        """The next lines, as soon as there are any. The first call returns at once, maybe with none."""
        await self._changed.wait()
        lines = tuple(self._lines.popleft() for _ in range(min(LINES_PER_TAKE, len(self._lines))))
        taken = Taken(lines, self._skipped, ended=self._ended and not self._lines)
        self._skipped = 0
        if not self._lines and not self._ended:
            self._changed = trio.Event()
        return taken


class OutputLog:
    """The last lines of a byte stream. Invalid UTF-8 is replaced, empty lines are left out."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LOG_LINES_MAX)
        self._rest = b""
        self._ended = False
        self._followers: set[Follower] = set()

    def feed(self, chunk: bytes) -> list[str]:
        """Takes the next bytes and returns the lines they complete."""
        *ended, rest = _LINE_END.split(self._rest + chunk)
        self._rest = rest[:LINE_BYTES_MAX]
        lines = [_decode(line) for line in ended if line]
        self._add(lines)
        return lines

    def end(self) -> None:
        """The process has closed its output: an unfinished line is complete now."""
        if self._rest:
            self._add([_decode(self._rest)])
            self._rest = b""
        self._ended = True
        for follower in self._followers:
            follower.end()

    def _add(self, lines: list[str]) -> None:
        self._lines.extend(lines)
        for follower in self._followers if lines else ():
            follower.put(lines)

    def last(self, count: int = LINES_IN_REPORT) -> list[str]:
        """The last lines, oldest first, an unfinished one included."""
        lines = [*self._lines, _decode(self._rest)] if self._rest else [*self._lines]
        return lines[-count:] if count else []

    @contextmanager
    def open_follower(self, count: int) -> Iterator[Follower]:
        """Begins with the last `count` complete lines."""
        lines = list(self._lines)
        follower = Follower(lines[-count:] if count else [])
        self._followers.add(follower)
        if self._ended:
            follower.end()
        try:
            yield follower
        finally:
            self._followers.discard(follower)


def _decode(line: bytes) -> str:
    return line[:LINE_BYTES_MAX].decode(errors="replace")
