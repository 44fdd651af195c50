"""Moves a session's messages between its stream and Trio channels, as asyncio functions; the same on either side."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol, TypeVar

import trio
from google.protobuf.message import DecodeError, Message
from grpclib import Status
from grpclib.exceptions import StreamTerminatedError
from h2.exceptions import ProtocolError

from gateway.bridge import AioReceiver, AioSender
from gateway.domain.pacing import TokenBucket
from gateway.transport.errors import MessageRefused

M_co = TypeVar("M_co", covariant=True)
M_contra = TypeVar("M_contra", contravariant=True)
M = TypeVar("M", bound=Message)
R = TypeVar("R")

WAITING_MAX: Final = 64
"""Records that wait between a stream and its reader or writer, each way; beyond that the other side has to wait."""
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""Largest message of a session, either way: a desired set of some ten thousand replicas."""

BYTES_PER_SECOND: Final = 16 * 1024 * 1024
"""That are read of one peer in the long run: who sends faster has to wait (HTTP/2's flow control), so that reading him
takes nobody else's time."""
BURST_BYTES: Final = 64 * 1024 * 1024
"""That are read as fast as they come: several messages of the largest kind."""
MESSAGE_COST_BYTES: Final = 4 * 1024
"""So many bytes does each message count for besides its own: to read an empty one takes time, too."""


class StreamFailed(Exception):
    """The stream can't go on; `status` and the message are what the peer is told, if it can be told anything."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class MessageSource(Protocol[M_co]):
    """The receiving half of a gRPC stream, on either side."""

    async def recv_message(self) -> M_co | None:
        """Waits for the next message. Returns None if the other side has ended its half."""


class MessageSink(Protocol[M_contra]):
    """The sending half of a gRPC stream, on either side."""

    async def send_message(self, message: M_contra) -> None:
        """Sends a message; waits while the other side's flow-control window is full."""


async def read_aio(
    stream: MessageSource[M], read: Callable[[M], R | None], sender: AioSender[R], silence_seconds: float
) -> None:
    """Hands over what comes until the peer ends its side. A slow reader slows the peer and is no silence of it.

    Raises what `receive_aio` raises.
    """
    wanted, pace = True, TokenBucket(BYTES_PER_SECOND, BURST_BYTES)
    while (message := await receive_aio(stream, silence_seconds)) is not None:
        if wait_seconds := pace.take(message.ByteSize() + MESSAGE_COST_BYTES, time.monotonic()):
            await asyncio.sleep(wait_seconds)
        record = understood(read, message)
        if record is None or not wanted:
            continue
        try:
            await sender.send_aio(record)
        except trio.BrokenResourceError:
            wanted = False  # what comes still says that the peer lives, and how the stream ends


def understood(read: Callable[[M], R | None], message: M) -> R | None:
    """What `read` makes of the message. Raises `StreamFailed` for one that says what can't be."""
    try:
        return read(message)
    except MessageRefused as error:
        raise StreamFailed(Status.INVALID_ARGUMENT, f"the message was refused: {error}") from error


async def write_aio(
    stream: MessageSink[M], message_of: Callable[[R], M], receiver: AioReceiver[R], timeout_seconds: float
) -> None:
    """Sends what is put into the channel until that ends. Raises what `send_aio` raises."""
    while True:
        try:
            record = await receiver.receive_aio()
        except trio.EndOfChannel:
            return
        await send_aio(stream, message_of(record), timeout_seconds)


async def receive_aio(stream: MessageSource[M], silence_seconds: float) -> M | None:
    """The next message; None: the peer has ended its side.

    Raises `StreamFailed` for silence and for what is no message of ours, `StreamTerminatedError` for a lost connection.
    """
    try:
        async with asyncio.timeout(silence_seconds):
            return await stream.recv_message()
    except TimeoutError:
        raise StreamFailed(Status.DEADLINE_EXCEEDED, f"nothing was heard for {silence_seconds:g} s") from None
    except (DecodeError, NotImplementedError) as error:  # the latter: compressed, which nobody offered
        raise StreamFailed(Status.INVALID_ARGUMENT, f"what came is no message of a session: {error}") from error
    except AssertionError as error:
        raise StreamTerminatedError("the stream ended in the middle of a message") from error


async def send_aio(stream: MessageSink[M], message: M, timeout_seconds: float) -> None:
    """Raises `StreamFailed` when the peer takes nothing or never would, `StreamTerminatedError` for a closed stream."""
    check_size(message.ByteSize())
    try:
        async with asyncio.timeout(timeout_seconds):
            await stream.send_message(message)
    except TimeoutError:
        raise StreamFailed(Status.DEADLINE_EXCEEDED, f"nothing was taken for {timeout_seconds:g} s") from None
    except ProtocolError as error:
        raise StreamTerminatedError(f"the stream is closed: {error}") from error


def check_size(size_bytes: int) -> None:
    """Raises `StreamFailed`."""
    if size_bytes > MESSAGE_BYTES_MAX:
        raise StreamFailed(
            Status.RESOURCE_EXHAUSTED, f"a message of {size_bytes} bytes; at most {MESSAGE_BYTES_MAX} are allowed"
        )


async def run_until_read_aio(reading: Coroutine[Any, Any, None], writing: Coroutine[Any, Any, None]) -> None:
    """Runs both until `reading` ends or either fails. `writing` may end before it."""
    reader, writer = asyncio.create_task(reading), asyncio.create_task(writing)
    try:
        await asyncio.wait({reader, writer}, return_when=asyncio.FIRST_COMPLETED)
        if not reader.done():
            writer.result()
            await asyncio.wait({reader})
        reader.result()
    finally:
        await end_tasks_aio(reader, writer)


async def end_tasks_aio(*tasks: "asyncio.Task[None]") -> None:
    """Cancels the tasks and waits for their ends; their exceptions are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
