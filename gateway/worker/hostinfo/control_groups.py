"""Finds the control groups that contain this process: the limits of a container or service are theirs.

Each group from that of this process up to the outermost visible one may set a limit, and all limits apply. Version 1
has one hierarchy per controller, version 2 a single one, and both may be mounted. The files of the two have different
names, so readers look for both in every folder. (cgroups(7), cgroup_namespaces(7), proc_pid_mountinfo(5))
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from gateway.worker.hostinfo.readings import read_text

_VERSION_2: Final = ""
"""The value of version 2 where version 1 names controllers, as in /proc/self/cgroup."""


@dataclass(frozen=True)
class _Mount:
    controllers: frozenset[str]
    top: PurePosixPath
    """The group that is visible at `point`."""
    point: Path


def own_groups(controller: str, root: Path) -> tuple[Path, ...]:
    """Returns the folders of the groups that contain this process and may limit `controller` ("memory", "cpu"), each
    before its parents.

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
    """Yields the group of this process in each hierarchy."""
    for line in read_text(root / "proc/self/cgroup").splitlines():
        number_controllers_path = line.split(":", 2)
        if len(number_controllers_path) == 3:
            _, controllers, path = number_controllers_path
            yield frozenset(controllers.split(",")), PurePosixPath(path)


def _mounts(root: Path) -> list[_Mount]:
    lines = read_text(root / "proc/self/mountinfo").splitlines()
    return [mount for line in lines if (mount := _parse_mount(line, root)) is not None]


def _parse_mount(line: str, root: Path) -> _Mount | None:
    """Parses a line such as `36 35 98:0 TOP POINT OPTIONS... - TYPE SOURCE OPTIONS`."""
    place, _, kind = line.partition(" - ")
    places, kinds = place.split(), kind.split()
    if len(places) < 5 or not kinds or kinds[0] not in {"cgroup", "cgroup2"}:
        return None
    controllers = [_VERSION_2] if kinds[0] == "cgroup2" else kinds[-1].split(",")
    return _Mount(frozenset(controllers), PurePosixPath(places[3]), root / places[4].lstrip("/"))


def _folders(mount: _Mount, path: PurePosixPath) -> Iterator[Path]:
    """Yields the visible groups above this process. There are none if the mount shows other groups, as a bind mount
    may.

    In a container `path` and `top` are those of the host and equal, or both are "/". Paths that climb ("/../x") lie
    outside the name space: such a `top` is above this process if it only climbs, and such a `path` cannot be found.
    """
    if set(mount.top.parts) == {"/", ".."}:
        yield mount.point
    elif path.is_relative_to(mount.top) and ".." not in path.parts:
        inner = path.relative_to(mount.top).parts
        for depth in range(len(inner), -1, -1):
            yield mount.point.joinpath(*inner[:depth])
