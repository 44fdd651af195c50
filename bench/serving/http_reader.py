"""Reads HTTP/1.1 answers as their bytes come; for the load generator in Python."""

import re
from typing import Final

TOKEN: Final = re.compile(rb'"content": ?"t(\d+) ')


class AnswerReader:
    """Reads one answer. Feed it until `ended`."""

    def __init__(self) -> None:
        self.ended = False
        self.stamps: list[int] = []
        """The upstream's stamps of the tokens that came with the last bytes, in microseconds."""
        self._head: bytes | None = None
        self._raw = b""
        self._body = b""

    def feed(self, data: bytes) -> None:
        """Raises `ConnectionError` if this is no answer with status 200."""
        self._raw += data
        self.stamps = []
        if self._head is None:
            head, separator, rest = self._raw.partition(b"\r\n\r\n")
            if not separator:
                return
            if head[9:12] != b"200":
                raise ConnectionError(self._raw.decode(errors="replace"))
            self._head, self._raw = head.lower(), rest
        if b"transfer-encoding: chunked" in self._head:
            self._read_chunks()
        else:
            self.ended = len(self._raw) >= int(self._head.partition(b"content-length: ")[2].partition(b"\r\n")[0])

    def _read_chunks(self) -> None:
        while not self.ended:
            size, separator, rest = self._raw.partition(b"\r\n")
            if not separator or len(rest) < int(size, 16) + 2:
                break
            payload, self._raw = rest[: int(size, 16)], rest[int(size, 16) + 2 :]
            self._body += payload
            self.ended = not payload
        lines, newline, self._body = self._body.rpartition(b"\n")
        self.stamps = [int(stamp) for stamp in TOKEN.findall(lines + newline)]
