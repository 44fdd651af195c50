"""gRPC messages in the bytes of a stream: a flag, a length of four bytes, the message. Pure."""

from typing import Final

from grpclib import GRPCError, Status

PREFIX_BYTES: Final = 5


def with_prefix(message: bytes) -> bytes:
    """Returns a message as it is sent, uncompressed."""
    return b"\0" + len(message).to_bytes(4, "big") + message


class MessageReader:
    """Cuts the bytes of one answer into messages, however they are spread over frames."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0
        """The number of bytes with which it is worth to look again: a prefix, or a prefix and its message."""

    @property
    def is_between_messages(self) -> bool:
        """Whether no message has begun that is not complete."""
        return self._have == 0

    def read(self, data: bytes) -> list[bytes]:
        """Returns the messages that are complete now. Raises `GRPCError` for one that is too large or compressed."""
        if self._have:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return []
            data = b"".join(self._parts)
            self._parts = []
            self._have = 0
        return self._split(data)

    def _split(self, data: bytes) -> list[bytes]:
        messages, at, end = [], 0, len(data)
        while end - at >= PREFIX_BYTES:
            size = self._size_of_message(data, at)
            if end - at - PREFIX_BYTES < size:
                break
            start, at = at + PREFIX_BYTES, at + PREFIX_BYTES + size
            messages.append(data[start:at])
        if at < end:
            self._keep(data[at:])
        return messages

    def _keep(self, rest: bytes) -> None:
        self._parts, self._have, self._need = [rest], len(rest), PREFIX_BYTES
        if len(rest) >= PREFIX_BYTES:
            self._need += self._size_of_message(rest, 0)

    def _size_of_message(self, data: bytes, at: int) -> int:
        if data[at]:
            raise GRPCError(Status.INTERNAL, "its message is compressed, which the gateway does not support")
        size = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
        if size > self._bytes_max:
            text = f"its message has {size} bytes, and the limit is {self._bytes_max}"
            raise GRPCError(Status.RESOURCE_EXHAUSTED, text)
        return size
