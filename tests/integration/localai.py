"""A model on a backend of LocalAI's kind (tests/fakes/localai_backend) behind a real gateway, and looks at it."""

import json
import os
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import httpx
import psutil
import trio

from gateway.backends.grpc_control import GrpcBackendControl
from gateway.backends.metadata import replica_token
from gateway.bridge import open_bridge
from gateway.domain.ids import Address, ReplicaId
from tests.integration.harness import GatewayProcess, is_alive
from tests.integration.pool import SECRET

MODEL: Final = "parrot"
"""It repeats what it is told."""
ASKED: Final = [{"role": "user", "content": "one two three"}]


def config_of(
    script: Path,
    folder: Path,
    *,
    env: Mapping[str, object] | None = None,
    model: str = "",
    options: Mapping[str, object] | None = None,
    wrapper: Sequence[str] = (),
    ready_timeout: str = "60s",
    more: str = "",
) -> str:
    """One model on the backend, whose events are in `folder / "events"`. `model` is further lines of its table."""
    return f"""{more}
[auth]
cluster_secret = "{SECRET}"
[backends.localai]
command = {json.dumps([*wrapper, str(script)])}
ready_timeout = "{ready_timeout}"
[backends.localai.env]
{toml_lines({"BACKEND_EVENTS": folder / "events", **(env or {})})}
[[models]]
name = "{MODEL}"
backend = "localai"
{model}
[models.options]
{toml_lines(options or {})}
"""


def toml_lines(table: Mapping[str, object]) -> str:
    return "\n".join(f"{key} = {json.dumps(str(value))}" for key, value in table.items())


def chat(gateway: GatewayProcess) -> httpx.Response:
    return gateway.chat(MODEL, messages=ASKED)


class Caller:
    """A chat that goes on in a thread of its own; leaving the context waits for its answer, unless it failed."""

    def __init__(self, gateway: GatewayProcess) -> None:
        self._gateway = gateway
        self._answers: list[httpx.Response] = []
        self._thread = threading.Thread(target=self._call, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None:
            self._thread.join()

    def _call(self) -> None:
        with suppress(httpx.TransportError):  # it has no answer then
            self._answers.append(chat(self._gateway))

    def answer(self) -> httpx.Response:
        (answer,) = self._answers
        return answer


def queue_length(gateway: GatewayProcess) -> float:
    return gateway.metric(f'gateway_queue_length{{model="{MODEL}"}}')


def in_flight(gateway: GatewayProcess) -> float:
    return gateway.metric(f'gateway_in_flight{{model="{MODEL}"}}')


def code_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["code"])


def message_of(answer: httpx.Response) -> str:
    return str(answer.json()["error"]["message"])


def group_of(leader: int) -> list[int]:
    """The living processes of the group that `leader` has or had."""
    return [pid for pid in psutil.pids() if group_id(pid) == leader and is_alive(pid)]


def group_id(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def ask_to_free(replica: Mapping[str, Any], timeout_seconds: float) -> None:
    """Free as the worker asks for it."""

    async def free() -> None:
        token = replica_token(SECRET.encode(), ReplicaId(replica["id"]))
        async with open_bridge() as bridge:
            await GrpcBackendControl(bridge).free(Address(replica["address"]), token, timeout_seconds)

    trio.run(free)
