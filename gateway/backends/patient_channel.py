"""A gRPC channel that hands over every answer that has arrived whole, also after its connection is gone.

grpclib ends all open calls of a lost connection with an error, those included whose last message is here and was only
not read yet. A backend that drains hangs up right after its last answer, and a client that reads slowly would then lose
the end of a complete one (R13).
"""

import asyncio

from grpclib.client import Channel
from grpclib.protocol import EventsProcessor, H2Protocol, Stream


class _PatientProcessor(EventsProcessor):
    """Leaves calls alone whose answer is complete."""

    def close(self, reason: str = "Connection closed") -> None:
        complete = {number: stream for number, stream in self.streams.items() if _is_complete(stream)}
        for number in complete:
            del self.streams[number]
        super().close(reason)
        self.streams.update(complete)  # each is taken out once it was read


def _is_complete(stream: Stream) -> bool:
    return stream.buffer._eof  # noqa: SLF001 - grpclib has no public word for it


class _PatientProtocol(H2Protocol):
    def connection_made(self, transport: "asyncio.BaseTransport") -> None:
        super().connection_made(transport)
        self.processor = _PatientProcessor(self.handler, self.connection)


class PatientChannel(Channel):
    """Reaches into grpclib at one place; tests/integration/test_late_reader.py holds the behaviour."""

    def _protocol_factory(self) -> H2Protocol:
        plain = super()._protocol_factory()
        return _PatientProtocol(plain.handler, plain.config, plain.h2_config)
