"""Moves a session's messages between its stream and Trio channels, as asyncio functions. Both sides use it."""

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
"""The number of records that wait between a stream and its reader or writer, in each direction. Beyond that the other
side waits."""
MESSAGE_BYTES_MAX: Final = 16 * 1024 * 1024
"""The largest message of a session in either direction: a desired set of some ten thousand replicas."""

BYTES_PER_SECOND: Final = 16 * 1024 * 1024
"""The rate at which one peer's data is read in the long run. A faster peer has to wait (HTTP/2's flow control), so that
reading its data takes no time from others."""
BURST_BYTES: Final = 64 * 1024 * 1024
"""The amount that is read as fast as it comes: several messages of the largest size."""
MESSAGE_COST_BYTES: Final = 4 * 1024
"""The cost of each message besides its own bytes, because reading an empty one takes time, too."""


class StreamFailed(Exception):
    """The stream cannot continue. The peer gets `status` and the message, if it can be reached."""

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
    """Passes on messages until the peer ends its side. A slow reader slows down the peer, and this does not count as
    the peer's silence.

    Raises the errors of `receive_aio`.
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
            wanted = False  # Further messages still show that the peer lives, and how the stream ends.


def understood(read: Callable[[M], R | None], message: M) -> R | None:
    """Returns the result of `read`. Raises `StreamFailed` for a message with impossible values."""
    try:
        return read(message)
    except MessageRefused as error:
        raise StreamFailed(Status.INVALID_ARGUMENT, f"the message was refused: {error}") from error


async def write_aio(
    stream: MessageSink[M], message_of: Callable[[R], M], receiver: AioReceiver[R], timeout_seconds: float
) -> None:
    """Sends the records of the channel until it ends. Raises the errors of `send_aio`."""
    while True:
        try:
            record = await receiver.receive_aio()
        except trio.EndOfChannel:
            return
        await send_aio(stream, message_of(record), timeout_seconds)


async def receive_aio(stream: MessageSource[M], silence_seconds: float) -> M | None:
    """Returns the next message, or None if the peer has ended its side.

    Raises `StreamFailed` for silence and for data that is no message, `StreamTerminatedError` for a lost connection.
    """
    try:
        async with asyncio.timeout(silence_seconds):
            return await stream.recv_message()
    except TimeoutError:
        raise StreamFailed(Status.DEADLINE_EXCEEDED, f"nothing was heard for {silence_seconds:g} s") from None
    except (DecodeError, NotImplementedError) as error:  # The latter means a compressed message, which nobody offered.
        raise StreamFailed(Status.INVALID_ARGUMENT, f"what came is no message of a session: {error}") from error
    except AssertionError as error:
        raise StreamTerminatedError("the stream ended in the middle of a message") from error


async def send_aio(stream: MessageSink[M], message: M, timeout_seconds: float) -> None:
    """Sends a message. Raises `StreamFailed` if the peer takes nothing or could never take it, `StreamTerminatedError`
    for a closed stream."""
    check_size(message.ByteSize())
    try:
        async with asyncio.timeout(timeout_seconds):
            await stream.send_message(message)
    except TimeoutError:
        raise StreamFailed(Status.DEADLINE_EXCEEDED, f"nothing was taken for {timeout_seconds:g} s") from None
    except ProtocolError as error:
        raise StreamTerminatedError(f"the stream is closed: {error}") from error


def check_size(size_bytes: int) -> None:
    """Raises `StreamFailed` if a message of this size is too large."""
    if size_bytes > MESSAGE_BYTES_MAX:
        raise StreamFailed(
            Status.RESOURCE_EXHAUSTED, f"a message of {size_bytes} bytes; at most {MESSAGE_BYTES_MAX} are allowed"
        )


async def run_until_read_aio(reading: Coroutine[Any, Any, None], writing: Coroutine[Any, Any, None]) -> None:
    """Runs both until `reading` ends or one of them fails. `writing` may end earlier."""
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
