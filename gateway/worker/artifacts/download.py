"""Downloads one file: it asks for the file, keeps what arrives, and asks for the rest when the connection breaks.

Silence is limited, not work (L5). A connection without data for `SILENCE_SECONDS` is closed. A source is given up after
`FAILURES_MAX` attempts in a row that brought no new byte.
"""

import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import httpx
import structlog
import trio

from gateway.domain.artifact import shown
from gateway.domain.causes import cause_words
from gateway.domain.pacing import doubled_seconds
from gateway.worker.artifacts.http_answer import (
    Asked,
    Body,
    Complete,
    HttpRefused,
    StartOver,
    TryAgain,
    read_answer,
    request_headers,
)
from gateway.worker.artifacts.partial_file import PartialFile, file_sha256
from gateway.worker.artifacts.reference import ArtifactError
from gateway.worker.artifacts.source import Interrupted, Resolve, Source, address_for, build_request, resolve

log = structlog.get_logger(__name__)

SILENCE_SECONDS: Final = 60.0
CONNECT_SECONDS: Final = 30.0
FAILURES_MAX: Final = 8
MISMATCHES_MAX: Final = 2
"""The number of wrong hashes after which the source is given up. The first may be a transmission error, the second is
that of the file."""
PAUSE_FIRST_SECONDS: Final = 0.5
PAUSE_SECONDS_MAX: Final = 30.0
WRITE_BYTES: Final = 1024 * 1024
REPORT_SECONDS: Final = 0.5
"""The time between two reports of a download's progress: short enough for people who watch, long enough for each
report to be written down."""
ROOM_CHECK_BYTES: Final = 256 * 1024 * 1024
"""The number of bytes between two checks of the disk, because others fill it, too."""
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})

OnProgress = Callable[[int, int | None], None]
"""Called with the number of bytes that are here, and the total if it is known. It must not block."""
MakeRoom = Callable[[int], Awaitable[None]]
"""Makes room for this many more bytes. Raises `ArtifactError`."""


@dataclass
class HttpClient:
    """Opens responses. `context` is the TLS context for servers, unless the source has its own; None means what the
    system trusts."""

    context: ssl.SSLContext | None = None
    resolve: Resolve = resolve

    @cached_property
    def _context(self) -> ssl.SSLContext:
        return self.context or ssl.create_default_context()

    @asynccontextmanager
    async def open_response(self, source: Source, asked: Asked, turn: int) -> AsyncIterator[httpx.Response]:
        """Opens the first response that is no redirect, with an unread body. Raises `ArtifactError`, `Interrupted`."""
        # A proxy would resolve names itself, so a request that must go to a checked address uses none.
        verify = source.context or self._context
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(verify=verify, timeout=timeout, trust_env=not source.public_only) as http:
            response = await self._follow(http, source, asked, turn)
            try:
                yield response
            finally:
                await response.aclose()

    async def _follow(self, http: httpx.AsyncClient, source: Source, asked: Asked, turn: int) -> httpx.Response:
        url = _parsed(source.url)
        for _ in range(source.redirects_max + 1):
            address = await address_for(source, url, self.resolve, turn)
            response = await http.send(build_request(source, url, address, request_headers(asked)), stream=True)
            if response.status_code not in _REDIRECTS:
                return response
            url = await _target_of(response, url)
        raise ArtifactError(f"{shown(source.url)} redirects more than {source.redirects_max} times")


def _parsed(url: str) -> httpx.URL:
    try:
        return httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ArtifactError(f"{shown(url)} is no URL: {error}") from error


async def _target_of(response: httpx.Response, url: httpx.URL) -> httpx.URL:
    await response.aclose()
    try:
        return url.join(response.headers.get("location", ""))
    except (httpx.InvalidURL, ValueError) as error:
        raise ArtifactError(f"{shown(str(url))} redirects to what is no URL") from error


