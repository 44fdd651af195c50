"""Answers a scrape of `/metrics` for all processes of one supervisor: the one that is asked asks the others."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import httpx
import structlog
import trio

from gateway.api.admin.peer_client import ASKED_WITH, RELAYED, TRUSTS_NOBODY
from gateway.domain.causes import cause_words
from gateway.observability.expositions import join_expositions

log = structlog.get_logger(__name__)

ANSWER_SECONDS: Final = 3.0
"""How long a process may take to answer. It is shorter than the patience of usual scrapers, which is 10 s."""
PATH: Final = "/metrics"


@dataclass(frozen=True)
class ProcessMetrics:
    """The metrics of this process and of its siblings."""

    number: int
    """The number of this process."""
    urls: tuple[str, ...]
    """The addresses of all processes by number."""
    context: ssl.SSLContext | None
    """The TLS context for the siblings. None means that they do not speak TLS."""

    async def join(self, own: bytes, headers: Mapping[str, str]) -> bytes:
        """Returns the series of all processes that answer, for a caller whose request has these headers.

        A request that a sibling has passed on gets `own` as it is.
        """
        if RELAYED in headers:
            return own
        found: dict[int, str | None] = dict.fromkeys(range(len(self.urls)))
        found[self.number] = own.decode()
        asked = {RELAYED: "1"} | {name: headers[name] for name in ASKED_WITH if name in headers}
        verify = TRUSTS_NOBODY if self.context is None else self.context
        async with (
            httpx.AsyncClient(verify=verify, timeout=ANSWER_SECONDS, trust_env=False, headers=asked) as http,
            trio.open_nursery() as nursery,
        ):
            for number in found.keys() - {self.number}:
                nursery.start_soon(self._ask, http, number, found)
        return join_expositions(found).encode()

    async def _ask(self, http: httpx.AsyncClient, number: int, found: dict[int, str | None]) -> None:
        """Puts the answer of one sibling into `found`. Without an answer in time there is none."""
        with trio.move_on_after(ANSWER_SECONDS) as scope:
            try:
                found[number] = (await http.get(self.urls[number] + PATH)).raise_for_status().text
            except httpx.HTTPError as error:
                log.warning("metrics.process_left_out", process=number, error=cause_words(error))
        if scope.cancelled_caught:
            log.warning("metrics.process_left_out", process=number, error=f"no answer within {ANSWER_SECONDS:g} s")
