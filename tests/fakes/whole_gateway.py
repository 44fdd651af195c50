"""A whole gateway whose fleet is one in-memory backend: without processes, connections to them, a registry's file."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from grpclib.client import Channel

from gateway.backends.pb import backend_pb2 as pb
from gateway.bridge import Bridge
from gateway.composition.gateway import open_gateway
from gateway.composition.parts import Gateway
from gateway.config.load import parse_config
from gateway.registry.embedded.memory import open_memory_registry
from tests.fakes.in_memory_backend import InMemoryBackend, ServerStream, open_in_memory
from tests.fakes.in_memory_transport import connect_in_memory
from tests.fakes.worker_parts import FakeSpawn

PATIENCE_SECONDS = 120.0
"""Far above what any answer takes beside a busy neighbour."""
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}


@dataclass
class Installation:
    gateway: Gateway
    client: httpx.AsyncClient
    spawn: FakeSpawn
    service: InMemoryBackend

    async def chat(self, **fields: object) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json={**CHAT, **fields})


async def answer_hello(stream: ServerStream, request: Any) -> None:
    match request:
        case pb.HealthMessage():
            await stream.send_message(pb.Reply(message=b"OK"))
        case pb.ModelOptions():
            await stream.send_message(pb.Result(success=True))
        case _:
            await stream.send_message(pb.Reply(message=b"hello", tokens=1, prompt_tokens=2))


@asynccontextmanager
async def open_installation(folder: Path, toml: str = "") -> AsyncIterator[Installation]:
    """A gateway whose fleet is one in-memory backend behind every address."""
    service, spawn = InMemoryBackend(), FakeSpawn()
    service.answer = answer_hello
    channels: list[Channel] = []
    bridges: list[Bridge] = []
    config = parse_config(
        f'[server]\nport = 0\ndata_dir = "{folder}"\n[registry]\nurl = "memory:"\n[worker]\nname = "box"\n{toml}', {}
    )
    opened = open_gateway(
        config,
        open_registry=lambda _section, _bridge: open_memory_registry(),
        dial=lambda _address: Handle(channels[0]),
        connect=lambda address: connect_in_memory(bridges[0], service)(address),
        spawn=spawn,
    )
    async with opened as gateway, open_in_memory(gateway.shared.bridge, service) as channel:
        channels.append(channel)
        bridges.append(gateway.shared.bridge)
        async with httpx.AsyncClient(base_url=gateway.url, timeout=PATIENCE_SECONDS) as client:
            yield Installation(gateway, client, spawn, service)


class Handle(Channel):
    """Another handle on one connection: its user may close it, the connection stays."""

    def __init__(self, channel: Channel) -> None:
        super().__init__("127.0.0.1", 1)
        self._protocol = channel._protocol

    def close(self) -> None:
        self._protocol = None
