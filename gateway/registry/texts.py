"""Texts as every store can keep them."""


def storable(text: str) -> str:
    """The text of a dying process may hold bytes that are no text (lone surrogates), and NUL, which ends a text in
    SQLite's JSON functions and is none for PostgreSQL."""
    return text.encode(errors="replace").decode().replace("\0", "\ufffd")
