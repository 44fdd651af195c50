"""The dump of the task tree: every task is there, below its parent, with the place where it waits."""

import trio
from trio.testing import wait_all_tasks_blocked

from gateway.observability.task_tree import task_tree


async def wait_for_nobody() -> None:
    await trio.sleep_forever()


async def open_inner_nursery() -> None:
    async with trio.open_nursery() as inner:
        inner.start_soon(wait_for_nobody, name="the inner task")


def depth_of(line: str) -> int:
    return len(line) - len(line.lstrip())


async def test_each_task_is_below_its_parent_with_the_place_where_it_waits() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_inner_nursery, name="the outer task")
        await wait_all_tasks_blocked()
        lines = task_tree().splitlines()
        nursery.cancel_scope.cancel()
    outer = next(index for index, line in enumerate(lines) if line.lstrip().startswith("the outer task: "))
    inner = lines[outer + 1]
    assert inner.lstrip().startswith("the inner task: ")
    assert depth_of(inner) == depth_of(lines[outer]) + 2
    assert f"{__name__}.wait_for_nobody:" in inner
