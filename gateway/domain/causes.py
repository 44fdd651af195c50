"""Why a call failed: what an exception comes from, the words for it (httpx on Trio has none of its own for what TLS
found), and whether an HTTP status passes. Pure."""

import ssl
from collections.abc import Iterator
from typing import Final

_TEMPORARY: Final = frozenset({408, 425, 429})
"""The statuses below 500 after which the same request may succeed later (RFC 9110, RFC 8470, RFC 6585)."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yields the exceptions in a group and in the groups within it; an exception that is no group is its own leaf."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from leaves(inner)
    else:
        yield error


def cause_words(error: BaseException, *, trust_hint: str = "") -> str:
    """Returns the words of the outermost cause that has any, else the name of the error's class.

    A certificate that is not trusted comes first, wherever it is in the chain, and `trust_hint` follows it.
    """
    causes = list(_chain(error))
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not to be trusted: {cause.verify_message}{trust_hint}"
    return next((words for cause in causes if (words := str(cause))), type(error).__name__)


def may_answer_later(status: int) -> bool:
    """Returns whether the server may answer the same request later, by the HTTP status of its error."""
    return status in _TEMPORARY or status >= 500


def _chain(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
