"""Texts of strangers as a log line or an error may quote them: bounded, and on one line. Pure."""

from typing import Final

QUOTED_CHARACTERS_MAX: Final = 200
"""Of a path, a name or an id. A request's head may have tens of thousands."""


def quoted(text: str, characters_max: int = QUOTED_CHARACTERS_MAX) -> str:
    """What is cut off leaves its trace: "/aaa... (30000 characters)"."""
    if len(text) <= characters_max:
        return escaped(text)
    return f"{escaped(text[:characters_max])}... ({len(text)} characters)"


def escaped(text: str, keep: str = "") -> str:
    """Control characters, line ends among them unless they are to be kept, as Python writes them: a terminal would
    obey them, and a reader would take the rest for another line."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() or letter in keep else letter.encode("unicode_escape").decode()
        for letter in text
    )


def without_middle(text: str, characters_max: int) -> str:
    """Both ends of what is too long: an error begins with what happened and ends with the cause."""
    if len(text) <= characters_max:
        return text
    half = characters_max // 2
    return f"{text[:half]}... ({len(text) - 2 * half} characters left out) ...{text[-half:]}"
