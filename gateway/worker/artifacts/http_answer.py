"""The meaning of an HTTP response to a request for a file, or for the rest of one (RFC 9110, 13.1.5 and 14). Pure."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

from gateway.domain.causes import may_answer_later

RETRY_AFTER_SECONDS_MAX: Final = 300.0

# A number of more than 18 digits is the size of no file. werkzeug takes any.
_CONTENT_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_UNSATISFIED: Final = re.compile(r"bytes \*/(\d{1,18})")
_HINTS: Final[Mapping[int, str]] = {
    401: "; it asks for a credential (HF_TOKEN is the one for Hugging Face)",
    403: "; the credential, if any, does not open it (a gated model has to be asked for first)",
    404: "; check the artifact's spelling",
}


@dataclass(frozen=True)
class Asked:
    """The bytes that are here already, and how the server named them."""

    offset: int = 0
    etag: str | None = None
    total: int | None = None
    has_digest: bool = False
    """Whether the file's hash is known. If so, a file that ends too early is detected."""


@dataclass(frozen=True)
class Body:
    """The response's body is the file from `offset` on."""

    offset: int
    total: int | None
    etag: str | None
    """A strong ETag, which identifies these exact bytes, or None."""


@dataclass(frozen=True)
class Complete:
    """The bytes that are here are the whole file."""


@dataclass(frozen=True)
class StartOver:
    """The bytes that are here belong to another file than the server has now."""

    reason: str


@dataclass(frozen=True)
class TryAgain:
    """The server may answer a later request. `retry_after_seconds` is None if it did not say when."""

    reason: str
    retry_after_seconds: float | None = None


@dataclass(frozen=True)
class HttpRefused:
    """The same request would get the same answer."""

    reason: str


AnswerMeaning: TypeAlias = Body | Complete | StartOver | TryAgain | HttpRefused


def request_headers(asked: Asked) -> dict[str, str]:
    """Returns the headers of the request. They ask for the rest of the file only where that is safe (RFC 9110,
    14.2)."""
    headers = {"accept-encoding": "identity", "user-agent": "gateway"}
    if asked.offset and (asked.etag is not None or asked.has_digest):
        headers["range"] = f"bytes={asked.offset}-"
        if asked.etag is not None:
            headers["if-range"] = asked.etag
    return headers


def read_answer(status: int, headers: Mapping[str, str], asked: Asked) -> AnswerMeaning:
    """Returns the meaning of a response. `headers` have names in lower case."""
    match status:
        case 200:
            return _read_whole(headers, asked)
        case 206:
            return _read_rest(headers, asked)
        case 416 if asked.offset:
            return _read_unsatisfied(headers, asked)
        case _ if may_answer_later(status):
            return TryAgain(f"it answered {status}", _retry_after(headers))
        case _:
            return HttpRefused(f"it answered {status}{_HINTS.get(status, '')}")


def _read_whole(headers: Mapping[str, str], asked: Asked) -> AnswerMeaning:
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        return HttpRefused(f"it sends the file encoded ({encoding[:40]}), although that was not asked for")
    length = headers.get("content-length", "")
    total = int(length) if length.isdecimal() and len(length) <= 18 else None
    if total is None and headers.get("transfer-encoding", "").lower() != "chunked" and not asked.has_digest:
        return HttpRefused("it does not say how long the file is; with sha256 set, that is no matter")
    return Body(0, total, strong(headers.get("etag")))


def _read_rest(headers: Mapping[str, str], asked: Asked) -> AnswerMeaning:
    found = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    if found is None or not asked.offset:
        return StartOver("it answered with a part of the file that can't be told which")
    if (encoding := headers.get("content-encoding", "identity").lower()) != "identity":
        return HttpRefused(f"it sends the file encoded ({encoding[:40]}), although that was not asked for")
    first, last = int(found[1]), int(found[2])
    total = None if found[3] == "*" else int(found[3])
    etag = strong(headers.get("etag"))
    if first != asked.offset or (total is not None and last != total - 1):
        return StartOver("it answered with another part of the file than the one asked for")
    if (change := _change_since(asked, total, etag)) is not None:
        return StartOver(change)
    known = total if total is not None else asked.total
    # The request was for the rest up to the end, so the last announced byte is the file's last one if the length is
    # unknown.
    return Body(first, last + 1 if known is None else known, etag or asked.etag)


def _change_since(asked: Asked, total: int | None, etag: str | None) -> str | None:
    """Returns how the server's file differs from the one whose beginning is here, or None if nothing shows that."""
    if asked.total is not None and total not in {None, asked.total}:
        return f"the file has {total} bytes now, it had {asked.total}"
    if asked.etag is not None and etag is not None and etag != asked.etag:
        return "the file has changed"
    return None


def _read_unsatisfied(headers: Mapping[str, str], asked: Asked) -> AnswerMeaning:
    found = _UNSATISFIED.fullmatch(headers.get("content-range", ""))
    if found is not None and int(found[1]) == asked.offset and asked.total in {None, asked.offset}:
        return Complete()
    return StartOver("the file is shorter than what was fetched of it")


def strong(etag: str | None) -> str | None:
    """Returns a strong ETag. Returns None for a weak one, which does not say that the bytes are the same."""
    return etag if etag is not None and re.fullmatch(r'"[\x21\x23-\x7e]{1,500}"', etag) else None


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Returns Retry-After in seconds. The form with a date is ignored, because it compares clocks."""
    value = headers.get("retry-after", "").strip()
    return min(float(value), RETRY_AFTER_SECONDS_MAX) if re.fullmatch(r"\d{1,9}", value) else None
