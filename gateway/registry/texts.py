"""Texts as every store can keep them."""


def storable(text: str) -> str:
    """The text of a dying process may hold bytes that are no text (lone surrogates), and no database takes those."""
    return text.encode(errors="replace").decode()


def comparable(text: str) -> str:
    """For texts that queries compare: without NUL too, since SQLite's JSON functions end a text there."""
    return storable(text).replace("\0", "\ufffd")