@dataclass
class Download:
    """Downloads one file into its part. `run` returns when the file is complete and has the expected hash."""

    http_client: HttpClient
    locate: Callable[[], Source]
    """Returns the source. It is called at each attempt, because a gateway's address may change. Raises `ArtifactError`,
    `Interrupted`."""
    part: PartialFile
    sha256: str | None
    make_room: MakeRoom
    on_progress: OnProgress
    _failures: int = field(default=0, init=False)
    """The number of failures in a row without a new byte."""
    _mismatches: int = field(default=0, init=False)
    _best: int = field(default=0, init=False)
    """The largest number of bytes that were here at any time. Fetching bytes a second time is no progress."""
    _url: str = field(default="the artifact", init=False)

    async def run(self) -> None:
        """Downloads the file. Raises `ArtifactError`, `OSError`. A cancel keeps what has arrived for the next time."""
        self._best = self.part.size
        while True:
            try:
                await self._attempt()
                return
            except (Interrupted, httpx.TransportError) as error:
                await trio.sleep(self._pause_after(error))

    def _pause_after(self, error: Interrupted | httpx.TransportError) -> float:
        """Returns the seconds until the next attempt. Raises `ArtifactError` if there is none."""
        self._failures = 1 if self.part.size > self._best else self._failures + 1
        self._best = max(self._best, self.part.size)
        reason = cause_words(error)
        if self._failures >= FAILURES_MAX:
            raise ArtifactError(f"{self._url} could not be fetched in {FAILURES_MAX} attempts: {reason}") from error
        log.info("worker.fetch_interrupted", url=self._url, reason=reason, done_bytes=self.part.size)
        if isinstance(error, Interrupted) and error.retry_after_seconds is not None:
            return error.retry_after_seconds
        pause = doubled_seconds(PAUSE_FIRST_SECONDS, self._failures - 1, PAUSE_SECONDS_MAX)
        return pause * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load

    async def _attempt(self) -> None:
        source = self.locate()
        self._url = shown(source.url)
        asked = await trio.to_thread.run_sync(lambda: self.part.asked(has_digest=self.sha256 is not None))
        if not self._is_whole(asked):
            await self._ask(source, asked)
        await self._verify()

    def _is_whole(self, asked: Asked) -> bool:
        """Returns whether the whole file is here from an earlier time at which it could not be verified."""
        return asked.total is not None and asked.offset == asked.total > 0

    async def _ask(self, source: Source, asked: Asked) -> None:
        async with self.http_client.open_response(source, asked, self._failures) as response:
            match read_answer(response.status_code, response.headers, asked):
                case Body() as body:
                    await self._take(response, body)
                case Complete():
                    pass
                case StartOver(reason):
                    await self._drop()
                    raise Interrupted(reason)
                case TryAgain(reason, seconds):
                    raise Interrupted(reason, seconds)
                case HttpRefused(reason):
                    raise ArtifactError(f"{self._url} can't be fetched: {reason}")

    async def _take(self, response: httpx.Response, body: Body) -> None:
        if body.offset == 0:
            await trio.to_thread.run_sync(self.part.begin, body.etag, body.total)
        await self._check_room(body.total)
        self.on_progress(self.part.size, body.total)
        await self._read(response, body.total)
        if body.total is not None and self.part.size != body.total:
            raise Interrupted(f"it ended after {self.part.size} of {body.total} bytes")

    async def _read(self, response: httpx.Response, total: int | None) -> None:
        """Reads the body. httpx's iterators have to be read to their end or be ended by an exception of theirs. So a
        failure in this code becomes a cancel of the next read, and a cancel from outside waits for it."""
        failure: Exception | None = None
        waiting = bytearray()
        try:
            with trio.CancelScope() as reading:
                async for chunk in response.aiter_raw():
                    waiting += chunk
                    self.on_progress(self.part.size + len(waiting), total)
                    if len(waiting) >= WRITE_BYTES and (failure := await self._keep(waiting, total)) is not None:
                        reading.cancel()
        finally:
            failure = failure or await self._keep(waiting, total)
        if failure is not None:
            raise failure

    async def _keep(self, waiting: bytearray, total: int | None) -> Exception | None:
        """Writes what has arrived, also when nothing more is wanted, so that the next download need not ask for it
        again."""
        with trio.CancelScope(shield=True):
            before, data = self.part.size, bytes(waiting)
            waiting.clear()
            if total is not None and before + len(data) > total:
                return Interrupted(f"it sent more than the {total} bytes that it has announced")
            try:
                await trio.to_thread.run_sync(self.part.append, data)
                if before // ROOM_CHECK_BYTES != self.part.size // ROOM_CHECK_BYTES:
                    await self._check_room(total)
            except ArtifactError as error:
                return error
            except OSError as error:
                return ArtifactError(f"{self._url} could not be written to {self.part.path}: {error.strerror}")
        return None

    async def _check_room(self, total: int | None) -> None:
        await self.make_room(0 if total is None else max(0, total - self.part.size))

    async def _verify(self) -> None:
        if self.sha256 is None:
            return
        actual = self.part.sha256 or await trio.to_thread.run_sync(file_sha256, self.part.path)
        if actual == self.sha256.lower():
            return
        self._mismatches += 1
        await self._drop()
        if self._mismatches >= MISMATCHES_MAX:
            raise ArtifactError(f"what {self._url} sends has sha256 {actual}, expected {self.sha256}")
        raise Interrupted(f"what came has sha256 {actual}, expected {self.sha256}")

    async def _drop(self) -> None:
        await trio.to_thread.run_sync(self.part.begin, None, None)


class DownloadProgress:
    """Passes on how far a download is. Call it at every chunk; it calls `report` at most once in `REPORT_SECONDS`."""

    def __init__(self, report: Callable[[int, int | None], None]) -> None:
        self._report = report
        self._reported_at = float("-inf")

    def __call__(self, done: int, total: int | None) -> None:
        now = trio.current_time()
        if now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            self._report(done, total)
