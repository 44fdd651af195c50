"""Encodes errors as OpenAI's error object, the envelope that its clients read."""

from pydantic_core import to_json

from gateway.domain.errors import GatewayError, ModelLoading


def error_object(error: GatewayError) -> bytes:
    """Returns the body of an error response, which is also the data of the event that ends a failed stream.

    `loading`, beside the error, says how far the load of a model is.
    """
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    loading = {"loading": error.loading} if isinstance(error, ModelLoading) else {}
    return to_json({"error": fields, **loading})
