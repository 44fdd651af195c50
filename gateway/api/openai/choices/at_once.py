"""Makes the calls of one request to backends, a few at the same time."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeVar

import trio

Q = TypeVar("Q")
R = TypeVar("R")

CALLS_AT_ONCE: Final = 4
"""The number of calls of one request at the same time, so that one request cannot take every slot."""


async def call_each(call: Callable[[Q], Awaitable[R]], items: Sequence[Q]) -> list[R]:
    """Makes one call for each item. The answers are in the order of the items.

    The first error ends the other calls and is raised as it is, not inside a group.
    """
    found: dict[int, R] = {}
    errors: list[Exception] = []
    waiting = iter(enumerate(items))

    async def work(scope: trio.CancelScope) -> None:
        """Makes one call after the other until none is left."""
        try:
            for index, item in waiting:
                found[index] = await call(item)
        except Exception as error:  # noqa: BLE001 - raised again below, outside the nursery
            errors.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for _ in range(min(CALLS_AT_ONCE, len(items))):
            nursery.start_soon(work, nursery.cancel_scope)
    if errors:
        raise errors[0]
    return [found[index] for index in range(len(items))]
