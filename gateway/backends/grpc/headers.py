"""Header blocks: ours are encoded once, those of backends are decoded within bounds (RFC 7541). Pure.

Our blocks use no dynamic table, so that the same bytes always mean the same. We ask backends to do so as well (a table
of size 0). Then their blocks repeat byte by byte, and each different one is decoded only once. A backend that uses a
table all the same, up to the size that it may have at first, is understood as well.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from h2.errors import ErrorCodes
from hpack import Decoder, Encoder
from hpack.exceptions import HPACKError
from hpack.struct import HeaderTuple, NeverIndexedHeaderTuple

from gateway.backends.grpc.frames import BrokenConnection

HEADER_LIST_BYTES_MAX: Final = 64 * 1024
"""The largest list of header fields that we take, counted as RFC 9113, 6.5.2 does."""
HEADER_BLOCK_BYTES_MAX: Final = 64 * 1024
"""The largest encoded block that we take. No list within the bound needs more."""
CONTINUATIONS_MAX: Final = 64
"""The number of frames after which a block has to be complete."""
KNOWN_BLOCKS_MAX: Final = 256
KNOWN_BLOCK_BYTES_MAX: Final = 512
"""Larger blocks are not remembered: they carry the text of an error."""
EMPTY_TABLE: Final = b"\x20"
"""Says that our encoder uses a dynamic table of size 0 (RFC 7541, 6.3). It precedes the first block of a connection, so
that no setting of the other side can make the table too large."""


def encode_request(*, scheme: str, authority: str, path: str, user_agent: str, metadata: Mapping[str, str]) -> bytes:
    """Returns the header block of a gRPC request. Metadata is marked as never to be indexed, because it has tokens."""
    encoder = Encoder()
    encoder.header_table_size = 0
    encoder.table_size_changes = []
    fields: list[HeaderTuple] = [
        HeaderTuple(":method", "POST"),
        HeaderTuple(":scheme", scheme),
        HeaderTuple(":path", path),
        HeaderTuple(":authority", authority),
        HeaderTuple("te", "trailers"),
        HeaderTuple("content-type", "application/grpc"),
        HeaderTuple("user-agent", user_agent),
        *(NeverIndexedHeaderTuple(name, value) for name, value in metadata.items()),
    ]
    return encoder.encode(fields)


class HeaderBlock:
    """A header block that arrives in several frames."""

    def __init__(self, stream_id: int, fragment: bytes, *, is_end: bool) -> None:
        self.stream_id = stream_id
        self.is_end = is_end
        """Whether the stream ends with the block."""
        self._parts = [fragment]
        self._bytes = len(fragment)

    def add(self, fragment: bytes) -> None:
        """Adds a CONTINUATION. Raises `BrokenConnection` if the block becomes too large."""
        self._parts.append(fragment)
        self._bytes += len(fragment)
        if self._bytes > HEADER_BLOCK_BYTES_MAX or len(self._parts) > CONTINUATIONS_MAX:
            raise BrokenConnection(ErrorCodes.ENHANCE_YOUR_CALM, "a header block is too long")

    def whole(self) -> bytes:
        """Returns all of the block."""
        return b"".join(self._parts)


class HeaderDecoder:
    """Decodes the header blocks of one connection, in the order in which they arrive."""

    def __init__(self) -> None:
        self._decoder = Decoder(max_header_list_size=HEADER_LIST_BYTES_MAX)
        self._known: dict[bytes, Mapping[str, str]] = {}

    def decode(self, block: bytes) -> Mapping[str, str]:
        """Returns the fields by name; of several with one name the last one counts. Raises `BrokenConnection` if the
        block cannot be decoded."""
        if (known := self._known.get(block)) is not None:
            return known
        had_table = self._decoder.header_table_size > 0
        try:
            fields = _as_text(self._decoder.decode(block, raw=True))
        except HPACKError as error:
            raise BrokenConnection(ErrorCodes.COMPRESSION_ERROR, f"a header block is broken: {error}") from error
        has_table = self._decoder.header_table_size > 0
        if not had_table and not has_table and len(block) <= KNOWN_BLOCK_BYTES_MAX:
            self._remember(block, fields)
        return fields

    def _remember(self, block: bytes, fields: Mapping[str, str]) -> None:
        if len(self._known) >= KNOWN_BLOCKS_MAX:
            self._known.clear()
        self._known[block] = fields


def _as_text(fields: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    return {_text(name): _text(value) for name, value in fields}


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
