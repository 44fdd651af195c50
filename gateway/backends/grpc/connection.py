"""One connection to a backend: the task that reads from it, and the calls that share it."""

import platform
from collections.abc import Sequence
from typing import Final

import structlog
import trio
from grpclib.exceptions import StreamTerminatedError

from gateway.backends.call_errors import LEAVES, NotProcessed
from gateway.backends.grpc.call import OutgoingCall
from gateway.backends.grpc.connection_state import ConnectionState
from gateway.backends.grpc.events import ConnectionBroken, DataReceived, Event, HeadersReceived, StreamBroken
from gateway.backends.grpc.headers import encode_request
from gateway.backends.grpc.messages import with_prefix
from gateway.backends.grpc.transport import UNIX_PREFIX, Connect, Transport
from gateway.backends.metadata import bearer
from gateway.concurrency import ParkingSpot
from gateway.domain.ids import Address

log = structlog.get_logger(__name__)

CONNECT_SECONDS: Final = 10.0
"""How long a connection may take to come about. The kernel has then asked four times."""
OUTPUT_BYTES: Final = 256 * 1024
"""The portion in which request bodies are given to the network."""
BLOCKS_MAX: Final = 64
"""The number of encoded request headers that are kept. There are as many as methods, unless a token changes."""
USER_AGENT: Final = f"grpc-python-trio/1 ({platform.system()}; {platform.python_version()})".lower()
CLOSED: Final = "the gateway has closed the connection"
HUNG_UP: Final = "the backend has closed the connection"


