"""Keeps rich out of the memory of programs that print no tables.

structlog and httpx import rich, which takes 4 MB, if it is installed: the one to print exceptions on a terminal, the
other for a program of its own. Neither needs it.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

NAME: Final = "rich"


@contextmanager
def without_rich() -> Iterator[None]:
    """Lets what is imported in the body find no rich, unless it was imported before. Afterwards it can be imported."""
    modules: dict[str, Any] = sys.modules
    if NAME in modules:
        yield
        return
    modules[NAME] = None  # so an import of it raises ModuleNotFoundError (Python's reference, "the module cache")
    try:
        yield
    finally:
        del modules[NAME]
