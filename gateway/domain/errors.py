"""Every error a caller can see, as a tree by what the caller can do about it.

| branch          | what the caller can do                 | status   |
|-----------------|----------------------------------------|----------|
| `BadRequest`    | change the request                     | 4xx      |
| `Unavailable`   | send it after `retry_after_seconds`    | 429, 503 |
| `BackendFailed` | send it again, maybe; see the message  | 502, 504 |

Anything else that reaches the edge is our bug: 500, logged with its traceback, told without it. Messages are written
for the user and name what is wrong; secrets and addresses of other users never appear in them. The shape on the wire
(`type`, `param`, `code`) is OpenAI's error object.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from gateway.domain.ids import ModelName
from gateway.domain.texts import quoted

MODEL_NOT_FOUND: Final = "model_not_found"


class GatewayError(Exception):
    """The base class. `status`, `type` and `code` are what HTTP shows. `param` names the wrong field, if there is
    one."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    code: str | None = None

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_seconds = retry_after_seconds
        if code is not None:
            self.code = code


class BadRequest(GatewayError):
    """The request itself is wrong. Sending it again changes nothing."""

    status = 400
    type = "invalid_request_error"


class Unauthenticated(BadRequest):
    """The request has no valid credential (401)."""

    status = 401
    code = "invalid_api_key"


class Forbidden(BadRequest):
    """The caller may not do this (403)."""

    status = 403
    code = "forbidden"


class NotFound(BadRequest):
    """The request names something that does not exist (404)."""

    status = 404
    code = "not_found"


class ModelNotFound(NotFound):
    """The request names a model that does not exist (404, with OpenAI's code)."""

    code = MODEL_NOT_FOUND

    def __init__(self, model: ModelName) -> None:
        super().__init__(
            f"The model '{quoted(model)}' does not exist. GET /v1/models lists those that do.", param="model"
        )


class MethodNotAllowed(BadRequest):
    """The path exists and does not support the request's method (405)."""

    status = 405
    code = "method_not_allowed"


class RequestTimeout(BadRequest):
    """The client did not send its whole request in time."""

    status = 408
    code = "request_timeout"


class Conflict(BadRequest):
    """The request contradicts the present state of what it names (409)."""

    status = 409
    code = "conflict"


class PayloadTooLarge(BadRequest):
    """The request's body is larger than allowed (413)."""

    status = 413
    code = "request_too_large"


class UnsupportedMediaType(BadRequest):
    """The request's body is not of the type that the path takes (415)."""

    status = 415
    code = "unsupported_media_type"


class HeadersTooLarge(BadRequest):
    """The request's headers are larger than allowed (431, RFC 6585)."""

    status = 431
    code = "headers_too_large"


class Unavailable(GatewayError):
    """The request is right, and can be sent again after `retry_after_seconds` (always set)."""

    status = 503
    type = "server_error"
    code = "unavailable"

    def __init__(
        self, message: str, *, retry_after_seconds: float, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message, param=param, code=code, retry_after_seconds=retry_after_seconds)


class Overloaded(Unavailable):
    """Too many requests are waiting, or this one has waited too long for a free slot."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"


class NoRoomForBody(Unavailable):
    """Request bodies take as much memory as they may."""

    code = "overloaded"


class ModelLoading(Unavailable):
    """The model is still loading after `load_wait`. The load continues (L11).

    `loading` says how far it is: model, state, node, and so on.
    """

    code = "model_loading"

    def __init__(self, message: str, *, retry_after_seconds: float, loading: Mapping[str, object]) -> None:
        super().__init__(message, retry_after_seconds=retry_after_seconds, param="model")
        self.loading = loading


class ModelLoadFailed(Unavailable):
    """The model could not be loaded. The message has the cause (L10, L22)."""

    code = "model_load_failed"


class NoNode(Unavailable):
    """There is no healthy node, or none yet."""

    code = "no_node"


class InsufficientCapacity(Unavailable):
    """No node has room for the model, and no other model may be unloaded for it. The message has the numbers of each
    node (P4)."""

    code = "insufficient_capacity"


class ShuttingDown(Unavailable):
    """The gateway is shutting down and refuses the request or could not finish it (503)."""

    code = "shutting_down"


class BackendFailed(GatewayError):
    """A backend process failed while it had the request."""

    status = 502
    code = "backend_error"


class Timeout(BackendFailed):
    """A backend did not answer in time (504)."""

    status = 504
    code = "timeout"
