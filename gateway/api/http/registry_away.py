"""What a caller is told whose request needs the registry while that can't be used."""

from typing import Final

import structlog

from gateway.domain.errors import Unavailable
from gateway.registry.protocol import RegistryError

log = structlog.get_logger(__name__)

RETRY_AFTER_SECONDS: Final = 5.0


def registry_away(error: RegistryError) -> Unavailable:
    """The cause names servers and users, so it goes to the log only."""
    log.warning("request.registry_unavailable", error=str(error))
    return Unavailable(
        "The gateway's registry can't be used now; its log says why. What is loaded is served on.",
        retry_after_seconds=RETRY_AFTER_SECONDS,
        code="registry_unavailable",
    )
