"""Keeps the last lines that a backend process wrote: what it printed last is what explains its end (L22)."""

import re
from collections import deque
from typing import Final

LINES_MAX: Final = 200
LINE_BYTES_MAX: Final = 4096
"""A longer line is cut: a process that writes without line ends must not fill our memory."""
LINES_IN_REPORT: Final = 20

_LINE_END: Final = re.compile(rb"[\r\n]+")
"""A carriage return ends a line too: progress bars are written that way."""


class LineTail:
    """The last lines of a byte stream. Invalid UTF-8 is replaced, empty lines are left out."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque(maxlen=LINES_MAX)
        self._rest = b""

    def feed(self, chunk: bytes) -> list[str]:
        """Takes the next bytes and returns the lines they complete."""
        *ended, rest = _LINE_END.split(self._rest + chunk)
        self._rest = rest[:LINE_BYTES_MAX]
        lines = [_decode(line) for line in ended if line]
        self._lines.extend(lines)
        return lines

    def last(self, count: int = LINES_IN_REPORT) -> list[str]:
        """The last lines, oldest first, an unfinished one included."""
        lines = [*self._lines, _decode(self._rest)] if self._rest else [*self._lines]
        return lines[-count:]


def _decode(line: bytes) -> str:
    return line[:LINE_BYTES_MAX].decode(errors="replace")
