"""Finds the control groups that hold this process: a container's or a service's limits are theirs.

Each group from ours up to the outermost that is visible may set a limit, and all of them hold. Version 1 has one
hierarchy per controller, version 2 a single one; both may be mounted. The files of the two have different names, so
readers look for both in every folder. (cgroups(7), cgroup_namespaces(7), proc_pid_mountinfo(5))
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from gateway.worker.hostinfo.readings import read_text

_VERSION_2: Final = ""
"""Stands where version 1 names controllers, as in /proc/self/cgroup."""


@dataclass(frozen=True)
class _Mount:
    controllers: frozenset[str]
    top: PurePosixPath
    """The group that it shows at `point`."""
    point: Path


def own_groups(controller: str, root: Path) -> tuple[Path, ...]:
    """Folders of the groups that hold us and may limit `controller` ("memory", "cpu"), each before its parents.

    `root` is the folder of the machine's files, "/" except in tests.
    """
    wanted = {controller, _VERSION_2}
    mounts = _mounts(root)
    return tuple(
        folder
        for controllers, path in _memberships(root)
        for mount in mounts
        if controllers & mount.controllers & wanted
        for folder in _folders(mount, path)
    )


def _memberships(root: Path) -> Iterator[tuple[frozenset[str], PurePosixPath]]:
    """In each hierarchy, the group that we are in."""
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number_controllers_path = line.split(":", 2)
        if len(number_controllers_path) == 3:
            _, controllers, path = number_controllers_path
            yield frozenset(controllers.split(",")), PurePosixPath(path)


def _mounts(root: Path) -> list[_Mount]:
    lines = read_text(root / "proc/self/mountinfo").splitlines()
    return [mount for line in lines if (mount := _parse_mount(line, root)) is not None]


def _parse_mount(line: str, root: Path) -> _Mount | None:
    """36 35 98:0 TOP POINT OPTIONS... - TYPE SOURCE OPTIONS"""
    place, _, kind = line.partition(" - ")
    places, kinds = place.split(), kind.split()
    if len(places) < 5 or not kinds or kinds[0] not in {"cgroup", "cgroup2"}:
        return None
    controllers = [_VERSION_2] if kinds[0] == "cgroup2" else kinds[-1].split(",")
    return _Mount(frozenset(controllers), PurePosixPath(places[3]), root / places[4].lstrip("/"))


def _folders(mount: _Mount, path: PurePosixPath) -> Iterator[Path]:
    """The groups above us that the mount shows. Nothing when it shows others, as a bind mount may.

    In a container `path` and `top` are those of the host, equal, or both are "/". Paths that climb ("/../x") lie
    outside our name space: such a `top` is above us if it only climbs, such a `path` is not to be found.
    """
    if set(mount.top.parts) == {"/", ".."}:
        yield mount.point
    elif path.is_relative_to(mount.top) and ".." not in path.parts:
        inner = path.relative_to(mount.top).parts
        for depth in range(len(inner), -1, -1):
            yield mount.point.joinpath(*inner[:depth])
