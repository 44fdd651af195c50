"""Keeps the last lines of a backend process, which explain its end (L22), and lets readers follow its output."""

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import trio

from gateway.domain.session import LOG_LINES_MAX

LINE_BYTES_MAX: Final = 4096
"""The length at which a line is cut, because a process that writes no line ends must not fill the memory."""
LINES_IN_REPORT: Final = 20
LINES_PER_TAKE: Final = 200
"""The largest number of lines that a follower gets at a time."""

_LINE_END: Final = re.compile(rb"[\r\n]+")
"""The end of a line. A carriage return is one, too, because progress bars are written that way."""


class Taken(NamedTuple):
    """The lines that a `Follower` has taken, oldest first."""

    lines: tuple[str, ...]
    skipped: int
    """The number of lines that were lost before these because the follower was too slow."""
    ended: bool
    """Whether the output has ended."""


class Follower:
    """One reader of the output. It loses lines rather than delay the process that writes them."""

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
        """Waits for the next lines and returns them. The first call returns at once, perhaps without any."""
        await self._changed.wait()
        lines = tuple(self._lines.popleft() for _ in range(min(LINES_PER_TAKE, len(self._lines))))
        taken = Taken(lines, self._skipped, ended=self._ended and not self._lines)
        self._skipped = 0
        if not self._lines and not self._ended:
            self._changed = trio.Event()
        return taken


class OutputLog:
    """The last lines of a byte stream. Invalid UTF-8 is replaced, and empty lines are left out."""

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
        """Ends the output, because the process has closed it. An unfinished line is complete now."""
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
        """Returns the last lines, oldest first, including an unfinished one."""
        lines = [*self._lines, _decode(self._rest)] if self._rest else [*self._lines]
        return lines[-count:] if count else []

    @contextmanager
    def open_follower(self, count: int) -> Iterator[Follower]:
        """Opens a follower that begins with the last `count` complete lines."""
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
