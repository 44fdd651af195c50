"""The tree of Trio's tasks with the place where each waits, for a process that seems to hang."""

from collections.abc import Iterator
from typing import Final

import trio

TRIO_INSIDE: Final = "trio._core"
"""The package of Trio that is the same at the end of every wait, and is left out."""
FRAMES_MAX: Final = 6
"""The number of calls that are shown of each task, from the innermost outwards."""


def task_tree() -> str:
    """Returns one line for each task of the running event loop, indented below the task whose nursery it is in.

    A line has the task's name and the calls that it is in, as `module.function:line`, the innermost last.
    """
    root = trio.lowlevel.current_root_task()
    return "\n".join(_lines(root, 0)) if root is not None else ""


def _lines(task: trio.lowlevel.Task, depth: int) -> Iterator[str]:
    yield f"{'  ' * depth}{task.name}: {_place(task)}"
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda each: each.name):
            yield from _lines(child, depth + 1)


def _place(task: trio.lowlevel.Task) -> str:
    frames = [
        (frame.f_globals.get("__name__", "?"), frame.f_code.co_name, line) for frame, line in task.iter_await_frames()
    ]
    calls = [f"{module}.{name}:{line}" for module, name, line in frames if not module.startswith(TRIO_INSIDE)]
    return " > ".join(calls[-FRAMES_MAX:])
