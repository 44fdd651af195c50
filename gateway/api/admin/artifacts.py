"""Serves files that only gateways have to workers of other machines: those that models name by `file:` with a `sha256`.

A worker asks any gateway by the hash. A gateway without the file relays the answer of one that has it. The path comes
from the model and never from the request.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

import trio

from gateway.api.admin.peer_client import PeerClient
from gateway.api.http.auth import Caller, Role
from gateway.api.http.byte_range import ByteRange, Unsatisfiable, wanted_range
from gateway.api.http.exchange import Exchange, Headers
from gateway.api.http.http_app import Route
from gateway.domain.cluster import ClusterState
from gateway.domain.errors import BadRequest, Forbidden, NotFound, Unauthenticated
from gateway.domain.ids import NodeId
from gateway.domain.model_spec import ModelSpec
from gateway.domain.texts import quoted
from gateway.transport.node_credentials import BOOT

CHUNK_BYTES: Final = 1024 * 1024
FILE_SCHEME: Final = "file:"


class RangeNotSatisfiable(BadRequest):
    """The file has none of the bytes that the request's `Range` asks for (416; RFC 9110, 15.5.17)."""

    status = 416
    code = "range_not_satisfiable"


class FileShrank(Exception):
    """The file ends before the announced length: a program that has written to it has broken this response."""


@dataclass(frozen=True)
class ArtifactFiles:
    """Sends model files to workers of other machines, from this gateway's disk or from a gateway that has them."""

    state: Callable[[], ClusterState]
    models_dir: Path
    peers: PeerClient

    def routes(self) -> Sequence[Route]:
        """Returns the routes of `/api/artifacts/{sha256}` (GET and HEAD), which ask for a node credential."""
        path = "/api/artifacts/{sha256}"
        # A drain does not wait for gigabytes: the worker continues with what it has, here or at another gateway.
        return (
            Route("GET", path, Role.WORKER, self._send, ends_with_service=True),
            Route("HEAD", path, Role.WORKER, self._send, ends_with_service=True),
        )

    async def _send(self, exchange: Exchange, caller: Caller, _body: bytes) -> None:
        state, digest = self.state(), exchange.params["sha256"].lower()
        node = state.nodes.get(NodeId(caller.name))
        if node is None or not node.approved:
            raise Forbidden("This node is not approved to serve models.")
        if exchange.header(BOOT) not in {node.boot_id, node.joined_boot_id}:
            raise Unauthenticated("A newer start of this worker has joined since.", code="invalid_node_credential")
        exchange.notes["node"] = node.name
        specs = tuple(specs_of(digest, state.models.values()))
        file = await trio.to_thread.run_sync(_open_first, tuple(paths_of(specs, self.models_dir.resolve())))
        if file is not None:
            with file:
                await _answer(exchange, file, digest)
        elif not (specs and await self.peers.relay_from_any(exchange)):
            raise NotFound(f"No gateway has a file that a model names with the sha256 '{quoted(digest, 64)}'.")


def specs_of(digest: str, specs: Iterable[ModelSpec]) -> Iterator[ModelSpec]:
    """Yields the models that name a file with this hash."""
    for spec in specs:
        if spec.artifact.startswith(FILE_SCHEME) and spec.sha256 is not None and spec.sha256.lower() == digest:
            yield spec


def paths_of(specs: Iterable[ModelSpec], models_dir: Path) -> Iterator[Path]:
    """Yields the paths of their files. Paths that the API has set stay in `models_dir`, which is resolved (A7)."""
    for spec in specs:
        path = (models_dir / spec.artifact.removeprefix(FILE_SCHEME)).resolve()
        if spec.source == "file" or path.is_relative_to(models_dir):
            yield path


def _open_first(paths: Sequence[Path]) -> FileIO | None:
    """Opens the first path that is a readable regular file. Returns None if there is none."""
    for path in paths:
        try:
            file = FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))  # A pipe must not block this.
        except OSError:
            continue
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        file.close()
    return None


async def _answer(exchange: Exchange, file: FileIO, digest: str) -> None:
    size, etag = os.fstat(file.fileno()).st_size, f'"{digest}"'
    exchange.response_headers.extend([(b"etag", etag.encode()), (b"accept-ranges", b"bytes")])
    part = _wanted_part(exchange, size, etag)
    sent = part or ByteRange(0, size - 1)
    headers: Headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(sent.length).encode()),
    ]
    if part is not None:
        headers.append((b"content-range", f"bytes {part.first}-{part.last}/{size}".encode()))
    await exchange.send_head(206 if part is not None else 200, headers)
    if exchange.method != "HEAD":
        await _send_bytes(exchange, file, sent)
    await exchange.end_stream()


def _wanted_part(exchange: Exchange, size: int, etag: str) -> ByteRange | None:
    """Returns the range that the request asks for, or None for the whole file. Raises `RangeNotSatisfiable`."""
    if exchange.method != "GET" or exchange.header("if-range") not in {None, etag}:
        return None
    try:
        return wanted_range(exchange.header("range"), size)
    except Unsatisfiable:
        exchange.response_headers.append((b"content-range", f"bytes */{size}".encode()))
        raise RangeNotSatisfiable(f"The file has {size} bytes, none of which is in the range.") from None


async def _send_bytes(exchange: Exchange, file: FileIO, part: ByteRange) -> None:
    position, left = part.first, part.length
    while left:
        chunk = await trio.to_thread.run_sync(os.pread, file.fileno(), min(left, CHUNK_BYTES), position)
        if not chunk:
            raise FileShrank
        await exchange.send_part(chunk)
        position += len(chunk)
        left -= len(chunk)
