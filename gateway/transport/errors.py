"""The errors of the connection between a worker and a gateway; `domain/session` has those of the session itself."""

from gateway.domain.session import SessionEnded


class SessionLost(SessionEnded):
    """The connection or the gateway was lost. The worker should attach again, to this gateway or another one."""


class MessageRefused(Exception):
    """A message has an impossible value. The text names the field, the allowed values and the value, for the sender."""
