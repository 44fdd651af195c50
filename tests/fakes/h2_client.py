"""An HTTP/2 client that does as it is told, also what no client should do."""

import struct
from collections import defaultdict
from collections.abc import Callable
from typing import Any, Final

import h2.config
import h2.connection
import h2.events
import h2.settings
import trio

HEAD: Final = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "localhost"),
]
JSON: Final = ("content-type", "application/json")


def raw_frame(kind: int, payload: bytes = b"", *, flags: int = 0, stream: int = 0) -> bytes:
    """Of any kind; no state machine has a say in it."""
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


class H2Client:
    """Keeps what it has read, by stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.connection = h2.connection.H2Connection(
            h2.config.H2Configuration(validate_outbound_headers=False, header_encoding="latin-1")
        )
        self.statuses: dict[int, str] = {}
        self.bodies: defaultdict[int, bytes] = defaultdict(bytes)
        self.ended: set[int] = set()
        self.resets: dict[int, int] = {}
        """Error code by stream."""
        self.goaway: int | None = None
        """Its error code."""
        self.closed = False
        self.settled = False
        """The server has said how it wants to be spoken with."""

    async def start(self, window_bytes: int | None = None) -> None:
        """`window_bytes`: what the server may send on each stream before more is allowed."""
        if window_bytes is not None:
            code = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
            self.connection.local_settings = h2.settings.Settings(client=True, initial_values={code: window_bytes})
        self.connection.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        await self.stream.send_all(self.connection.data_to_send())

    async def ask(self, path: str, body: bytes = b"{}", *more: tuple[str, str]) -> int:
        """Returns the stream."""
        stream = await self.begin(path, *more)
        self.connection.send_data(stream, body, end_stream=True)
        await self.flush()
        return stream

    async def begin(self, path: str, *more: tuple[str, str]) -> int:
        """A request without its body."""
        stream = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, [*HEAD, (":path", path), JSON, *more])
        await self.flush()
        return stream

    async def read_until(self, is_enough: Callable[[], bool]) -> None:
        """Fails when the connection ends before it."""
        while not is_enough():
            assert not self.closed, f"the connection ended (GOAWAY: {self.goaway})"
            await self._read()

    async def read_to_end(self) -> None:
        while not self.closed:
            await self._read()

    async def _read(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            self.closed = True
            return
        for event in self.connection.receive_data(data):
            self._note(event)
        try:
            await self.flush()
        except trio.BrokenResourceError:
            pass

    def _note(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived():
                self.statuses[event.stream_id] = str(dict[Any, Any](event.headers or ())[":status"])
            case h2.events.DataReceived():
                self.bodies[event.stream_id] += event.data
                if event.flow_controlled_length:
                    self.connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.StreamEnded():
                self.ended.add(event.stream_id)
            case h2.events.StreamReset():
                self.resets[event.stream_id] = int(event.error_code or 0)
            case h2.events.RemoteSettingsChanged():
                self.settled = True
            case h2.events.ConnectionTerminated():
                self.goaway = int(event.error_code or 0)
