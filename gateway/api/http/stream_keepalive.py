"""Sends comments to streams that wait, so that nobody on the way takes a silent connection for a dead one.

One task does it for all streams. Each stream only notes since when it waits, so a token costs no timer.
"""

import math
from typing import Final

import structlog
import trio

from gateway.api.http.exchange import Exchange
from gateway.concurrency import ParkingSpot

log = structlog.get_logger(__name__)

CHECKS_PER_INTERVAL: Final = 16
"""The limit of how often all streams are looked at in one interval. A comment is late by one such part at most."""


class StreamKeepalive:
    """The open streams of one gateway. `run` sends a comment to each that has waited for an interval."""

    def __init__(self, interval_seconds: float) -> None:
        self._interval_seconds = interval_seconds
        self._streams: set[Exchange] = set()
        self._begun = ParkingSpot()

    def add(self, exchange: Exchange) -> None:
        """Begins to watch a stream, which waits from now on."""
        exchange.record_silence(trio.current_time())
        self._streams.add(exchange)
        self._begun.wake()

    def discard(self, exchange: Exchange) -> None:
        """Ends the watch of a stream. A comment that is being written is written to its end."""
        self._streams.discard(exchange)

    async def run(self) -> None:
        """Sends comments until it is cancelled. A client that reads slowly delays its own comments only."""
        async with trio.open_nursery() as comments:
            while True:
                while not self._streams:
                    await self._begun.wait()
                await trio.sleep_until(self._next_check(trio.current_time()))
                for exchange in self._take_due(trio.current_time()):
                    comments.start_soon(self._send_comment, exchange)

    def _next_check(self, now: float) -> float:
        """Returns when to look again. Streams that begin later are due later, so none of them is missed."""
        oldest = min((each.silent_since for each in self._streams), default=math.inf)
        earliest = now + self._interval_seconds / CHECKS_PER_INTERVAL
        return max(earliest, min(oldest, now) + self._interval_seconds)

    def _take_due(self, now: float) -> list[Exchange]:
        """Returns the streams that have waited for an interval. Their next interval begins now."""
        due = [each for each in self._streams if each.silent_since + self._interval_seconds <= now]
        for exchange in due:
            exchange.record_silence(now)
        return due

    async def _send_comment(self, exchange: Exchange) -> None:
        if exchange not in self._streams or math.isinf(exchange.silent_since):
            return  # It has ended, or goes on, since it was due.
        try:
            await exchange.send_comment()
        except Exception:
            log.exception("http.keepalive_failed")
