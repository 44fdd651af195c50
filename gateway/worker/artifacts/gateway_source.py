"""The gateway that this worker has its session with, as a place to fetch files from that only the gateway has."""

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from gateway.worker.artifacts.errors import Interrupted
from gateway.worker.artifacts.source import NOTHING, Source

PATH: Final = "/api/artifacts/"


@dataclass
class GatewaySource:
    """The membership says at each registration where the gateway is (`point_at`); downloads ask."""

    context: ssl.SSLContext | None = None
    """What the gateway has to prove itself with."""
    _url: str | None = field(default=None, init=False)
    _credential: Mapping[str, str] = field(default_factory=lambda: NOTHING, init=False, repr=False)

    def point_at(self, url: str, credential: Mapping[str, str]) -> None:
        """`credential`: the headers that prove which node this is."""
        self._url, self._credential = url.rstrip("/"), credential

    def source(self, sha256: str) -> Source:
        """Raises `Interrupted` before the first registration."""
        if self._url is None:
            raise Interrupted("there is no gateway to fetch it from yet")
        url = self._url + PATH + sha256.lower()
        return Source(url, self._credential, is_trusted=True, redirects_max=0, context=self.context)
