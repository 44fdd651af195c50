"""Reads the kernel's small text files, which may be missing, forbidden or strange."""

from pathlib import Path


def read_text(path: Path) -> str:
    """Empty when there is none to be had."""
    try:
        return path.read_text(errors="replace")
    except (OSError, ValueError):  # the latter: a path with a NUL in it, put together from another such file
        return ""


def read_number(path: Path) -> int | None:
    return to_number(read_text(path))


def to_number(text: str) -> int | None:
    """None for whatever is no whole number from 0 on, such as the "max" and the -1 that mean no limit."""
    try:
        number = int(text)
    except ValueError:
        return None
    return number if number >= 0 else None
