"""Tells the application that a request's client has left, without a task that waits for it.

Each of the listener's protocols puts a `ClientWatch` into the extensions of the ASGI scope. It calls `record_gone` when
the connection, or the stream of HTTP/2, has ended.
"""

from typing import Final

import trio

CLIENT_WATCH: Final = "gateway.client_watch"
"""The name of the `ClientWatch` in `scope["extensions"]`."""


class ClientWatch:
    """Whether the client of one request is still there, and what ends when it leaves."""

    __slots__ = ("_scope", "is_gone")

    def __init__(self) -> None:
        self.is_gone = False
        self._scope: trio.CancelScope | None = None

    def cancel_when_gone(self, scope: trio.CancelScope) -> None:
        """Has `scope` cancelled when the client leaves; at once if it has left."""
        self._scope = scope
        if self.is_gone:
            scope.cancel()

    def release(self) -> None:
        """Cancels nothing any more: the response is complete, and a client may leave after it."""
        self._scope = None

    def record_gone(self) -> None:
        """Notes that the client has left."""
        self.is_gone = True
        if self._scope is not None:
            self._scope.cancel()
