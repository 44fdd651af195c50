"""The calls of a worker to the backend processes that it starts (Health, LoadModel, ModelMetadata, Free), over
connections of their own.

No channel is kept. A process gets few calls while it starts, and the channel of LoadModel may be silent for as long as
the load takes (pitfall 34).
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
from grpclib import GRPCError
from grpclib.exceptions import StreamTerminatedError

from gateway.backends import metadata as names
from gateway.backends.dial import Dial, dial
from gateway.backends.pb import backend_pb2 as pb
from gateway.backends.pb.backend_grpc import BackendStub
from gateway.backends.protocol import BackendNotReady, LoadFailed
from gateway.bridge import Bridge, CancelledByAsyncio
from gateway.domain.ids import Address

log = structlog.get_logger(__name__)

R = TypeVar("R")


class GrpcBackendControl:
    """`BackendControl` over real connections."""

    def __init__(self, bridge: Bridge, dial: Dial = dial) -> None:
        self._bridge = bridge
        self._dial = dial

    async def health(self, address: Address, token: str, timeout_seconds: float) -> None:
        """Calls Health. Raises `BackendNotReady` if it does not answer "OK" within `timeout_seconds`."""

        async def ask(stub: BackendStub) -> pb.Reply:
            """Makes the call."""
            return await stub.Health(pb.HealthMessage(), metadata=names.bearer(token))

        try:
            reply = await self._bridge.run(self._call_aio, address, ask, timeout_seconds)
        except _FAILURES as error:
            raise BackendNotReady(_describe(error)) from error
        if reply.message != names.HEALTHY:
            raise BackendNotReady(f"Health answered {reply.message[:100]!r} instead of {names.HEALTHY!r}")

    async def load_model(self, address: Address, token: str, options: pb.ModelOptions, timeout_seconds: float) -> None:
        """Calls LoadModel. Raises `LoadFailed` if it does not succeed within `timeout_seconds`."""

        async def ask(stub: BackendStub) -> pb.Result:
            """Makes the call."""
            return await stub.LoadModel(options, metadata=names.bearer(token))

        try:
            result = await self._bridge.run(self._call_aio, address, ask, timeout_seconds)
        except TimeoutError as error:
            raise LoadFailed(f"the model was not loaded within {timeout_seconds:.0f} s") from error
        except _FAILURES as error:
            raise LoadFailed(_describe(error)) from error
        if not result.success:
            raise LoadFailed(result.message or "the backend gave no reason")

    async def model_metadata(
        self, address: Address, token: str, options: pb.ModelOptions, timeout_seconds: float
    ) -> pb.ModelMetadataResponse | None:
        """Calls ModelMetadata. Returns None if it does not succeed, which is logged and not raised."""

        async def ask(stub: BackendStub) -> pb.ModelMetadataResponse:
            """Makes the call."""
            return await stub.ModelMetadata(options, metadata=names.bearer(token))

        try:
            return await self._bridge.run(self._call_aio, address, ask, timeout_seconds)
        except _FAILURES as error:
            log.debug("backend.metadata_failed", address=address, error=_describe(error))
            return None

    async def free(self, address: Address, token: str, timeout_seconds: float) -> None:
        """Calls Free, so that the backend frees its model. A failure is logged and not raised."""

        async def ask(stub: BackendStub) -> pb.Result:
            """Makes the call."""
            return await stub.Free(pb.HealthMessage(), metadata=names.bearer(token))

        try:
            result = await self._bridge.run(self._call_aio, address, ask, timeout_seconds)
        except Exception as error:  # noqa: BLE001 - whatever it answers, its process is ended next
            log.debug("backend.free_failed", address=address, error=_describe(error))
            return
        log.debug("backend.freed", address=address, success=result.success)

    async def _call_aio(
        self, address: Address, ask: Callable[[BackendStub], Awaitable[R]], timeout_seconds: float
    ) -> R:
        channel = self._dial(address)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await ask(BackendStub(channel))
        finally:
            channel.close()


_FAILURES: Final = (GRPCError, StreamTerminatedError, OSError, TimeoutError, CancelledByAsyncio)


def _describe(error: BaseException) -> str:
    if isinstance(error, GRPCError):
        return error.message or error.status.name
    return str(error) or type(error).__name__
