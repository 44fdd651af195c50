"""The ways in which a session can end, by what the worker can do about it."""


class SessionEnded(Exception):
    """The base class. Its message is a sentence for the log."""


class SessionLost(SessionEnded):
    """The connection or the gateway was lost. The worker should attach again, to this gateway or another one."""


class SessionRefused(SessionEnded):
    """The gateway refuses this session. `register_again` says that a new registration may change that."""

    def __init__(self, message: str, *, register_again: bool) -> None:
        super().__init__(message)
        self.register_again = register_again


class MessageRefused(Exception):
    """A message has an impossible value. The text names the field, the allowed values and the value, for the sender."""
