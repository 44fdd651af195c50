"""The settings of the other side (RFC 9113, 6.5.2). Pure."""

from typing import Final

from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from gateway.backends.grpc.flow import INITIAL_WINDOW_BYTES, WINDOW_BYTES_MAX
from gateway.backends.grpc.frames import FRAME_BYTES_MAX, BrokenConnection, settings_in

STREAMS_BEFORE_SETTINGS: Final = 100
"""How many streams are opened before the other side has said how many it takes. Some servers end a connection that has
more than they take, and none should take fewer (RFC 9113, 6.5.2)."""


class PeerSettings:
    """The limits that the other side sets. They have the values of the protocol until `apply` changes them."""

    def __init__(self) -> None:
        self.are_known = False
        """Whether the other side has sent its settings."""
        self.streams_max = STREAMS_BEFORE_SETTINGS
        self.stream_window_bytes = INITIAL_WINDOW_BYTES
        """How much of a request body it takes before it has read any."""
        self.frame_bytes_max = FRAME_BYTES_MAX

    def apply(self, payload: bytes) -> None:
        """Applies a SETTINGS frame. Raises `BrokenConnection` if a value is not allowed."""
        if not self.are_known:
            self.are_known = True
            self.streams_max = WINDOW_BYTES_MAX
        for name, value in settings_in(payload):
            self._apply_one(name, value)

    def _apply_one(self, name: int, value: int) -> None:
        match name:
            case SettingCodes.MAX_CONCURRENT_STREAMS:
                self.streams_max = value
            case SettingCodes.INITIAL_WINDOW_SIZE:
                if value > WINDOW_BYTES_MAX:
                    raise BrokenConnection(ErrorCodes.FLOW_CONTROL_ERROR, f"it sets INITIAL_WINDOW_SIZE to {value}")
                self.stream_window_bytes = value
            case SettingCodes.MAX_FRAME_SIZE:
                if not FRAME_BYTES_MAX <= value < 2**24:
                    raise BrokenConnection(ErrorCodes.PROTOCOL_ERROR, f"it sets MAX_FRAME_SIZE to {value}")
                self.frame_bytes_max = value
            case _:
                pass  # The others restrict what this client never does.