class BackendConnection:
    """A connection, which comes about while `run` runs. Calls may wait for that."""

    def __init__(self, address: Address, connect: Connect) -> None:
        self._address = address
        self._connect = connect
        self._state = ConnectionState()
        self._transport: Transport | None = None
        self._calls: dict[int, OutgoingCall] = {}
        self._blocks: dict[tuple[str, str], bytes] = {}
        self._unsent = b""
        """The part of the output that the network does not take yet. Nothing else is sent before it."""
        self._unsent_calls: list[OutgoingCall] = []
        """The calls whose requests end within the output that is not sent yet."""
        self._write = ParkingSpot()
        self._waiting = trio.lowlevel.ParkingLot()
        """Calls that wait for the connection, or for a free stream."""
        self._scope = trio.CancelScope()
        self._error: Exception | None = None
        """Why the connection has ended. None while it has not."""

    @property
    def takes_calls(self) -> bool:
        """Whether new calls may be made on it, now or soon."""
        return self._error is None and self._state.takes_streams

    @property
    def is_ready(self) -> bool:
        """Whether a call can be started now."""
        return self._transport is not None and self.takes_calls and self._state.has_room

    async def wait_ready(self) -> None:
        """Waits until a call can be started. Raises `OSError` if there is no connection, and `NotProcessed` if it has
        ended meanwhile or takes no new calls."""
        while not self.is_ready:
            if not self.takes_calls:
                raise self._why_not_taken()
            await self._waiting.park()

    def _why_not_taken(self) -> Exception:
        if isinstance(self._error, OSError):
            return self._error
        return NotProcessed(LEAVES if self._error is None else str(self._error))

    def start(self, call: OutgoingCall, path: str, token: str, message: bytes) -> None:
        """Sends the request of a call. The caller has checked `is_ready` just now."""
        stream_id = self._state.open_stream(self._block(path, token), with_prefix(message))
        self._calls[stream_id] = call
        call.begin(self, stream_id)
        self._flush()

    def cancel(self, call: OutgoingCall) -> None:
        """Ends a call that has not ended by itself, and tells the backend at once."""
        self._release(call)
        self._flush()

    def acknowledge(self, call: OutgoingCall) -> None:
        """Lets the backend send more of an answer, after some of it was read."""
        if owed := call.take_owed():
            self._state.acknowledge(call.stream_id, owed)
            self._flush()

    def close(self) -> None:
        """Ends the connection and its calls."""
        self._end(StreamTerminatedError(CLOSED))

    async def run(self) -> None:
        """Connects, then carries calls until the connection ends. Raises nothing that the other side can cause."""
        try:
            with self._scope:
                self._transport = await self._open_transport()
                self._wake_waiting()
                await self._carry(self._transport)
        except OSError as error:  # Connecting has failed.
            self._end(error)
        except Exception:
            log.exception("backend.connection_failed", address=self._address)
        finally:
            self._end(StreamTerminatedError(CLOSED))
            if self._transport is not None:
                self._transport.close()

    async def _open_transport(self) -> Transport:
        with trio.move_on_after(CONNECT_SECONDS):
            return await self._connect(self._address)
        raise TimeoutError(f"no connection within {CONNECT_SECONDS:.0f} s")

    async def _carry(self, transport: Transport) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_writer, transport)
            await self._run_reader(transport)
            nursery.cancel_scope.cancel()

    async def _run_reader(self, transport: Transport) -> None:
        self._flush()
        while self._error is None and not self._state.is_over:
            try:
                data = await transport.receive()
            except OSError as error:
                self._end(StreamTerminatedError(str(error)))
                return
            if not data:
                self._end(StreamTerminatedError(HUNG_UP))
                return
            self._dispatch(self._state.receive(data, trio.current_time()))
            self._flush()

    async def _run_writer(self, transport: Transport) -> None:
        """Sends what could not be sent at once."""
        while True:
            while not self._unsent:
                await self._write.wait()
            try:
                await transport.send_all(self._unsent)
            except OSError as error:
                self._end(StreamTerminatedError(str(error)))
                return
            self._unsent = b""
            self._mark_sent()
            self._flush()

    def _flush(self) -> None:
        """Sends what can be sent without waiting. Leaves the rest to the writer."""
        transport = self._transport
        while transport is not None and not self._unsent and (data := self._state.take_output(OUTPUT_BYTES)):
            self._unsent_calls += [self._calls[stream_id] for stream_id in self._state.take_sent()]
            try:
                sent = transport.send_nowait(data)
            except OSError as error:
                self._end(StreamTerminatedError(str(error)))
                return
            if sent < len(data):
                self._unsent = data[sent:]
                self._write.wake()
                return
            self._mark_sent()
            if len(data) < OUTPUT_BYTES:
                return  # That was all.

    def _mark_sent(self) -> None:
        for call in self._unsent_calls:
            call.mark_sent()
        self._unsent_calls.clear()

    def _dispatch(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, ConnectionBroken):
                log.warning("backend.connection_broken", address=self._address, reason=event.text)
                self._end(StreamTerminatedError(event.text))
                return
            if (call := self._calls.get(event.stream_id)) is not None:
                self._pass_on(event, call)
        self._settle()

    def _pass_on(self, event: HeadersReceived | DataReceived | StreamBroken, call: OutgoingCall) -> None:
        if isinstance(event, StreamBroken):
            call.end(StreamTerminatedError(event.text) if event.is_processed else NotProcessed(event.text))
        elif isinstance(event, DataReceived):
            call.receive_data(event.data)
        else:
            call.receive_headers(event.fields)
        if not isinstance(event, StreamBroken) and event.is_end:
            call.finish()
        if call.has_ended:
            self._release(call)
        elif owed := call.take_owed():
            self._state.acknowledge(event.stream_id, owed)

    def _release(self, call: OutgoingCall) -> None:
        """Forgets a call that has ended here. Tells the backend if it has not ended there."""
        if self._calls.pop(call.stream_id, None) is not None:
            self._state.cancel(call.stream_id)
            self._settle()

    def _settle(self) -> None:
        """Ends the connection if it is over, and wakes who waits for it to change."""
        if self._state.is_over:
            self._end(StreamTerminatedError(LEAVES))
        elif self._waiting and (self._state.has_room or not self._state.takes_streams):
            self._wake_waiting()

    def _end(self, error: Exception) -> None:
        if self._error is not None:
            return
        self._error = error
        self._scope.cancel()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.end(error)
        self._wake_waiting()

    def _wake_waiting(self) -> None:
        self._waiting.unpark_all()

    def _block(self, path: str, token: str) -> bytes:
        block = self._blocks.get((path, token))
        if block is None:
            if len(self._blocks) >= BLOCKS_MAX:
                self._blocks.clear()
            block = self._blocks[path, token] = self._encode_block(path, token)
        return block

    def _encode_block(self, path: str, token: str) -> bytes:
        return encode_request(
            scheme="http" if self._transport is None else self._transport.scheme,
            authority="localhost" if self._address.startswith(UNIX_PREFIX) else self._address,
            path=path,
            user_agent=USER_AGENT,
            metadata=bearer(token),
        )
