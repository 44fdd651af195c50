"""Prepares untrusted texts for a log line or an error: limited, and on one line. Pure."""

import re
from typing import Final

QUOTED_CHARACTERS_MAX: Final = 200
"""The length at which a path, a name or an id is cut. A request's head may have tens of thousands of characters."""
_VISIBLE_ASCII: Final = re.compile(r"[\x21-\x7e]+")


def is_visible_ascii(text: str) -> bool:
    """Returns whether the text may be a secret in a header: characters of ASCII that one sees, at least one of them."""
    return _VISIBLE_ASCII.fullmatch(text) is not None


def quoted(text: str, characters_max: int = QUOTED_CHARACTERS_MAX) -> str:
    """Returns the text, cut if it is too long. A cut text shows its length: "/aaa... (30000 characters)"."""
    if len(text) <= characters_max:
        return text if text.isprintable() else escaped(text)
    return f"{escaped(text[:characters_max])}... ({len(text)} characters)"


def escaped(text: str, keep: str = "") -> str:
    """Returns the text with control characters as Python writes them, line ends included unless `keep` has them. A
    terminal would obey them, and a reader would take the rest for another line."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def without_middle(text: str, characters_max: int) -> str:
    """Returns both ends of a text that is too long: an error begins with what happened and ends with the cause."""
    if len(text) <= characters_max:
        return text
    half = characters_max // 2
    return f"{text[:half]}... ({len(text) - 2 * half} characters left out) ...{text[-half:]}"
