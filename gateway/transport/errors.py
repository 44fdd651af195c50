"""How a session can end, by what the worker can do about it."""


class SessionEnded(Exception):
    """The base. The message is a sentence for the log of whoever sees it."""


class SessionLost(SessionEnded):
    """The connection or the gateway went away. Attach again, to this gateway or another."""


class SessionRefused(SessionEnded):
    """The gateway does not want this session. `register_again`: a new registration may change that."""

    def __init__(self, message: str, *, register_again: bool) -> None:
        super().__init__(message)
        self.register_again = register_again


class MessageRefused(Exception):
    """A message says what can't be; which field, what it may be and what it was are in the text, for the sender."""
