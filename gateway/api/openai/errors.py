"""Errors as OpenAI's error object: the envelope that its clients read."""

from pydantic_core import to_json

from gateway.domain.errors import GatewayError, ModelLoading


def error_object(error: GatewayError) -> bytes:
    """The body of an error response, and the data of the event that ends a failed stream.

    `loading`, beside the error, says how far a model is that does not serve yet.
    """
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    loading = {"loading": error.loading} if isinstance(error, ModelLoading) else {}
    return to_json({"error": fields, **loading})
