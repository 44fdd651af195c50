"""Registers a worker: one HTTP call with the join token returns its credential and the address for its sessions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Final

import httpx
import trio
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gateway.domain.causes import cause_words, may_answer_later
from gateway.domain.ids import BootId, GatewayId, NodeId
from gateway.domain.texts import is_visible_ascii

PATH: Final = "/api/node/register"
REGISTER_SECONDS: Final = 15.0
"""How long the whole call may take."""
ANSWER_BYTES_MAX: Final = 64 * 1024
TRUST_HINT: Final = "; worker.tls_ca names those that are"
WORDS_CHARACTERS_MAX: Final = 500
"""The length at which an error message of a gateway is cut before it is passed on."""

_WHAT_TO_DO: Final[Mapping[str | int, str]] = MappingProxyType(
    {
        "invalid_node_credential": "remove what this worker keeps of its last start, and it joins as a new node",
        401: "check the join token",
        403: "set auth.join_token in the gateway's configuration",
        404: "check that the URL is a gateway's",
        409: "give this worker another name, or remove the node that has it",
    }
)
"""The advice for each error, by its code or else by its status."""


class JoinFailed(Exception):
    """No gateway gave a valid answer. The same one or another one may answer later."""


class JoinRefused(Exception):
    """The gateway refuses this worker, and will refuse it again. The message says why and what to change. `code` is the
    code of its error, if it has one."""

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class RegistrationRequest:
    """The request of a worker to join. The fields `previous_*` come from the agent's last start and prove that this is
    still the node `node_id`."""

    name: str
    boot_id: BootId
    node_id: NodeId | None = None
    previous_boot_id: BootId | None = None
    previous_credential: str | None = field(default=None, repr=False)


_WORD: Final[Any] = Field(min_length=1, max_length=512, pattern=r"^[\x21-\x7e]+$")
"""A text that may be in metadata or in a log line."""


class RegistrationAnswer(BaseModel):
    """The answer of a gateway. Unknown fields from newer gateways are ignored."""

    model_config = ConfigDict(frozen=True, strict=True)

    node_id: Annotated[NodeId, _WORD]
    credential: Annotated[str, _WORD] = Field(repr=False)
    session_address: Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,256}:[0-9]{1,5}$")]
    """The address of the gateway's `SessionServer`, as `host:port`."""
    approved: bool
    """Whether the node may serve at once. If not, it waits for an admin."""
    gateway_id: Annotated[GatewayId, _WORD]
    tls: bool
    """Whether sessions are encrypted."""


async def register(http: httpx.AsyncClient, url: str, token: str, request: RegistrationRequest) -> RegistrationAnswer:
    """Registers at one gateway and returns its answer. Raises `JoinRefused`, `JoinFailed`; neither ever shows the
    token."""
    if not is_visible_ascii(token):
        raise JoinRefused("the join token is empty or holds characters that no token has; check it")
    try:
        with trio.fail_after(REGISTER_SECONDS):
            status, body = await _post(http, url.rstrip("/") + PATH, token, request)
    except trio.TooSlowError:
        raise JoinFailed(f"{url} did not answer within {REGISTER_SECONDS:g} s") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
        raise JoinRefused(f"{url} is no URL of a gateway (http://HOST:PORT or https://HOST:PORT): {error}") from error
    except httpx.HTTPError as error:
        raise JoinFailed(f"can't reach a gateway at {url}: {cause_words(error, trust_hint=TRUST_HINT)}") from error
    return _read_answer(url, status, body)


async def _post(http: httpx.AsyncClient, url: str, token: str, request: RegistrationRequest) -> tuple[int, bytes]:
    """Returns the status and the beginning of the body: one byte more than an answer may have, so that a longer one
    shows.

    The rest is read and dropped: httpx's iterators have to be read to their end, or be ended by an exception of theirs.
    """
    headers = {"authorization": f"Bearer {token}", "accept-encoding": "identity"}
    content = {name: value for name, value in asdict(request).items() if value is not None}
    body = b""
    async with http.stream("POST", url, json=content, headers=headers) as response:
        async for chunk in response.aiter_raw():
            body = (body + chunk)[: ANSWER_BYTES_MAX + 1]
    return response.status_code, body


def _read_answer(url: str, status: int, body: bytes) -> RegistrationAnswer:
    if status == 200 and len(body) <= ANSWER_BYTES_MAX:
        try:
            return RegistrationAnswer.model_validate_json(body)
        except ValidationError as error:
            raise JoinFailed(f"what answered at {url} is no gateway, or another version: {_fields(error)}") from error
    message, code = _read_error(body)
    if 400 <= status < 500 and not may_answer_later(status):
        todo = _WHAT_TO_DO.get(code or status) or _WHAT_TO_DO.get(status, "check the worker's configuration")
        raise JoinRefused(f"{url} refused the registration ({status}): {message}; {todo}", code=code)
    raise JoinFailed(f"{url} can't register workers now ({status}): {message}")


def _read_error(body: bytes) -> tuple[str, str | None]:
    """Returns the message and code of the error object, whatever the body is."""
    try:
        error = _Envelope.model_validate_json(body).error
    except ValidationError:
        return "what it sent is no answer of a gateway", None
    return error.message[:WORDS_CHARACTERS_MAX], error.code


class _Error(BaseModel):
    message: str
    code: str | None = None


class _Envelope(BaseModel):
    error: _Error


def _fields(error: ValidationError) -> str:
    """Returns which fields are wrong and how, without their values."""
    found: list[Any] = error.errors(include_input=False, include_url=False)
    return "; ".join(f"{'.'.join(map(str, each['loc'])) or 'body'}: {each['msg']}" for each in found)[
        :WORDS_CHARACTERS_MAX
    ]
