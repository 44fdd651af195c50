"""Runs asyncio code in tests as a process of ours without Trio would.

trio-asyncio, once imported by any test of this process, replaces asyncio's loop policy with one whose loops are Trio's.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_asyncio(main: Coroutine[Any, Any, T], seconds: float = 60.0) -> T:
    """Raises `TimeoutError` when it takes longer than so many seconds."""

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        return runner.run(asyncio.wait_for(main, seconds))
